"""Routes as values, and their messages."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from socket import AF_INET, AF_INET6
from typing import Final, NamedTuple

from cnvnet.kernel import pyroute2_light
from cnvnet.kernel.netlink import CREATE, EXCL, NetlinkMessage, attribute, nested
from cnvnet.kernel.pyroute2_light import Decoded
from cnvnet.kernel.rtnetlink import (
    PROTOCOL_BOOT,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_TABLE,
    RTA_VIA,
    RTM_NEWROUTE,
    RTMSG,
    RTN_UNICAST,
    RTNH_F_ONLINK,
    SCOPE_GLOBAL,
    SCOPE_LINK,
    U32,
)

# RT_TABLE_MAIN, which `ip route` shows unless it is asked for another one.
MAIN_TABLE = 254

# include/uapi/linux/rtnetlink.h
_RTM_GETROUTE: Final = 26
_RTA_METRICS: Final = 8
_RTAX_MTU: Final = 2
_RTAX_ADVMSS: Final = 8
_FAMILY: Final = struct.Struct("=H")
_MESSAGE: Final = ("netlink.rtnl.rtmsg", "rtmsg")


class Route(NamedTuple):
    """A unicast route. Of one with several next hops each is a value of its own.

    Read back, `scope` and `protocol` are always the kernel's numbers.
    """

    dst: IPv4Network | IPv6Network
    ifindex: int
    # None: the destination is on the link. IPv6 may lead to an IPv4 destination.
    gw: IPv4Address | IPv6Address | None = None
    table: int = MAIN_TABLE
    # IPv6 reads back as 1024 what is added with 0.
    priority: int = 0
    # None: link without `gw`, else universe, as `ip route` does. IPv6 has no scope and reads back 0.
    scope: int | None = None
    # 0: the link's.
    mtu: int = 0
    advmss: int = 0
    # The gateway is on the link, although no route says so.
    onlink: bool = False
    # 0 is "boot" (3), as with `ip route`.
    protocol: int = 0
    # The source address of packets that leave by it.
    src: IPv4Address | IPv6Address | None = None


class AddRoute(NamedTuple):
    """Adds a route.

    EEXIST when the destination has one of that priority; ENETUNREACH when the gateway cannot be reached
    directly. `append` adds a further next hop instead of refusing it (EEXIST then only for the very same
    one), as the reference plugins' RouteAddEcmp does: IPv6 spreads over all next hops, IPv4 keeps them as
    alternatives and uses the one that was added last.
    """

    route: Route
    append: bool = False


def query(family: int = 0) -> NetlinkMessage:
    """Asks for all routes."""
    return NetlinkMessage(_RTM_GETROUTE, 0, RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))


def encode_add(wanted: AddRoute) -> NetlinkMessage:
    """RTM_NEWROUTE, packed with `struct`, because every layer-3 ADD sends some.

    Tests compare it with pyroute2's.
    """
    route = wanted.route
    scope = route.scope
    if scope is None:
        scope = SCOPE_LINK if route.gw is None else SCOPE_GLOBAL
    body = _header(route, scope, route.protocol or PROTOCOL_BOOT) + _selector(route)
    metrics = attribute(_RTAX_MTU, U32.pack(route.mtu)) if route.mtu else b""
    metrics += attribute(_RTAX_ADVMSS, U32.pack(route.advmss)) if route.advmss else b""
    if metrics:
        body += nested(_RTA_METRICS, metrics)
    if route.src is not None:
        body += attribute(RTA_PREFSRC, route.src.packed)
    # No NLM_F_APPEND either: IPv4 would put the new next hop last, and uses the first one only.
    return NetlinkMessage(RTM_NEWROUTE, CREATE if wanted.append else CREATE | EXCL, body)


def decode(raw: bytes) -> list[Route]:
    """The unicast route in an RTM_NEWROUTE message, once per next hop.

    Nothing for other types and families.
    """
    message = pyroute2_light.decode(*_MESSAGE, raw)
    family = message["family"]
    if family not in (AF_INET, AF_INET6) or message["type"] != RTN_UNICAST:
        return []
    metrics = message.get_attr("RTA_METRICS")
    src = message.get_attr("RTA_PREFSRC")
    base = Route(
        dst=_network(message),
        ifindex=0,
        table=message.get_attr("RTA_TABLE") or message["table"],
        priority=message.get_attr("RTA_PRIORITY") or 0,
        scope=message["scope"],
        mtu=(metrics.get_attr("RTAX_MTU") if metrics else None) or 0,
        advmss=(metrics.get_attr("RTAX_ADVMSS") if metrics else None) or 0,
        protocol=message["proto"],
        src=ip_address(src) if src else None,
    )
    hops = message.get_attr("RTA_MULTIPATH")
    if hops:
        return [_over(base, hop, hop["oif"], hop["flags"]) for hop in hops]
    return [_over(base, message, message.get_attr("RTA_OIF") or 0, message["flags"])]


def _over(base: Route, hop: Decoded, ifindex: int, flags: int) -> Route:
    via = hop.get_attr("RTA_VIA")
    gw = via["addr"] if via else hop.get_attr("RTA_GATEWAY")
    onlink = bool(flags & RTNH_F_ONLINK)
    return base._replace(ifindex=ifindex, gw=ip_address(gw) if gw else None, onlink=onlink)


def _network(message: Decoded) -> IPv4Network | IPv6Network:
    any_address = "0.0.0.0" if message["family"] == AF_INET else "::"
    return ip_network(f"{message.get_attr('RTA_DST') or any_address}/{message['dst_len']}")


def _header(route: Route, scope: int, protocol: int) -> bytes:
    family = AF_INET if route.dst.version == 4 else AF_INET6
    table = route.table if route.table < 256 else 0
    flags = RTNH_F_ONLINK if route.onlink else 0
    return RTMSG.pack(family, route.dst.prefixlen, 0, 0, table, protocol, scope, RTN_UNICAST, flags)


def _selector(route: Route) -> bytes:
    """The attributes that distinguish one route from another."""
    packed = attribute(RTA_TABLE, U32.pack(route.table))
    if route.dst.prefixlen:
        packed += attribute(RTA_DST, route.dst.network_address.packed)
    if route.ifindex:
        packed += attribute(RTA_OIF, U32.pack(route.ifindex))
    if route.gw is not None:
        if route.gw.version == route.dst.version:
            packed += attribute(RTA_GATEWAY, route.gw.packed)
        else:
            packed += attribute(RTA_VIA, _FAMILY.pack(AF_INET6) + route.gw.packed)
    if route.priority:
        packed += attribute(RTA_PRIORITY, U32.pack(route.priority))
    return packed
