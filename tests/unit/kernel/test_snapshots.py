"""What is kept of a link's dumps, and what is sent to make them the same again."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from cnvnet.kernel import addresses, pyroute2_light, replays, routes, snapshots
from cnvnet.kernel.netlink import APPEND, CREATE, EXCL, REPLACE, NetlinkMessage, attribute, pack
from cnvnet.kernel.replays import Replay
from cnvnet.kernel.rtnetlink import RTM_NEWADDR, RTM_NEWNEIGH, RTM_NEWNEXTHOP, RTM_NEWROUTE
from cnvnet.kernel.snapshots import Snapshot

ETH0, OTHER = 2, 3
FOREVER = 0xFFFFFFFF
MAIN = 254
Attributes = Sequence[tuple[str, Any]]


def address(text: str, ifindex: int = ETH0, *, flags: int = 0x80, left: Any = None, proto: int = 0) -> bytes:
    found = ip_interface(text)
    preferred, valid = left or (FOREVER, FOREVER)
    fields = {"family": 2 if found.version == 4 else 10, "prefixlen": found.network.prefixlen}
    times = {"ifa_preferred": preferred, "ifa_valid": valid, "cstamp": 17, "tstamp": 18}
    attrs: list[tuple[str, Any]] = [
        ("IFA_ADDRESS", str(found.ip)),
        ("IFA_LOCAL", str(found.ip)),
        ("IFA_FLAGS", flags),
        ("IFA_CACHEINFO", times),
    ]
    module = "netlink.rtnl.ifaddrmsg"
    body = pyroute2_light.encode(module, "ifaddrmsg", {**fields, "index": ifindex}, attrs)
    return pack(NetlinkMessage(RTM_NEWADDR, 0, body + attribute(11, bytes([proto]))))


def route(dst: str, ifindex: int = ETH0, *, nhid: int = 0, **more: Any) -> bytes:
    found = ip_network(dst)
    fields: dict[str, int] = {
        "family": 2 if found.version == 4 else 10,
        "dst_len": found.prefixlen,
        "table": MAIN,
        "proto": 3,
        "type": 1,
        **more.pop("fields", {}),
    }
    attrs: list[tuple[str, Any]] = [("RTA_DST", str(found.network_address)), ("RTA_TABLE", MAIN)]
    attrs += [("RTA_OIF", ifindex)] if ifindex else []
    attrs += list(more.items())
    body = pyroute2_light.encode("netlink.rtnl.rtmsg", "rtmsg", fields, attrs)
    return pack(
        NetlinkMessage(RTM_NEWROUTE, 0, body + (attribute(30, struct.pack("=I", nhid)) if nhid else b""))
    )


def neighbour(text: str, state: int, flags: int = 0, kind: int = 1) -> bytes:
    fields = {"family": 2, "ifindex": ETH0, "state": state, "flags": flags, "ndm_type": kind}
    attrs = [("NDA_DST", text), ("NDA_LLADDR", "02:00:00:00:00:09"), ("NDA_PROBES", 4)]
    return pack(
        NetlinkMessage(RTM_NEWNEIGH, 0, pyroute2_light.encode("netlink.rtnl.ndmsg", "ndmsg", fields, attrs))
    )


def nexthop(number: int, ifindex: int = 0, group: Mapping[int, int] | None = None) -> bytes:
    """pyroute2 has no class for these. What follows a weight is what was in that memory."""
    body = struct.pack("=BBBxI", 2 if ifindex else 0, 0, 3, 0) + attribute(1, struct.pack("=I", number))
    members = (struct.pack("=IBBH", each, weight, 17, 18) for each, weight in (group or {}).items())
    body += attribute(5, struct.pack("=I", ifindex)) if ifindex else attribute(2, b"".join(members))
    return pack(NetlinkMessage(RTM_NEWNEXTHOP, 0, body + attribute(14, bytes(4))))


def taken(at: int = 0, **dumps: Sequence[bytes]) -> Snapshot:
    names = ("addresses", "nexthops", "routes", "neighbours")
    return snapshots.take(ETH0, at, **{name: dumps.get(name, ()) for name in names})


def texts(found: Sequence[Replay]) -> list[str]:
    return [f"{each.words} {each.subject}" for each in found]


def lifetimes(replay: Replay) -> tuple[int, int]:
    attrs = pyroute2_light.decode("netlink.rtnl.ifaddrmsg", "ifaddrmsg", pack(replay.message))
    times = attrs.get_attr("IFA_CACHEINFO")
    return times["ifa_preferred"], times["ifa_valid"]


def test_what_a_router_brought_and_what_is_of_other_links_is_not_kept() -> None:
    own = [address("10.1.0.5/24"), address("fd99::5/64")]
    others = [
        address("10.1.0.6/24", OTHER),
        address("fd98::5/64", proto=2),
        address("fd98::6/64", flags=0x01),
    ]
    assert taken(addresses=[*others, *own]).addresses == tuple(own)


def test_ipv6_addresses_are_made_in_the_opposite_order_of_the_kernels_list() -> None:
    made = replays.addresses_of(
        ETH0, taken(addresses=[address("fd99::6/64"), address("fd99::5/64")]), Snapshot()
    )
    assert [each.subject for each in made] == ["fd99::5/64", "fd99::5/64", "fd99::6/64", "fd99::6/64"]
    assert [each.message.flags for each in made[:2]] == [CREATE | EXCL, REPLACE]


def test_nothing_is_done_where_all_is_as_it_was() -> None:
    was = taken(addresses=[address("fd99::5/64", left=(30, 40))], routes=[route("10.5.0.0/16")])
    now = taken(7, addresses=[address("fd99::5/64", left=(23, 33))], routes=[route("10.5.0.0/16")])
    assert replays.addresses_of(ETH0, was, now) == replays.routes_of(ETH0, was, now) == []


def test_addresses_in_another_order_are_made_anew() -> None:
    was, now = (taken(addresses=[address(f"10.1.0.{n}/24") for n in order]) for order in ((5, 6), (6, 5)))
    assert texts(replays.addresses_of(ETH0, was, now)) == [
        "delete address 10.1.0.6/24",
        "delete address 10.1.0.5/24",
        "restore address 10.1.0.5/24",
        "restore address 10.1.0.6/24",
    ]


@pytest.mark.parametrize(
    ("left", "flags", "elapsed", "then"),
    [
        ((FOREVER, FOREVER), 0x80, 99, [(FOREVER, FOREVER)]),
        ((30, 40), 0, 10, [(20, 30)]),
        ((30, 40), 0, 35, [(0, 5)]),
        ((30, 40), 0, 40, []),
        ((FOREVER, FOREVER), 0x80 | 0x20, 0, [(0, FOREVER)]),
    ],
    ids=["for good", "both left", "deprecated meanwhile", "over", "deprecated"],
)
def test_an_address_gets_what_is_left_of_its_time(left: Any, flags: int, elapsed: int, then: Any) -> None:
    was = taken(addresses=[address("10.1.0.5/24", left=left, flags=flags)])
    assert [lifetimes(each) for each in replays.addresses_of(ETH0, was, Snapshot(elapsed))] == then


def test_an_address_may_be_made_on_another_link() -> None:
    (made,) = replays.addresses_of(OTHER, taken(addresses=[address("10.1.0.5/24")]), Snapshot())
    decoded = addresses.decode(pack(made.message))
    assert decoded is not None
    assert decoded.ifindex == OTHER


def test_only_ipv6_addresses_beyond_the_link_wait_for_it() -> None:
    shown = [address("10.1.0.5/24"), address("fd99::5/64")]
    made = replays.addresses_of(ETH0, taken(addresses=shown), Snapshot())
    assert [replays.needs_no_link(each) for each in made] == [True, False, False]


def test_routes_of_the_kernels_that_were_not_there_go() -> None:
    kernels = route("10.1.0.0/24", fields={"proto": 2})
    was, now = taken(routes=[route("10.5.0.0/16")]), taken(routes=[kernels])
    assert texts(replays.routes_of(ETH0, was, now)) == [
        "delete route 10.1.0.0/24",
        "restore route 10.5.0.0/16",
    ]


def test_ways_to_gateways_come_before_objects_and_routes_through_them() -> None:
    was = taken(
        nexthops=[nexthop(9, group={7: 3}), nexthop(7, ETH0), nexthop(8, OTHER)],
        routes=[
            route("0.0.0.0/0", RTA_GATEWAY="10.1.0.1"),
            route("10.6.0.0/16", nhid=9, RTA_GATEWAY="10.1.0.1"),
            route("10.1.0.0/24"),
        ],
    )
    made = replays.routes_of(ETH0, was, Snapshot())
    assert texts(made) == [
        "restore route 10.1.0.0/24",
        "restore next hop 7",
        "restore next hop 9",
        "restore route 0.0.0.0/0",
        "restore route 10.6.0.0/16",
    ]
    (shown,) = routes.decode(pack(made[-1].message))
    assert (shown.gw, shown.ifindex) == (None, 0)


def test_the_order_of_alternatives_is_kept() -> None:
    gateways = ["10.1.0.1", "10.1.0.2", "10.9.0.1", "10.1.0.3"]
    shown = [route("10.5.0.0/16", OTHER if "9" in gw else ETH0, RTA_GATEWAY=gw) for gw in gateways]
    made = replays.routes_of(ETH0, taken(routes=shown), Snapshot())
    found = [(str(routes.decode(pack(each.message))[0].gw), each.message.flags) for each in made]
    first, last = CREATE, CREATE | APPEND
    assert found == [("10.1.0.3", last), ("10.1.0.2", first), ("10.1.0.1", first)]


def test_a_route_by_another_link_that_prefers_an_address_goes_with_it() -> None:
    shown = [route("10.5.0.0/16", OTHER, RTA_PREFSRC="10.1.0.5"), route("10.6.0.0/16", OTHER)]
    assert taken(addresses=[address("10.1.0.5/24")], routes=shown).routes == (shown[0],)


@pytest.mark.parametrize(
    ("fields", "from_router"),
    [({"proto": 9}, True), ({"proto": 2, "type": 2}, False)],
    ids=["router", "kernel"],
)
def test_ipv6_routes_that_come_by_themselves_are_not_restored(
    fields: dict[str, int], from_router: bool
) -> None:
    shown = route("fd99::/64", fields=fields)
    assert taken(routes=[shown]) == Snapshot(heard=(shown,) if from_router else ())


def test_neighbours_that_stay_replace_what_was_learned() -> None:
    lasting = [neighbour("10.1.0.9", 0x80), neighbour("10.1.0.8", 0, 0x08), neighbour("10.1.0.7", 0x40)]
    passing = [neighbour("10.1.0.6", 0x02), neighbour("224.0.0.1", 0x40, kind=5)]
    was = taken(neighbours=[*passing, *lasting])
    assert was.neighbours == tuple(lasting)
    made = replays.neighbours_of(ETH0, was, taken(neighbours=lasting[:1]))
    assert texts(made) == ["restore neighbour 10.1.0.8", "restore neighbour 10.1.0.7"]
    assert {each.message.flags for each in made} == {CREATE | REPLACE}
