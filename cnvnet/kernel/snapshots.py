"""What a link has of layer 3, kept as the kernel's own messages and sent back to it later.

Addresses, next hop objects, routes and neighbours have many properties that nobody here needs to know; so
they are not read, only those changed or left out that belong to the moment. What router advertisements
brought comes back without us.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Container, Iterable, Iterator, Sequence
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from typing import Final, NamedTuple

from cnvnet.kernel.netlink import (
    APPEND,
    CREATE,
    EXCL,
    HEADER_SIZE,
    REPLACE,
    Message,
    attribute,
    attributes,
    members,
)

# include/uapi/linux/rtnetlink.h; what deletes a thing has the number behind that of what makes it
NEWADDR: Final = 20
NEWROUTE: Final = 24
NEWNEIGH: Final = 28
NEWNEXTHOP: Final = 104
_GETNEXTHOP: Final = 106
_FOREVER: Final = 0xFFFFFFFF
# if_addr.h
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_CACHEINFO: Final = 6
_IFA_FLAGS: Final = 8
_IFA_PROTO: Final = 11
_IFA_F_TEMPORARY: Final = 0x01
_IFA_F_NODAD: Final = 0x02
_IFA_F_DEPRECATED: Final = 0x20
# NODAD, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN; the others are a state
_ASKED_FOR: Final = _IFA_F_NODAD | 0x10 | 0x100 | 0x200 | 0x400
_IFAPROT_KERNEL_RA: Final = 2
_SCOPE_LINK: Final = 253
# rtnetlink.h: the last ones are realms, how a next hop of another family is written, and encapsulation
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_RTA_PREFSRC: Final = 7
_RTA_MULTIPATH: Final = 9
_RTA_CACHEINFO: Final = 12
_RTA_TABLE: Final = 15
_RTA_VIA: Final = 18
_RTA_EXPIRES: Final = 23
_RTA_NH_ID: Final = 30
_OF_HOPS: Final = frozenset({_RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, 11, _RTA_VIA, 21, 22})
_RTN_UNICAST: Final = 1
_RTNH_F_ONLINK: Final = 4
_PROTOCOL_KERNEL: Final = 2
_PROTOCOL_RA: Final = 9
# The clock of the times that the kernel shows (USER_HZ).
_TICKS: Final = 100
# nexthop.h: the kernel takes only these back: blackhole, group's type, link, gateway, encapsulation, a
# bridge's; of a resilient group its size and timers
_NHA_ID: Final = 1
_NHA_GROUP: Final = 2
_NHA_OIF: Final = 5
_NHA_RES_GROUP: Final = 12
_OF_NEXTHOP: Final = frozenset({_NHA_ID, 3, 4, _NHA_OIF, 6, 7, 8, 11})
_NESTED: Final = 0x8000
_OF_RES_GROUP: Final = frozenset({1, 2, 3})
# neighbour.h
_NDA_DST: Final = 1
_NDA_CACHEINFO: Final = 3
_NDA_PROBES: Final = 4
_NDA_FLAGS_EXT: Final = 15
_NUD_UNKNOWN: Final = 0x01 | 0x20
_NUD_NOARP: Final = 0x40
_NUD_PERMANENT: Final = 0x80
_NTF_PROXY: Final = 0x08
_NTF_EXT_LEARNED: Final = 0x10
_NTF_EXT_MANAGED: Final = 0x01

_IFADDR: Final = struct.Struct("=BBBBI")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_NHMSG: Final = struct.Struct("=BBBxI")
_NDMSG: Final = struct.Struct("=BxxxiHBB")
_RTNEXTHOP: Final = struct.Struct("=HBBi")
_GROUP_ENTRY: Final = struct.Struct("=IBBH")
_LIFETIMES: Final = struct.Struct("=IIII")
_ROUTE_TIMES: Final = struct.Struct("=IIiI")
_U32: Final = struct.Struct("=I")
_KINDS: Final = {
    NEWADDR: ("address", _IFADDR, _IFA_ADDRESS),
    NEWROUTE: ("route", _RTMSG, _RTA_DST),
    NEWNEIGH: ("neighbour", _NDMSG, _NDA_DST),
    NEWNEXTHOP: ("next hop", _NHMSG, _NHA_ID),
}


class Snapshot(NamedTuple):
    """All of one link, as messages with their headers, in the order in which it is to be put back.

    `at` is when that was, in seconds of the monotonic clock. `leading` are those of the routes that come
    before alternatives over other links. `heard` are the routes that router
    advertisements brought: nobody puts them back.
    """

    at: int = 0
    addresses: tuple[bytes, ...] = ()
    nexthops: tuple[bytes, ...] = ()
    routes: tuple[bytes, ...] = ()
    neighbours: tuple[bytes, ...] = ()
    leading: tuple[bytes, ...] = ()
    heard: tuple[bytes, ...] = ()


class Replay(NamedTuple):
    """One thing of a snapshot of a link is made again, or what is too much is deleted.

    EEXIST when it is there, ESRCH or EADDRNOTAVAIL when what is to be deleted is not; errors else as with
    the operations that add one of its kind.
    """

    ifindex: int
    message: Message

    @property
    def words(self) -> str:
        """What is done to a thing of which kind, for people."""
        made = self.message.type in _KINDS
        return f"{'restore' if made else 'delete'} {_KINDS[self.message.type & ~1][0]}"

    @property
    def subject(self) -> str:
        """The thing: an address, a destination or the number of a next hop object."""
        kind, _, body = self.message
        _, header, key = _KINDS[kind & ~1]
        found = attributes(body, header.size).get(key, bytes(4 if body[0] == AF_INET else 16))
        if kind == NEWNEXTHOP:
            return str(_U32.unpack(found)[0])
        return str(ip_address(found)) + ("" if kind == NEWNEIGH else f"/{body[1]}")


def query_nexthops() -> Message:
    """Asks for all next hop objects; EOPNOTSUPP before Linux 5.3."""
    return Message(_GETNEXTHOP, 0, _NHMSG.pack(0, 0, 0, 0))


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
    mine = [raw for raw in addresses if _IFADDR.unpack_from(raw, HEADER_SIZE)[4] == ifindex]
    hops = _nexthops_of(ifindex, list(nexthops))
    ids: set[bytes | None] = {_attributes(raw, _NHMSG)[_NHA_ID] for raw in hops}
    own: set[bytes | None] = {_local(raw) for raw in mine}
    near: list[bytes] = []
    leading: list[bytes] = []
    for alternatives in _by_key(routes).values():
        ours = [raw for raw in alternatives if _goes_by(raw, ifindex, ids, own)]
        near += ours
        if ours and len(ours) < len(alternatives):
            leading += itertools.takewhile(ours.__contains__, alternatives)
    return Snapshot(
        at,
        tuple(_in_order([raw for raw in mine if _is_lasting_address(raw)])),
        tuple(hops),
        tuple(raw for raw in near if _is_lasting_route(raw)),
        tuple(raw for raw in neighbours if _is_lasting_neighbour(raw, ifindex)),
        tuple(leading),
        tuple(raw for raw in near if _RTMSG.unpack_from(raw, HEADER_SIZE)[5] == _PROTOCOL_RA),
    )


def addresses_of(ifindex: int, was: Snapshot, now: Snapshot, *, detected: bool = False) -> list[Replay]:
    """What makes the addresses of a link `was` those it has `now`: nothing, or all of them anew.

    For good or for what is left of their time, and without duplicate address detection; but `detected`
    link-local ones are looked for on the link, which the kernel then asks for routers.
    """
    there = [_address(raw, ifindex) for raw in now.addresses]
    if there == [_address(raw, ifindex) for raw in was.addresses]:
        return []
    messages = [Message(NEWADDR + 1, 0, body) for body in there]
    for raw in was.addresses:
        messages += _renewed(raw, ifindex, now.at - was.at, detected=detected)
    return [Replay(ifindex, message) for message in messages]


def needs_no_link(replay: Replay) -> bool:
    """Whether it may be done while the link is down. A link that comes up looks what it has of the others,
    and has none of its own making where there is a link-local one.
    """
    kind, _, body = replay.message
    family, _, _, scope, _ = _IFADDR.unpack_from(body)
    return kind != NEWADDR or family == AF_INET or scope == _SCOPE_LINK


def routes_of(ifindex: int, was: Snapshot, now: Snapshot) -> list[Replay]:
    """What makes the routes of a link those it has `now`: first what goes, then the ways to gateways, the
    objects that name gateways, and the routes through them.
    """
    elapsed = now.at - was.at
    gone: list[bytes] = []
    missing: list[bytes] = []
    before, after = _by_key(was.routes), _by_key(now.routes)
    for key in {**before, **after}:
        wanted, there = before.get(key, []), after.get(key, [])
        same = [_route(raw) for raw in wanted[: len(there)]] == [_route(raw) for raw in there]
        gone += [] if same else there
        absent = wanted[len(there) if same else 0 :]
        missing += [raw for raw in absent if raw not in was.leading]
        missing += [raw for raw in reversed(absent) if raw in was.leading]
    objects = [_nexthop(raw) for raw in now.nexthops]
    near = [raw for raw in missing if not _is_far(raw)]
    far = [raw for raw in missing if _is_far(raw)]
    messages = [
        *(Message(NEWROUTE + 1, 0, _route(raw)) for raw in gone),
        *(_added(raw, elapsed, first=raw in was.leading) for raw in near),
        *(message for message in map(_nexthop, was.nexthops) if message not in objects),
        *(_added(raw, elapsed, first=raw in was.leading) for raw in far),
    ]
    return [Replay(ifindex, message) for message in messages if message is not None]


def neighbours_of(ifindex: int, was: Snapshot, now: Snapshot) -> list[Replay]:
    """Each replaces what the kernel may have learned meanwhile."""
    there = [_neighbour(raw) for raw in now.neighbours]
    wanted = map(_neighbour, was.neighbours)
    return [Replay(ifindex, message) for message in wanted if message not in there]


# what is kept


def _is_lasting_address(raw: bytes) -> bool:
    family = raw[HEADER_SIZE]
    if family == AF_INET:
        return True
    heard = _attributes(raw, _IFADDR).get(_IFA_PROTO, b"\0")[0] == _IFAPROT_KERNEL_RA
    return family == AF_INET6 and not heard and not _flags(raw) & _IFA_F_TEMPORARY


def _in_order(found: Sequence[bytes]) -> list[bytes]:
    """The kernel lists IPv4 addresses as they came, of IPv6 the last one first."""
    ipv4 = [raw for raw in found if raw[HEADER_SIZE] == AF_INET]
    return ipv4 + [raw for raw in reversed(found) if raw[HEADER_SIZE] == AF_INET6]


def _local(raw: bytes) -> bytes:
    found = _attributes(raw, _IFADDR)
    return found.get(_IFA_LOCAL) or found[_IFA_ADDRESS]


def _nexthops_of(ifindex: int, found: Sequence[bytes]) -> list[bytes]:
    """Those by the link, then the groups that have one of them."""
    number = _U32.pack(ifindex)
    single = [raw for raw in found if _attributes(raw, _NHMSG).get(_NHA_OIF) == number]
    ids = {_U32.unpack(_attributes(raw, _NHMSG)[_NHA_ID])[0] for raw in single}
    groups = [raw for raw in found if any(entry[0] in ids for entry in _group(_attributes(raw, _NHMSG)))]
    return single + groups


def _group(found: dict[int, bytes]) -> Iterator[tuple[int, ...]]:
    return _GROUP_ENTRY.iter_unpack(found.get(_NHA_GROUP, b""))


def _is_lasting_route(raw: bytes) -> bool:
    """Of IPv6 the kernel makes those of an address when the link is ready, and nobody else."""
    family, _, _, _, _, protocol, _, kind, _ = _RTMSG.unpack_from(raw, HEADER_SIZE)
    if family == AF_INET6 and protocol == _PROTOCOL_KERNEL:
        return kind == _RTN_UNICAST and not _expires(raw)
    return family in (AF_INET, AF_INET6) and protocol != _PROTOCOL_RA


def _goes_by(raw: bytes, ifindex: int, ids: Container[bytes | None], own: Container[bytes | None]) -> bool:
    found = _attributes(raw, _RTMSG)
    return (
        found.get(_RTA_OIF) == _U32.pack(ifindex)
        or found.get(_RTA_NH_ID) in ids
        or found.get(_RTA_PREFSRC) in own
        or any(number == ifindex for _, _, number, _ in _hops(found.get(_RTA_MULTIPATH, b"")))
    )


def _is_lasting_neighbour(raw: bytes, ifindex: int) -> bool:
    family, where, state, flags, kind = _NDMSG.unpack_from(raw, HEADER_SIZE)
    if family not in (AF_INET, AF_INET6) or where != ifindex:
        return False
    # The kernel has entries without ARP of its own, for groups and broadcasts.
    by_hand = state & _NUD_NOARP and kind == _RTN_UNICAST
    extended: int = _U32.unpack(_attributes(raw, _NDMSG).get(_NDA_FLAGS_EXT, bytes(4)))[0]
    return bool(
        state & _NUD_PERMANENT
        or flags & (_NTF_PROXY | _NTF_EXT_LEARNED)
        or extended & _NTF_EXT_MANAGED
        or by_hand
    )


# what is sent


def _address(raw: bytes, ifindex: int, more: int = 0) -> bytes:
    """An address for good; `more` are flags that it has not had."""
    family, prefixlen, _, scope, _ = _IFADDR.unpack_from(raw, HEADER_SIZE)
    flags = _flags(raw) & _ASKED_FOR | more
    body = _IFADDR.pack(family, prefixlen, flags & 0xFF, scope, ifindex)
    return (
        body + _without(raw, _IFADDR, {_IFA_FLAGS, _IFA_CACHEINFO}) + attribute(_IFA_FLAGS, _U32.pack(flags))
    )


def _flags(raw: bytes) -> int:
    found = _attributes(raw, _IFADDR).get(_IFA_FLAGS)
    flags: int = _U32.unpack(found)[0] if found is not None else raw[HEADER_SIZE + 2]
    return flags


def _renewed(raw: bytes, ifindex: int, elapsed: int, *, detected: bool) -> list[Message]:
    """None of them when its time is over."""
    family, _, _, scope, _ = _IFADDR.unpack_from(raw, HEADER_SIZE)
    times = b""
    found = _attributes(raw, _IFADDR).get(_IFA_CACHEINFO)
    if found is not None:
        preferred, valid = (_left(each, elapsed) for each in _LIFETIMES.unpack(found)[:2])
        if not valid:
            return []
        # One that is for good, but not preferred any more, is shown as if it were.
        preferred = 0 if _flags(raw) & _IFA_F_DEPRECATED else preferred
        times = attribute(_IFA_CACHEINFO, _LIFETIMES.pack(preferred, valid, 0, 0))
    body = _address(raw, ifindex)
    undetected = _address(raw, ifindex, _IFA_F_NODAD)
    if family == AF_INET or body == undetected or (detected and scope == _SCOPE_LINK):
        return [Message(NEWADDR, CREATE | EXCL, body + times)]
    # The address is no duplicate of anybody's; but nobody has said so for good.
    return [
        Message(NEWADDR, CREATE | EXCL, undetected + times),
        Message(NEWADDR, REPLACE, body + times),
    ]


def _left(seconds: int, elapsed: int) -> int:
    return seconds if seconds == _FOREVER else max(0, seconds - elapsed)


def _nexthop(raw: bytes) -> Message:
    family, _, protocol, flags = _NHMSG.unpack_from(raw, HEADER_SIZE)
    found = _attributes(raw, _NHMSG)
    body = _NHMSG.pack(family, 0, protocol, flags & _RTNH_F_ONLINK)
    body += _chosen(raw[HEADER_SIZE + _NHMSG.size :], _OF_NEXTHOP)
    # Before Linux 6.12 what follows the weight is whatever was in that memory.
    group = b"".join(_GROUP_ENTRY.pack(*entry[:2], 0, 0) for entry in _group(found))
    if group:
        body += attribute(_NHA_GROUP, group)
    if _NHA_RES_GROUP in found:
        body += attribute(_NHA_RES_GROUP | _NESTED, _chosen(found[_NHA_RES_GROUP], _OF_RES_GROUP))
    # A group lives on without the members that it has lost.
    return Message(NEWNEXTHOP, CREATE | REPLACE, body)


def _by_key(found: Iterable[bytes]) -> dict[object, list[bytes]]:
    """Routes by what tells one from another; those that have it in common are alternatives in an order."""
    keyed: dict[object, list[bytes]] = {}
    for raw in found:
        family, length, source, tos, *_ = _RTMSG.unpack_from(raw, HEADER_SIZE)
        attrs = _attributes(raw, _RTMSG)
        more = tuple(attrs.get(kind) for kind in (_RTA_DST, _RTA_PRIORITY, _RTA_TABLE))
        keyed.setdefault((family, length, source, tos, *more), []).append(raw)
    return keyed


def _is_far(raw: bytes) -> bool:
    return any(
        kind in _attributes(raw, _RTMSG) for kind in (_RTA_GATEWAY, _RTA_VIA, _RTA_MULTIPATH, _RTA_NH_ID)
    )


def _route(raw: bytes) -> bytes:
    """A route for good."""
    *fields, flags = _RTMSG.unpack_from(raw, HEADER_SIZE)
    found = _attributes(raw, _RTMSG)
    # Of a route by an object the kernel tells the gateways too, and does not want to hear them again.
    if _RTA_NH_ID in found:
        return _RTMSG.pack(*fields, 0) + _without(raw, _RTMSG, {_RTA_CACHEINFO, *_OF_HOPS})
    body = _RTMSG.pack(*fields, flags & _RTNH_F_ONLINK)
    body += _without(raw, _RTMSG, {_RTA_CACHEINFO, _RTA_MULTIPATH})
    if _RTA_MULTIPATH in found:
        body += attribute(_RTA_MULTIPATH, b"".join(map(_hop, _hops(found[_RTA_MULTIPATH]))))
    return body


def _added(raw: bytes, elapsed: int, *, first: bool) -> Message | None:
    """None when its time is over."""
    body = _route(raw)
    if expires := _expires(raw):
        if expires <= elapsed:
            return None
        body += attribute(_RTA_EXPIRES, _U32.pack(expires - elapsed))
    # IPv6 knows no order, and takes no several next hops to append.
    return Message(NEWROUTE, CREATE | (0 if first or body[0] == AF_INET6 else APPEND), body)


def _expires(raw: bytes) -> int:
    """Seconds, 0 for a route that is for good."""
    times = _attributes(raw, _RTMSG).get(_RTA_CACHEINFO, b"")
    ticks: int = _ROUTE_TIMES.unpack_from(times)[2] if times else 0
    return max(1, ticks // _TICKS) if ticks > 0 else 0


def _hops(payload: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Flags, weight, link and attributes of each next hop."""
    offset = 0
    while offset + _RTNEXTHOP.size <= len(payload):
        length, flags, weight, ifindex = _RTNEXTHOP.unpack_from(payload, offset)
        yield flags, weight, ifindex, payload[offset + _RTNEXTHOP.size : offset + length]
        offset += max(_RTNEXTHOP.size, (length + 3) & ~3)


def _hop(hop: tuple[int, int, int, bytes]) -> bytes:
    flags, weight, ifindex, more = hop
    return _RTNEXTHOP.pack(_RTNEXTHOP.size + len(more), flags & _RTNH_F_ONLINK, weight, ifindex) + more


def _neighbour(raw: bytes) -> Message:
    family, ifindex, state, flags, _ = _NDMSG.unpack_from(raw, HEADER_SIZE)
    header = _NDMSG.pack(family, ifindex, 0 if state & _NUD_UNKNOWN else state, flags, 0)
    return Message(NEWNEIGH, CREATE | REPLACE, header + _without(raw, _NDMSG, {_NDA_CACHEINFO, _NDA_PROBES}))


# messages


def _attributes(raw: bytes, header: struct.Struct) -> dict[int, bytes]:
    return attributes(raw, HEADER_SIZE + header.size)


def _without(raw: bytes, header: struct.Struct, kinds: Container[int]) -> bytes:
    found = members(raw, HEADER_SIZE + header.size)
    return b"".join(whole for kind, whole in found if kind not in kinds)


def _chosen(data: bytes, kinds: Container[int]) -> bytes:
    return b"".join(whole for kind, whole in members(data) if kind in kinds)
