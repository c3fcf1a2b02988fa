"""What makes the layer 3 of a link as a snapshot of it says: the messages of the snapshot, sent back.

They go as they came, and only what belonged to the moment is changed or left out.
"""

from __future__ import annotations

from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from cnvnet.kernel.netlink import (
    APPEND,
    CREATE,
    EXCL,
    HEADER_SIZE,
    NESTED,
    REPLACE,
    NetlinkMessage,
    attribute,
    attributes,
)
from cnvnet.kernel.rtnetlink import (
    GROUP_ENTRY,
    IFA_CACHEINFO,
    IFA_F_DEPRECATED,
    IFA_F_NODAD,
    IFA_FLAGS,
    IFADDR,
    LIFETIMES,
    NDA_CACHEINFO,
    NDA_PROBES,
    NDMSG,
    NHA_GROUP,
    NHA_RES_GROUP,
    NHMSG,
    RTA_CACHEINFO,
    RTA_EXPIRES,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_NH_ID,
    RTA_VIA,
    RTM_NEWADDR,
    RTM_NEWNEIGH,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    RTMSG,
    RTNEXTHOP,
    RTNH_F_ONLINK,
    SCOPE_LINK,
    U32,
)
from cnvnet.kernel.snapshot_wire import (
    ASKED_FOR,
    FOREVER,
    KINDS,
    NUD_UNKNOWN,
    OF_HOPS,
    OF_NEXTHOP,
    OF_RES_GROUP,
    address_flags,
    attributes_of,
    by_key,
    chosen,
    expires,
    group_entries,
    hops,
    without,
)
from cnvnet.kernel.snapshots import Snapshot


class Replay(NamedTuple):
    """One thing of a snapshot of a link is made again, or what is too much is deleted.

    EEXIST when it is there, ESRCH or EADDRNOTAVAIL when what is to be deleted is not; errors else as with
    the operations that add one of its kind.
    """

    ifindex: int
    message: NetlinkMessage

    @property
    def words(self) -> str:
        """What is done to a thing of which kind, for people."""
        made = self.message.type in KINDS
        return f"{'restore' if made else 'delete'} {KINDS[self.message.type & ~1][0]}"

    @property
    def subject(self) -> str:
        """The thing: an address, a destination or the number of a next hop object."""
        kind, _, body = self.message
        _, header, key = KINDS[kind & ~1]
        value = attributes(body, header.size).get(key, bytes(4 if body[0] == AF_INET else 16))
        if kind == RTM_NEWNEXTHOP:
            return str(U32.unpack(value)[0])
        return str(ip_address(value)) + ("" if kind == RTM_NEWNEIGH else f"/{body[1]}")


def addresses_of(ifindex: int, was: Snapshot, now: Snapshot, *, detected: bool = False) -> list[Replay]:
    """What makes the addresses of a link `was` those it has `now`: nothing, or all of them anew.

    For good or for what is left of their time, and without duplicate address detection; but `detected`
    link-local ones are looked for on the link, which the kernel then asks for routers.
    """
    current = [_address(raw, ifindex) for raw in now.addresses]
    if current == [_address(raw, ifindex) for raw in was.addresses]:
        return []
    messages = [NetlinkMessage(RTM_NEWADDR + 1, 0, body) for body in current]
    for raw in was.addresses:
        messages += _renewed(raw, ifindex, now.at - was.at, detected=detected)
    return [Replay(ifindex, message) for message in messages]


def needs_no_link(replay: Replay) -> bool:
    """Whether it may be done while the link is down.

    When a link comes up, the kernel makes no link-local address of its own where there is one already.
    """
    kind, _, body = replay.message
    family, _, _, scope, _ = IFADDR.unpack_from(body)
    return kind != RTM_NEWADDR or family == AF_INET or scope == SCOPE_LINK


def routes_of(ifindex: int, was: Snapshot, now: Snapshot) -> list[Replay]:
    """What makes the routes of a link those it has `now`.

    First what goes, then the ways to gateways, the objects that name gateways, and the routes through them.
    """
    elapsed = now.at - was.at
    gone: list[bytes] = []
    missing: list[bytes] = []
    before, after = by_key(was.routes), by_key(now.routes)
    for key in {**before, **after}:
        wanted, current = before.get(key, []), after.get(key, [])
        same = [_route(raw) for raw in wanted[: len(current)]] == [_route(raw) for raw in current]
        gone += [] if same else current
        absent = wanted[len(current) if same else 0 :]
        missing += [raw for raw in absent if raw not in was.leading]
        missing += [raw for raw in reversed(absent) if raw in was.leading]
    objects = [_nexthop(raw) for raw in now.nexthops]
    near = [raw for raw in missing if not _is_far(raw)]
    far = [raw for raw in missing if _is_far(raw)]
    messages = [
        *(NetlinkMessage(RTM_NEWROUTE + 1, 0, _route(raw)) for raw in gone),
        *(_added(raw, elapsed, first=raw in was.leading) for raw in near),
        *(message for message in map(_nexthop, was.nexthops) if message not in objects),
        *(_added(raw, elapsed, first=raw in was.leading) for raw in far),
    ]
    return [Replay(ifindex, message) for message in messages if message is not None]


def neighbours_of(ifindex: int, was: Snapshot, now: Snapshot) -> list[Replay]:
    """Each replaces what the kernel may have learned meanwhile."""
    current = [_neighbour(raw) for raw in now.neighbours]
    wanted = map(_neighbour, was.neighbours)
    return [Replay(ifindex, message) for message in wanted if message not in current]


