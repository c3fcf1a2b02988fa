"""The pod's interface as it was before a VM took its place, as a value and as the JSON of a record.

Only what stays by itself is kept: what router advertisements brought, and what the kernel makes of an
address, comes back without us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any, NamedTuple, TypeVar, cast

from cnvnet.kernel.addresses import Address
from cnvnet.kernel.links import Link
from cnvnet.kernel.neighbours import Neighbour
from cnvnet.kernel.routes import PROTOCOL_KERNEL, PROTOCOL_RA, Route
from cnvnet.kernel.stack import Stack

IP = IPv4Address | IPv6Address
T = TypeVar("T")


class Original(NamedTuple):
    """The interface. `ipv6` is its sysctl disable_ipv6, None where the kernel has none.

    `heard` are the default routes that a router told it: they are not put back, but the guest gets them.
    `bare` are the networks of its addresses that somebody took the kernel's route to away, as the reference
    ptp plugin does: nobody there is reached directly.
    """

    ifindex: int
    name: str
    mac: str
    mtu: int
    up: bool
    alias: str = ""
    disable_ipv6: str | None = None
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    heard: tuple[Route, ...] = ()
    bare: tuple[IPv4Network | IPv6Network, ...] = ()


def observe(pod: Stack, link: Link) -> Original:
    """All of it that can be put back."""
    found = pod.routes(link.ifindex)
    addresses = tuple(address for address in pod.addresses(link.ifindex) if address.permanent)
    return Original(
        link.ifindex,
        link.name,
        link.mac,
        link.mtu,
        link.up,
        link.alias,
        pod.sysctls.get(disable_ipv6(link.name)),
        addresses,
        tuple(route for route in found if route.protocol not in (PROTOCOL_KERNEL, PROTOCOL_RA)),
        tuple(each for each in pod.neighbours(link.ifindex) if each.permanent),
        tuple(route for route in found if route.protocol == PROTOCOL_RA and not route.dst.prefixlen),
        _bare(addresses, found) if link.up else (),
    )


def _bare(addresses: Iterable[Address], routes: Iterable[Route]) -> tuple[IPv4Network | IPv6Network, ...]:
    reached = {route.dst for route in routes if route.protocol == PROTOCOL_KERNEL}
    networks = dict.fromkeys(
        each.address.network for each in addresses if each.peer is None and not each.noprefixroute
    )
    return tuple(network for network in networks if network.num_addresses > 1 and network not in reached)


def in_order(was: Original) -> tuple[Address, ...]:
    """Its addresses in the order in which they have to be added, to be listed and preferred as they were.

    The kernel lists IPv4 addresses as they came, of IPv6 the last one first.
    """
    ipv4 = tuple(each for each in was.addresses if each.address.version == 4)
    return ipv4 + tuple(each for each in reversed(was.addresses) if each.address.version == 6)


def disable_ipv6(ifname: str) -> str:
    """The sysctl by which a link has no IPv6."""
    return f"net/ipv6/conf/{ifname}/disable_ipv6"


def encode(original: Original) -> dict[str, Any]:
    """The document that `parse` reads back; addresses as text."""
    return cast("dict[str, Any]", _encode(original))


def _encode(value: object) -> object:
    if isinstance(value, tuple):
        values = cast("tuple[object, ...]", value)
        names: tuple[str, ...] = getattr(values, "_fields", ())
        encoded = [_encode(item) for item in values]
        return dict(zip(names, encoded, strict=True)) if names else encoded
    return value if value is None or isinstance(value, (bool, int)) else str(value)


def parse(document: object) -> Original | None:
    """None for what is not such a document: then only the links themselves can tell."""
    try:
        fields = cast("Mapping[str, Any]", document)
        return Original(
            ifindex=int(fields["ifindex"]),
            name=str(fields["name"]),
            mac=str(fields["mac"]),
            mtu=int(fields["mtu"]),
            up=bool(fields["up"]),
            alias=str(fields["alias"]),
            disable_ipv6=fields["disable_ipv6"],
            addresses=_each(fields["addresses"], _address),
            routes=_each(fields["routes"], _route),
            neighbours=_each(fields["neighbours"], _neighbour),
            heard=_each(fields["heard"], _route),
            bare=tuple(ip_network(text) for text in fields.get("bare", ())),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _each(items: Iterable[Any], read: Callable[[dict[str, Any]], T]) -> tuple[T, ...]:
    return tuple(read(dict(item)) for item in items)


def _ip(text: str | None) -> IP | None:
    return ip_address(text) if text is not None else None


def _address(fields: dict[str, Any]) -> Address:
    broadcast = _ip(fields["broadcast"])
    read: dict[str, Any] = {
        "address": ip_interface(fields["address"]),
        "broadcast": broadcast if isinstance(broadcast, IPv4Address) else None,
        "peer": _ip(fields["peer"]),
    }
    return Address(**fields | read)


def _route(fields: dict[str, Any]) -> Route:
    read: dict[str, Any] = {
        "dst": ip_network(fields["dst"]),
        "gw": _ip(fields["gw"]),
        "src": _ip(fields["src"]),
    }
    return Route(**fields | read)


def _neighbour(fields: dict[str, Any]) -> Neighbour:
    read: dict[str, Any] = {"address": ip_address(fields["address"])}
    return Neighbour(**fields | read)
