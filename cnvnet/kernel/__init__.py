"""Everything the project asks of the kernel, behind small Protocols; tests/fakes has a fake of each.

`Stack` (stack.py) is the network stack of one namespace: it reads links, addresses, routes, neighbours and
bridge VLANs, and applies operations, which are plain values, in order up to the first that is refused.
Nothing outside this package opens a netlink socket, enters a namespace, writes a sysctl or talks to
nftables.
"""
