"""Routes as values, and their messages."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from socket import AF_INET, AF_INET6
from typing import Final, NamedTuple

from cnvnet.kernel import pyroute2_light
from cnvnet.kernel.netlink import CREATE, EXCL, Message, attribute, nested
from cnvnet.kernel.pyroute2_light import Decoded

MAIN_TABLE = 254

# include/uapi/linux/rtnetlink.h
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_RTA_PREFSRC: Final = 7
_RTA_METRICS: Final = 8
_RTA_TABLE: Final = 15
_RTA_VIA: Final = 18
_RTAX_MTU: Final = 2
_RTAX_ADVMSS: Final = 8
_RTN_UNICAST: Final = 1
_RTNH_F_ONLINK: Final = 4
_SCOPE_UNIVERSE: Final = 0
SCOPE_LINK: Final = 253
_SCOPE_NOWHERE: Final = 255
PROTOCOL_KERNEL: Final = 2
PROTOCOL_BOOT: Final = 3
PROTOCOL_RA: Final = 9

_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_U32: Final = struct.Struct("=I")
_FAMILY: Final = struct.Struct("=H")
_MESSAGE: Final = ("netlink.rtnl.rtmsg", "rtmsg")


class Route(NamedTuple):
    """A unicast route. `gw` None is on-link; `scope` None lets the kernel's usual rule decide (link if no
    gw).

    Of a route with several next hops each is a value of its own. Read back, `scope` and `protocol` are
    always the kernel's numbers; IPv6 knows no scope (0) and gives priority 1024 to a route that asks for
    0. `protocol` 0 is "boot" (3), as with `ip route`. `gw` may be IPv6 where `dst` is IPv4. `src` is the
    address that is preferred as the source.
    """

    dst: IPv4Network | IPv6Network
    ifindex: int
    gw: IPv4Address | IPv6Address | None = None
    table: int = MAIN_TABLE
    priority: int = 0
    scope: int | None = None
    mtu: int = 0
    advmss: int = 0
    onlink: bool = False
    protocol: int = 0
    src: IPv4Address | IPv6Address | None = None


class AddRoute(NamedTuple):
    """EEXIST when the destination has one of that priority; ENETUNREACH when the gateway cannot be reached
    directly.

    `append` adds a further next hop instead of refusing it (EEXIST then only for the very same one), as
    the reference plugins' RouteAddEcmp does: IPv6 spreads over all next hops, IPv4 keeps them as
    alternatives and uses the one that was added last.
    """

    route: Route
    append: bool = False


class DeleteRoute(NamedTuple):
    """ESRCH when there is none. `scope` None, `protocol` 0 and, for IPv6, `priority` 0 match any; metrics
    count not.
    """

    route: Route


def query(family: int = 0) -> Message:
    """Asks for all routes."""
    return Message(_RTM_GETROUTE, 0, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))


def encode_add(wanted: AddRoute) -> Message:
    """RTM_NEWROUTE, packed by hand because every layer-3 ADD sends some; the tests hold it against
    pyroute2's.
    """
    route = wanted.route
    scope = route.scope
    if scope is None:
        scope = SCOPE_LINK if route.gw is None else _SCOPE_UNIVERSE
    body = _header(route, scope, route.protocol or PROTOCOL_BOOT) + _selector(route)
    metrics = attribute(_RTAX_MTU, _U32.pack(route.mtu)) if route.mtu else b""
    metrics += attribute(_RTAX_ADVMSS, _U32.pack(route.advmss)) if route.advmss else b""
    if metrics:
        body += nested(_RTA_METRICS, metrics)
    if route.src is not None:
        body += attribute(_RTA_PREFSRC, route.src.packed)
    # Neither NLM_F_APPEND: in IPv4 it would put the new next hop last, where nobody uses it.
    return Message(_RTM_NEWROUTE, CREATE if wanted.append else CREATE | EXCL, body)


def encode_delete(wanted: DeleteRoute) -> Message:
    """RTM_DELROUTE."""
    route = wanted.route
    scope = _SCOPE_NOWHERE if route.scope is None else route.scope
    return Message(_RTM_DELROUTE, 0, _header(route, scope, route.protocol) + _selector(route))


def decode(raw: bytes) -> list[Route]:
    """The unicast route in an RTM_NEWROUTE message, once per next hop; nothing for other types and
    families.
    """
    found = pyroute2_light.decode(*_MESSAGE, raw)
    family = found["family"]
    if family not in (AF_INET, AF_INET6) or found["type"] != _RTN_UNICAST:
        return []
    metrics = found.get_attr("RTA_METRICS")
    src = found.get_attr("RTA_PREFSRC")
    base = Route(
        dst=_network(found),
        ifindex=0,
        table=found.get_attr("RTA_TABLE") or found["table"],
        priority=found.get_attr("RTA_PRIORITY") or 0,
        scope=found["scope"],
        mtu=(metrics.get_attr("RTAX_MTU") if metrics else None) or 0,
        advmss=(metrics.get_attr("RTAX_ADVMSS") if metrics else None) or 0,
        protocol=found["proto"],
        src=ip_address(src) if src else None,
    )
    hops = found.get_attr("RTA_MULTIPATH")
    if hops:
        return [_over(base, hop, hop["oif"], hop["flags"]) for hop in hops]
    return [_over(base, found, found.get_attr("RTA_OIF") or 0, found["flags"])]


def _over(base: Route, hop: Decoded, ifindex: int, flags: int) -> Route:
    via = hop.get_attr("RTA_VIA")
    gw = via["addr"] if via else hop.get_attr("RTA_GATEWAY")
    onlink = bool(flags & _RTNH_F_ONLINK)
    return base._replace(ifindex=ifindex, gw=ip_address(gw) if gw else None, onlink=onlink)


def _network(found: Decoded) -> IPv4Network | IPv6Network:
    any_address = "0.0.0.0" if found["family"] == AF_INET else "::"
    return ip_network(f"{found.get_attr('RTA_DST') or any_address}/{found['dst_len']}")


def _header(route: Route, scope: int, protocol: int) -> bytes:
    family = AF_INET if route.dst.version == 4 else AF_INET6
    table = route.table if route.table < 256 else 0
    flags = _RTNH_F_ONLINK if route.onlink else 0
    return _RTMSG.pack(family, route.dst.prefixlen, 0, 0, table, protocol, scope, _RTN_UNICAST, flags)


def _selector(route: Route) -> bytes:
    """The attributes that tell one route from another."""
    packed = attribute(_RTA_TABLE, _U32.pack(route.table))
    if route.dst.prefixlen:
        packed += attribute(_RTA_DST, route.dst.network_address.packed)
    if route.ifindex:
        packed += attribute(_RTA_OIF, _U32.pack(route.ifindex))
    if route.gw is not None:
        if route.gw.version == route.dst.version:
            packed += attribute(_RTA_GATEWAY, route.gw.packed)
        else:
            packed += attribute(_RTA_VIA, _FAMILY.pack(AF_INET6) + route.gw.packed)
    if route.priority:
        packed += attribute(_RTA_PRIORITY, _U32.pack(route.priority))
    return packed
