"""What a link has of layer 3, kept as the kernel's own messages; `replays` sends them back later.

Addresses, next hop objects, routes and neighbours have many properties that no plugin needs to know; so they
are not read, and only those are left out that belong to the moment. What router advertisements brought comes
back without us.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Sequence
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from cnvnet.kernel.netlink import HEADER_SIZE, NetlinkMessage
from cnvnet.kernel.rtnetlink import (
    IFA_ADDRESS,
    IFA_F_TEMPORARY,
    IFA_LOCAL,
    IFA_PROTO,
    IFADDR,
    IFAPROT_KERNEL_RA,
    NDA_FLAGS_EXT,
    NDMSG,
    NHA_ID,
    NHA_OIF,
    NHMSG,
    NTF_EXT_LEARNED,
    NTF_EXT_MANAGED,
    NTF_PROXY,
    NUD_NOARP,
    NUD_PERMANENT,
    PROTOCOL_KERNEL,
    PROTOCOL_RA,
    RTA_MULTIPATH,
    RTA_NH_ID,
    RTA_OIF,
    RTA_PREFSRC,
    RTM_GETNEXTHOP,
    RTMSG,
    RTN_UNICAST,
    U32,
)
from cnvnet.kernel.snapshot_wire import address_flags, attributes_of, by_key, expires, group_entries, hops


class Snapshot(NamedTuple):
    """All of one link, as messages with their headers, in the order in which it is to be restored."""

    # When it was taken: seconds of the monotonic clock.
    at: int = 0
    addresses: tuple[bytes, ...] = ()
    nexthops: tuple[bytes, ...] = ()
    routes: tuple[bytes, ...] = ()
    neighbours: tuple[bytes, ...] = ()
    # Those of `routes` that come before alternatives over other links.
    leading: tuple[bytes, ...] = ()
    # Routes of router advertisements: the next advertisement brings them back.
    heard: tuple[bytes, ...] = ()


def query_nexthops() -> NetlinkMessage:
    """Asks for all next hop objects; EOPNOTSUPP before Linux 5.3."""
    return NetlinkMessage(RTM_GETNEXTHOP, 0, NHMSG.pack(0, 0, 0, 0))


def take(
    ifindex: int,
    at: int,
    *,
    addresses: Iterable[bytes],
    nexthops: Iterable[bytes],
    routes: Iterable[bytes],
    neighbours: Iterable[bytes],
) -> Snapshot:
    """What dumps hold of a link. A route that only prefers one of its addresses goes with it."""
    shown = [raw for raw in addresses if IFADDR.unpack_from(raw, HEADER_SIZE)[4] == ifindex]
    objects = _nexthops_of(ifindex, list(nexthops))
    ids: set[bytes | None] = {attributes_of(raw, NHMSG)[NHA_ID] for raw in objects}
    own: set[bytes | None] = {_local(raw) for raw in shown}
    near: list[bytes] = []
    leading: list[bytes] = []
    for alternatives in by_key(routes).values():
        ours = [raw for raw in alternatives if _goes_by(raw, ifindex, ids, own)]
        near += ours
        if ours and len(ours) < len(alternatives):
            leading += itertools.takewhile(ours.__contains__, alternatives)
    return Snapshot(
        at,
        tuple(_in_order([raw for raw in shown if _is_lasting_address(raw)])),
        tuple(objects),
        tuple(raw for raw in near if _is_lasting_route(raw)),
        tuple(raw for raw in neighbours if _is_lasting_neighbour(raw, ifindex)),
        tuple(leading),
        tuple(raw for raw in near if RTMSG.unpack_from(raw, HEADER_SIZE)[5] == PROTOCOL_RA),
    )


def _is_lasting_address(raw: bytes) -> bool:
    family = raw[HEADER_SIZE]
    if family == AF_INET:
        return True
    from_router = attributes_of(raw, IFADDR).get(IFA_PROTO, b"\0")[0] == IFAPROT_KERNEL_RA
    return family == AF_INET6 and not from_router and not address_flags(raw) & IFA_F_TEMPORARY


def _in_order(messages: Sequence[bytes]) -> list[bytes]:
    """The kernel lists IPv4 addresses as they came, of IPv6 the last one first."""
    ipv4 = [raw for raw in messages if raw[HEADER_SIZE] == AF_INET]
    return ipv4 + [raw for raw in reversed(messages) if raw[HEADER_SIZE] == AF_INET6]


def _local(raw: bytes) -> bytes:
    attrs = attributes_of(raw, IFADDR)
    return attrs.get(IFA_LOCAL) or attrs[IFA_ADDRESS]


def _nexthops_of(ifindex: int, objects: Sequence[bytes]) -> list[bytes]:
    """Those by the link, then the groups that have one of them."""
    number = U32.pack(ifindex)
    single = [raw for raw in objects if attributes_of(raw, NHMSG).get(NHA_OIF) == number]
    ids = {U32.unpack(attributes_of(raw, NHMSG)[NHA_ID])[0] for raw in single}
    groups = [
        raw for raw in objects if any(entry[0] in ids for entry in group_entries(attributes_of(raw, NHMSG)))
    ]
    return single + groups


def _is_lasting_route(raw: bytes) -> bool:
    """The kernel makes the IPv6 routes of an address by itself, when the link is ready."""
    family, _, _, _, _, protocol, _, kind, _ = RTMSG.unpack_from(raw, HEADER_SIZE)
    if family == AF_INET6 and protocol == PROTOCOL_KERNEL:
        return kind == RTN_UNICAST and not expires(raw)
    return family in (AF_INET, AF_INET6) and protocol != PROTOCOL_RA


def _goes_by(raw: bytes, ifindex: int, ids: Container[bytes | None], own: Container[bytes | None]) -> bool:
    attrs = attributes_of(raw, RTMSG)
    return (
        attrs.get(RTA_OIF) == U32.pack(ifindex)
        or attrs.get(RTA_NH_ID) in ids
        or attrs.get(RTA_PREFSRC) in own
        or any(number == ifindex for _, _, number, _ in hops(attrs.get(RTA_MULTIPATH, b"")))
    )


def _is_lasting_neighbour(raw: bytes, ifindex: int) -> bool:
    family, where, state, flags, kind = NDMSG.unpack_from(raw, HEADER_SIZE)
    if family not in (AF_INET, AF_INET6) or where != ifindex:
        return False
    # The kernel has entries without ARP of its own, for groups and broadcasts.
    by_hand = state & NUD_NOARP and kind == RTN_UNICAST
    extended: int = U32.unpack(attributes_of(raw, NDMSG).get(NDA_FLAGS_EXT, bytes(4)))[0]
    return bool(
        state & NUD_PERMANENT
        or flags & (NTF_PROXY | NTF_EXT_LEARNED)
        or extended & NTF_EXT_MANAGED
        or by_hand
    )
