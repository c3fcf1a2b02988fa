"""What vm-bridge wrote of the pod's interface before it kept the kernel's own messages, in their place.

It knew less of each thing, and of routes only those that were not the kernel's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

from cnvnet.kernel import addresses, neighbours, routes
from cnvnet.kernel.addresses import Address
from cnvnet.kernel.neighbours import AddNeighbour, Neighbour
from cnvnet.kernel.netlink import pack
from cnvnet.kernel.routes import AddRoute, Route
from cnvnet.kernel.rtnetlink import PROTOCOL_KERNEL
from cnvnet.kernel.snapshots import Snapshot


def snapshot(fields: Mapping[str, Any]) -> Snapshot:
    """Raises KeyError, TypeError or ValueError for what is no such record."""
    parsed = [_address(dict(item)) for item in fields["addresses"]]
    ipv4 = [each for each in parsed if each.address.version == 4]
    # The kernel lists of IPv6 the last one first.
    ipv6 = [each for each in reversed(parsed) if each.address.version == 6]
    ways = [AddRoute(_route(dict(item))) for item in fields["routes"]]
    entries = [AddNeighbour(_neighbour(dict(item))) for item in fields["neighbours"]]
    return Snapshot(
        addresses=tuple(pack(addresses.encode(each)) for each in (*ipv4, *ipv6)),
        routes=tuple(pack(routes.encode_add(each)) for each in ways),
        neighbours=tuple(pack(neighbours.encode_add(each)) for each in entries),
    )


def missing_connected_routes(fields: Mapping[str, Any]) -> tuple[IPv4Network | IPv6Network, ...]:
    """The networks that the kernel's routes to had been taken away."""
    return tuple(ip_network(text) for text in fields.get("bare", ()))


def completed(was: Snapshot, missing: tuple[IPv4Network | IPv6Network, ...], now: Snapshot) -> Snapshot:
    """With the routes that the kernel has made of its addresses."""
    return was._replace(routes=(*(raw for raw in now.routes if not _is_missing(raw, missing)), *was.routes))


def _is_missing(raw: bytes, missing: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    return any(route.protocol == PROTOCOL_KERNEL and route.dst in missing for route in routes.decode(raw))


def _address(fields: dict[str, Any]) -> Address:
    address: dict[str, Any] = {"address": ip_interface(fields["address"])}
    return Address(**fields | address | _ips(fields, "broadcast", "peer"))


def _route(fields: dict[str, Any]) -> Route:
    dst: dict[str, Any] = {"dst": ip_network(fields["dst"])}
    return Route(**fields | dst | _ips(fields, "gw", "src"))


def _neighbour(fields: dict[str, Any]) -> Neighbour:
    return Neighbour(**fields | _ips(fields, "address"))


def _ips(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: ip_address(fields[name]) for name in names if fields[name] is not None}
