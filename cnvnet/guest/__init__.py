"""What a virtual machine talks to: DHCP, DHCPv6, router advertisements, ARP and ND, as pure functions.

`services` is the door: prepare a guest's `settings` once, then ask it about each frame. Sockets and clocks
are only in the packet loop around it: `responder`, `served`, `tap_socket`, `channel`.
"""
