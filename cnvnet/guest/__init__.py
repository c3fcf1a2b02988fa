"""What a virtual machine talks to: DHCP, DHCPv6, router advertisements, ARP and ND, as pure functions.

`services` is the entrance: it prepares a guest's `settings` once, and then answers each frame. Sockets and
clocks are only in the packet loop around it: `packet_loop`, `session`, `tap_socket`, `channel`.
"""
