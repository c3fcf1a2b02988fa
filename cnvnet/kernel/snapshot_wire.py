"""The messages of a snapshot, read: addresses, next hop objects, routes and neighbours as dumped.

Only what tells one from another, or belongs to the moment, is looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterable, Iterator
from typing import Final

from cnvnet.kernel.netlink import HEADER_SIZE, attributes, members
from cnvnet.kernel.rtnetlink import (
    GROUP_ENTRY,
    IFA_ADDRESS,
    IFA_F_NODAD,
    IFA_FLAGS,
    IFADDR,
    NDA_DST,
    NDMSG,
    NHA_GROUP,
    NHA_ID,
    NHA_OIF,
    NHMSG,
    ROUTE_TIMES,
    RTA_CACHEINFO,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_PRIORITY,
    RTA_TABLE,
    RTA_VIA,
    RTM_NEWADDR,
    RTM_NEWNEIGH,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    RTMSG,
    RTNEXTHOP,
    U32,
)

# A lifetime without end.
FOREVER: Final = 0xFFFFFFFF
# IFA_F_NODAD, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN; the others are a state
ASKED_FOR: Final = IFA_F_NODAD | 0x10 | 0x100 | 0x200 | 0x400
# RTA_*: the last ones are realms, how a next hop of another family is written, and encapsulation
OF_HOPS: Final = frozenset({RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, 11, RTA_VIA, 21, 22})
# The clock of the times that the kernel shows (USER_HZ).
TICKS: Final = 100
# NHA_*: the kernel takes only these back: blackhole, group's type, link, gateway, encapsulation, a
# bridge's; of a resilient group its size and timers
OF_NEXTHOP: Final = frozenset({NHA_ID, 3, 4, NHA_OIF, 6, 7, 8, 11})
OF_RES_GROUP: Final = frozenset({1, 2, 3})
# NUD_INCOMPLETE and NUD_FAILED.
NUD_UNKNOWN: Final = 0x01 | 0x20

KINDS: Final = {
    RTM_NEWADDR: ("address", IFADDR, IFA_ADDRESS),
    RTM_NEWROUTE: ("route", RTMSG, RTA_DST),
    RTM_NEWNEIGH: ("neighbour", NDMSG, NDA_DST),
    RTM_NEWNEXTHOP: ("next hop", NHMSG, NHA_ID),
}


def attributes_of(raw: bytes, header: struct.Struct) -> dict[int, bytes]:
    """The attributes of a whole message, behind its header and this struct."""
    return attributes(raw, HEADER_SIZE + header.size)


def without(raw: bytes, header: struct.Struct, kinds: Container[int]) -> bytes:
    """All attributes of a whole message but these, as they are."""
    every = members(raw, HEADER_SIZE + header.size)
    return b"".join(whole for kind, whole in every if kind not in kinds)


def chosen(data: bytes, kinds: Container[int]) -> bytes:
    """These of the attributes, as they are."""
    return b"".join(whole for kind, whole in members(data) if kind in kinds)


def address_flags(raw: bytes) -> int:
    """IFA_F_* of an RTM_NEWADDR message."""
    value = attributes_of(raw, IFADDR).get(IFA_FLAGS)
    flags: int = U32.unpack(value)[0] if value is not None else raw[HEADER_SIZE + 2]
    return flags


def expires(raw: bytes) -> int:
    """Seconds, 0 for a route without end."""
    times = attributes_of(raw, RTMSG).get(RTA_CACHEINFO, b"")
    ticks: int = ROUTE_TIMES.unpack_from(times)[2] if times else 0
    return max(1, ticks // TICKS) if ticks > 0 else 0


def hops(payload: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Flags, weight, link and attributes of each next hop."""
    offset = 0
    while offset + RTNEXTHOP.size <= len(payload):
        length, flags, weight, ifindex = RTNEXTHOP.unpack_from(payload, offset)
        yield flags, weight, ifindex, payload[offset + RTNEXTHOP.size : offset + length]
        offset += max(RTNEXTHOP.size, (length + 3) & ~3)


def group_entries(attrs: dict[int, bytes]) -> Iterator[tuple[int, ...]]:
    """The members of a group of next hops: id, weight, and padding."""
    return GROUP_ENTRY.iter_unpack(attrs.get(NHA_GROUP, b""))


def by_key(messages: Iterable[bytes]) -> dict[object, list[bytes]]:
    """Routes by what distinguishes them; routes of one key are alternatives, in their order."""
    keyed: dict[object, list[bytes]] = {}
    for raw in messages:
        family, length, source, tos, *_ = RTMSG.unpack_from(raw, HEADER_SIZE)
        attrs = attributes_of(raw, RTMSG)
        more = tuple(attrs.get(kind) for kind in (RTA_DST, RTA_PRIORITY, RTA_TABLE))
        keyed.setdefault((family, length, source, tos, *more), []).append(raw)
    return keyed
