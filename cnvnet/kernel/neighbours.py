"""Neighbour entries as values, and their messages."""

from __future__ import annotations

import errno
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import (
    AF_INET,
    AF_INET6,
    IP_TTL,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_UNICAST_HOPS,
    SOCK_DGRAM,
    socket,
)
from typing import Final, NamedTuple

from cnvnet.kernel import pyroute2_light
from cnvnet.kernel.netlink import CREATE, REPLACE, Message

# include/uapi/linux/{rtnetlink,neighbour}.h
_RTM_NEWNEIGH: Final = 28
_RTM_DELNEIGH: Final = 29
_RTM_GETNEIGH: Final = 30
_NUD_REACHABLE: Final = 0x02
_NUD_PERMANENT: Final = 0x80
# INCOMPLETE, FAILED and NOARP entries hold no answer anybody gave.
_NUD_USELESS: Final = 0x01 | 0x20 | 0x40
_NTF_PROXY: Final = 0x08
# include/uapi/linux/{in,in6}.h
_IP_UNICAST_IF: Final = 50
_IPV6_UNICAST_IF: Final = 76
_DISCARD: Final = 9

_NDMSG: Final = struct.Struct("=BxxxiHBB")
_MESSAGE: Final = ("netlink.rtnl.ndmsg", "ndmsg")


class Neighbour(NamedTuple):
    """An entry of the ARP or ND table; `permanent` ones never expire.

    `proxy` ones are answered for others and have no MAC ("") and no state: they read back as permanent.
    """

    ifindex: int
    address: IPv4Address | IPv6Address
    mac: str
    permanent: bool = True
    proxy: bool = False


class AddNeighbour(NamedTuple):
    """Creates or replaces. ENODEV when there is no such link, EINVAL for a proxy of an address that is not
    unicast.
    """

    neighbour: Neighbour


class ResolveNeighbour(NamedTuple):
    """Has the kernel ask the link for an address, unless it knows it; the answer comes later, as an entry.

    ENODEV when there is no such link, EADDRNOTAVAIL as long as the link has no address to ask by.
    """

    ifindex: int
    address: IPv4Address | IPv6Address


class DeleteNeighbour(NamedTuple):
    """ENOENT when there is none."""

    neighbour: Neighbour


def queries() -> list[Message]:
    """Asks for all entries: the resolved ones, then the proxies, which are listed only on their own."""
    return [Message(_RTM_GETNEIGH, 0, _NDMSG.pack(0, 0, 0, flags, 0)) for flags in (0, _NTF_PROXY)]


def encode_add(wanted: AddNeighbour) -> Message:
    """RTM_NEWNEIGH."""
    neighbour = wanted.neighbour
    attributes: list[tuple[str, object]] = [("NDA_DST", str(neighbour.address))]
    if neighbour.mac:
        attributes.append(("NDA_LLADDR", neighbour.mac))
    return Message(_RTM_NEWNEIGH, CREATE | REPLACE, _encode(neighbour, attributes))


def resolve(wanted: ResolveNeighbour) -> None:
    """In the calling thread's namespace. OSError.

    NTF_USE would have the kernel ask by its link-local address, which for a second or two after a link came
    up is none yet: so it gets a datagram to send, which goes no further than to that neighbour.
    """
    ipv4 = wanted.address.version == 4
    family, level = (AF_INET, IPPROTO_IP) if ipv4 else (AF_INET6, IPPROTO_IPV6)
    with socket(family, SOCK_DGRAM) as sender:
        try:
            out = struct.pack("!I", wanted.ifindex)
            sender.setsockopt(level, _IP_UNICAST_IF if ipv4 else _IPV6_UNICAST_IF, out)
        except OSError as e:
            raise OSError(errno.ENODEV if e.errno == errno.EADDRNOTAVAIL else e.errno, e.strerror) from e
        sender.setsockopt(level, IP_TTL if ipv4 else IPV6_UNICAST_HOPS, 1)
        sender.sendto(b"", (str(wanted.address), _DISCARD))


def encode_delete(wanted: DeleteNeighbour) -> Message:
    """RTM_DELNEIGH."""
    return Message(_RTM_DELNEIGH, 0, _encode(wanted.neighbour, [("NDA_DST", str(wanted.neighbour.address))]))


def decode(raw: bytes) -> Neighbour | None:
    """The entry in an RTM_NEWNEIGH message; None for one that says nothing, and for a bridge's forwarding
    entry.
    """
    found = pyroute2_light.decode(*_MESSAGE, raw)
    proxy = bool(found["flags"] & _NTF_PROXY)
    mac = found.get_attr("NDA_LLADDR") or ""
    if found["family"] not in (AF_INET, AF_INET6) or (
        not proxy and (found["state"] & _NUD_USELESS or not mac)
    ):
        return None
    return Neighbour(
        ifindex=found["ifindex"],
        address=ip_address(found.get_attr("NDA_DST")),
        mac="" if proxy else mac,
        permanent=proxy or bool(found["state"] & _NUD_PERMANENT),
        proxy=proxy,
    )


def _encode(neighbour: Neighbour, attributes: list[tuple[str, object]]) -> bytes:
    header = {
        "family": AF_INET if neighbour.address.version == 4 else AF_INET6,
        "ifindex": neighbour.ifindex,
        "state": _NUD_PERMANENT if neighbour.permanent else _NUD_REACHABLE,
        "flags": _NTF_PROXY if neighbour.proxy else 0,
    }
    return pyroute2_light.encode(*_MESSAGE, header, attributes)
