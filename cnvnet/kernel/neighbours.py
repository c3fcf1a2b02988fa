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
from cnvnet.kernel.netlink import CREATE, REPLACE, NetlinkMessage
from cnvnet.kernel.rtnetlink import NDMSG, NTF_PROXY, NUD_PERMANENT, RTM_GETNEIGH, RTM_NEWNEIGH

# From rtnetlink.h and neighbour.h in include/uapi/linux.
_NUD_REACHABLE: Final = 0x02
# Entries without an answer: INCOMPLETE, FAILED and NOARP.
_NUD_USELESS: Final = 0x01 | 0x20 | 0x40
# include/uapi/linux/{in,in6}.h
_IP_UNICAST_IF: Final = 50
_IPV6_UNICAST_IF: Final = 76
# RFC 863: a host that has the service throws the datagram away, another one refuses it.
_DISCARD: Final = 9

_MESSAGE: Final = ("netlink.rtnl.ndmsg", "ndmsg")


class Neighbour(NamedTuple):
    """An entry of the ARP or ND table; `permanent` ones never expire.

    With a `proxy` entry the kernel answers for another host: it has no MAC ("") and no state, and reads back
    as permanent.
    """

    ifindex: int
    address: IPv4Address | IPv6Address
    mac: str
    permanent: bool = True
    proxy: bool = False


class AddNeighbour(NamedTuple):
    """Creates or replaces an entry.

    ENODEV when there is no such link, EINVAL for a proxy of an address that is not unicast.
    """

    neighbour: Neighbour


class ResolveNeighbour(NamedTuple):
    """The kernel asks the link for an address that it does not know; the answer comes later, as an entry.

    ENODEV when there is no such link, EADDRNOTAVAIL as long as the link has no address to ask by.
    """

    ifindex: int
    address: IPv4Address | IPv6Address


def queries() -> list[NetlinkMessage]:
    """Asks for all entries: the resolved ones, then the proxies, which are listed only on their own."""
    return [NetlinkMessage(RTM_GETNEIGH, 0, NDMSG.pack(0, 0, 0, flags, 0)) for flags in (0, NTF_PROXY)]


def encode_add(wanted: AddNeighbour) -> NetlinkMessage:
    """RTM_NEWNEIGH."""
    neighbour = wanted.neighbour
    attributes: list[tuple[str, object]] = [("NDA_DST", str(neighbour.address))]
    if neighbour.mac:
        attributes.append(("NDA_LLADDR", neighbour.mac))
    return NetlinkMessage(RTM_NEWNEIGH, CREATE | REPLACE, _encode(neighbour, attributes))


def resolve(wanted: ResolveNeighbour) -> None:
    """In the calling thread's namespace. OSError.

    A datagram with a TTL of 1, to the discard port, makes the kernel ask. NTF_USE would not do: the kernel
    then asks from the link-local address, which is still tentative for a second or two after a link came up.
    """
    ipv4 = wanted.address.version == 4
    family, level = (AF_INET, IPPROTO_IP) if ipv4 else (AF_INET6, IPPROTO_IPV6)
    with socket(family, SOCK_DGRAM) as sender:
        try:
            out = struct.pack("!I", wanted.ifindex)
            sender.setsockopt(level, _IP_UNICAST_IF if ipv4 else _IPV6_UNICAST_IF, out)
        except OSError as e:
            # The option says EADDRNOTAVAIL for an index that no link has.
            raise OSError(errno.ENODEV if e.errno == errno.EADDRNOTAVAIL else e.errno, e.strerror) from e
        # One hop: where the address is behind a router after all, the datagram ends there.
        sender.setsockopt(level, IP_TTL if ipv4 else IPV6_UNICAST_HOPS, 1)
        sender.sendto(b"", (str(wanted.address), _DISCARD))


def decode(raw: bytes) -> Neighbour | None:
    """The entry in an RTM_NEWNEIGH message.

    None for one without an answer, and for a bridge's forwarding entry.
    """
    message = pyroute2_light.decode(*_MESSAGE, raw)
    proxy = bool(message["flags"] & NTF_PROXY)
    mac = message.get_attr("NDA_LLADDR") or ""
    if message["family"] not in (AF_INET, AF_INET6) or (
        not proxy and (message["state"] & _NUD_USELESS or not mac)
    ):
        return None
    return Neighbour(
        ifindex=message["ifindex"],
        address=ip_address(message.get_attr("NDA_DST")),
        mac="" if proxy else mac,
        permanent=proxy or bool(message["state"] & NUD_PERMANENT),
        proxy=proxy,
    )


def _encode(neighbour: Neighbour, attributes: list[tuple[str, object]]) -> bytes:
    header = {
        "family": AF_INET if neighbour.address.version == 4 else AF_INET6,
        "ifindex": neighbour.ifindex,
        "state": NUD_PERMANENT if neighbour.permanent else _NUD_REACHABLE,
        "flags": NTF_PROXY if neighbour.proxy else 0,
    }
    return pyroute2_light.encode(*_MESSAGE, header, attributes)