def _address(raw: bytes, ifindex: int, more: int = 0) -> bytes:
    """An address for good; `more` are flags that it has not had."""
    family, prefixlen, _, scope, _ = IFADDR.unpack_from(raw, HEADER_SIZE)
    flags = address_flags(raw) & ASKED_FOR | more
    body = IFADDR.pack(family, prefixlen, flags & 0xFF, scope, ifindex)
    return body + without(raw, IFADDR, {IFA_FLAGS, IFA_CACHEINFO}) + attribute(IFA_FLAGS, U32.pack(flags))


def _renewed(raw: bytes, ifindex: int, elapsed: int, *, detected: bool) -> list[NetlinkMessage]:
    """None of them when its time is over."""
    family, _, _, scope, _ = IFADDR.unpack_from(raw, HEADER_SIZE)
    times = b""
    lifetimes = attributes_of(raw, IFADDR).get(IFA_CACHEINFO)
    if lifetimes is not None:
        preferred, valid = (_left(each, elapsed) for each in LIFETIMES.unpack(lifetimes)[:2])
        if not valid:
            return []
        # One that is for good, but not preferred any more, is shown as if it were.
        preferred = 0 if address_flags(raw) & IFA_F_DEPRECATED else preferred
        times = attribute(IFA_CACHEINFO, LIFETIMES.pack(preferred, valid, 0, 0))
    body = _address(raw, ifindex)
    undetected = _address(raw, ifindex, IFA_F_NODAD)
    if family == AF_INET or body == undetected or (detected and scope == SCOPE_LINK):
        return [NetlinkMessage(RTM_NEWADDR, CREATE | EXCL, body + times)]
    # The link had this address before, so it needs no detection; the second message takes NODAD away again.
    return [
        NetlinkMessage(RTM_NEWADDR, CREATE | EXCL, undetected + times),
        NetlinkMessage(RTM_NEWADDR, REPLACE, body + times),
    ]


def _left(seconds: int, elapsed: int) -> int:
    return seconds if seconds == FOREVER else max(0, seconds - elapsed)


def _nexthop(raw: bytes) -> NetlinkMessage:
    family, _, protocol, flags = NHMSG.unpack_from(raw, HEADER_SIZE)
    attrs = attributes_of(raw, NHMSG)
    body = NHMSG.pack(family, 0, protocol, flags & RTNH_F_ONLINK)
    body += chosen(raw[HEADER_SIZE + NHMSG.size :], OF_NEXTHOP)
    # Before Linux 6.12 what follows the weight is whatever was in that memory.
    group = b"".join(GROUP_ENTRY.pack(*entry[:2], 0, 0) for entry in group_entries(attrs))
    if group:
        body += attribute(NHA_GROUP, group)
    if NHA_RES_GROUP in attrs:
        body += attribute(NHA_RES_GROUP | NESTED, chosen(attrs[NHA_RES_GROUP], OF_RES_GROUP))
    # A group lives on without the members that it has lost.
    return NetlinkMessage(RTM_NEWNEXTHOP, CREATE | REPLACE, body)


def _is_far(raw: bytes) -> bool:
    return any(
        kind in attributes_of(raw, RTMSG) for kind in (RTA_GATEWAY, RTA_VIA, RTA_MULTIPATH, RTA_NH_ID)
    )


def _route(raw: bytes) -> bytes:
    """A route for good."""
    *fields, flags = RTMSG.unpack_from(raw, HEADER_SIZE)
    attrs = attributes_of(raw, RTMSG)
    # With a route by a next hop object the kernel lists the gateways too, and refuses them when it is added.
    if RTA_NH_ID in attrs:
        return RTMSG.pack(*fields, 0) + without(raw, RTMSG, {RTA_CACHEINFO, *OF_HOPS})
    body = RTMSG.pack(*fields, flags & RTNH_F_ONLINK)
    body += without(raw, RTMSG, {RTA_CACHEINFO, RTA_MULTIPATH})
    if RTA_MULTIPATH in attrs:
        body += attribute(RTA_MULTIPATH, b"".join(map(_hop, hops(attrs[RTA_MULTIPATH]))))
    return body


def _added(raw: bytes, elapsed: int, *, first: bool) -> NetlinkMessage | None:
    """None when its time is over."""
    body = _route(raw)
    if seconds := expires(raw):
        if seconds <= elapsed:
            return None
        body += attribute(RTA_EXPIRES, U32.pack(seconds - elapsed))
    # IPv6 knows no order, and takes no several next hops to append.
    return NetlinkMessage(RTM_NEWROUTE, CREATE | (0 if first or body[0] == AF_INET6 else APPEND), body)


def _hop(hop: tuple[int, int, int, bytes]) -> bytes:
    flags, weight, ifindex, more = hop
    return RTNEXTHOP.pack(RTNEXTHOP.size + len(more), flags & RTNH_F_ONLINK, weight, ifindex) + more


def _neighbour(raw: bytes) -> NetlinkMessage:
    family, ifindex, state, flags, _ = NDMSG.unpack_from(raw, HEADER_SIZE)
    header = NDMSG.pack(family, ifindex, 0 if state & NUD_UNKNOWN else state, flags, 0)
    return NetlinkMessage(
        RTM_NEWNEIGH, CREATE | REPLACE, header + without(raw, NDMSG, {NDA_CACHEINFO, NDA_PROBES})
    )
