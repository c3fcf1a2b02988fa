"""The guests that these tests serve."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from cnvnet.guest.settings import V4, V6, GuestNeighbour, Settings

SERVER_MAC = "02:00:00:00:00:00"

# A guest behind masquerade, in a cluster with both families.
MASQUERADE = Settings(
    server_mac=SERVER_MAC,
    mtu=1400,
    hostname="vm1",
    nameservers=(IPv4Address("10.96.0.10"), IPv6Address("fd00:10:96::a"), IPv4Address("10.96.0.11")),
    search=("default.svc.cluster.local", "svc.cluster.local", "cluster.local"),
    v4=V4(IPv4Interface("10.0.2.2/24"), IPv4Address("10.0.2.1"), IPv4Address("10.0.2.1")),
    v6=V6(IPv6Interface("fd10:0:2::2/120")),
)

# A guest that has its pod's address in an AWS-like network: /32, and a next hop that answers no ARP.
POINT_TO_POINT = MASQUERADE._replace(
    server_mac="02:00:00:00:00:4b",
    guest_mac="52:54:00:12:34:56",
    mtu=9001,
    v4=V4(IPv4Interface("192.168.21.225/32"), IPv4Address("169.254.75.10"), IPv4Address("169.254.1.1")),
    v6=V6(IPv6Interface("fd00:21::e1/128"), IPv6Address("fe80::1"), "0a:58:a9:fe:01:01"),
    neighbours=(GuestNeighbour(IPv4Address("169.254.1.1"), "0a:58:a9:fe:01:01"),),
)
