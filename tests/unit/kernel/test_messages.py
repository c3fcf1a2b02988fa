"""The messages that we pack, held against pyroute2's encoding of the same, and those that come back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.kernel import addresses, link_messages, links, neighbours, pyroute2_light, routes, vlans
from cnvnet.kernel.addresses import AddAddress, Address, DeleteAddress
from cnvnet.kernel.links import (
    Bridge,
    BridgePort,
    ChangeLink,
    CreateBridge,
    CreateDummy,
    CreateVeth,
    DeleteGroup,
    DeleteLink,
    Link,
    VethPeer,
)
from cnvnet.kernel.neighbours import AddNeighbour, Neighbour
from cnvnet.kernel.netlink import attributes, pack
from cnvnet.kernel.routes import AddRoute, Route
from cnvnet.kernel.vlans import AddVlans, DeleteVlans, VlanRange

Attributes = Sequence[tuple[str, Any]]
LINK = ("netlink.rtnl.ifinfmsg", "ifinfmsg")
ADDRESS = ("netlink.rtnl.ifaddrmsg", "ifaddrmsg")
ROUTE = ("netlink.rtnl.rtmsg", "rtmsg")


def by_pyroute2(kind: tuple[str, str], fields: Mapping[str, int], wanted: Attributes) -> Any:
    """What pyroute2 makes of the same request."""
    return tree(pyroute2_light.encode(*kind, fields, wanted), kind)


def tree(body: bytes, kind: tuple[str, str]) -> Any:
    """A body as its header and attributes, whose order and nesting flag mean nothing to the kernel."""
    size = {"ifinfmsg": 16, "ifaddrmsg": 8, "rtmsg": 12}[kind[1]]
    return body[:size], _level(body[size:], kind[1], ())


NESTED = {
    ("ifinfmsg", 18),
    ("ifinfmsg", 18, 2),
    ("ifinfmsg", 18, 5),
    ("rtmsg", 8),
}


def _level(data: bytes, kind: str, path: tuple[int, ...]) -> Any:
    found: dict[int, Any] = {}
    for number, payload in attributes(data).items():
        here = (*path, number)
        if here == (18, 2, 1) and kind == "ifinfmsg":
            found[number] = (payload[:16], _level(payload[16:], "peer", ()))
        elif (kind, *here) in NESTED:
            found[number] = _level(payload, kind, here)
        else:
            # pyroute2 ends every string with a NUL; the kernel takes both.
            found[number] = payload.rstrip(b"\0") if number in (1, 20) and path in ((18,), ()) else payload
    return found


VETHS: dict[str, tuple[CreateVeth, dict[str, int], Attributes, Attributes]] = {
    "everything": (
        CreateVeth(
            "veth1234abcd",
            VethPeer("eth0", mac="02:00:00:00:00:02", mtu=1400, netns_fd=17),
            mac="02:00:00:00:00:01",
            mtu=1400,
            master=5,
        ),
        {"flags": 1, "change": 1},
        [
            ("IFLA_IFNAME", "veth1234abcd"),
            ("IFLA_ADDRESS", "02:00:00:00:00:01"),
            ("IFLA_MTU", 1400),
            ("IFLA_MASTER", 5),
        ],
        [
            ("IFLA_IFNAME", "eth0"),
            ("IFLA_ADDRESS", "02:00:00:00:00:02"),
            ("IFLA_MTU", 1400),
            ("IFLA_NET_NS_FD", 17),
        ],
    ),
    "nothing": (
        CreateVeth("a", VethPeer("b"), up=False),
        {},
        [("IFLA_IFNAME", "a")],
        [("IFLA_IFNAME", "b")],
    ),
}


@pytest.mark.parametrize(("wanted", "fields", "near", "far"), VETHS.values(), ids=VETHS)
def test_a_veth_is_packed_as_pyroute2_packs_it(
    wanted: CreateVeth, fields: dict[str, int], near: Attributes, far: Attributes
) -> None:
    queues: Attributes = [("IFLA_NUM_TX_QUEUES", 1), ("IFLA_NUM_RX_QUEUES", 1)]
    data = {"attrs": [("VETH_INFO_PEER", {"attrs": [*far, *queues]})]}
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}
    expected = by_pyroute2(LINK, fields, [*near, *queues, ("IFLA_LINKINFO", info)])
    message = link_messages.encode_veth(wanted)
    assert message.type == link_messages.RTM_NEWLINK
    assert tree(message.body, LINK) == expected


CHANGES: dict[str, tuple[ChangeLink, list[tuple[dict[str, int], Attributes]]]] = {
    "up": (ChangeLink(7, up=True), [({"index": 7, "flags": 1, "change": 1}, [])]),
    "down": (ChangeLink(7, up=False), [({"index": 7, "change": 1}, [])]),
    "promisc": (ChangeLink(7, promisc=True), [({"index": 7, "flags": 0x100, "change": 0x100}, [])]),
    "up, not promisc": (
        ChangeLink(7, up=True, promisc=False),
        [({"index": 7, "flags": 1, "change": 0x101}, [])],
    ),
    "down before the rest": (
        ChangeLink(7, up=False, promisc=True, name="cnvx1", group=77),
        [
            ({"index": 7, "change": 1}, []),
            (
                {"index": 7, "flags": 0x100, "change": 0x100},
                [("IFLA_IFNAME", "cnvx1"), ("IFLA_GROUP", 77)],
            ),
        ],
    ),
    "everything else": (
        ChangeLink(7, name="x", mac="02:00:00:00:00:01", mtu=1400, master=5, alias="a b"),
        [
            (
                {"index": 7},
                [
                    ("IFLA_ADDRESS", "02:00:00:00:00:01"),
                    ("IFLA_MTU", 1400),
                    ("IFLA_IFNAME", "x"),
                    ("IFLA_IFALIAS", "a b"),
                    ("IFLA_MASTER", 5),
                ],
            )
        ],
    ),
    "detach": (ChangeLink(7, master=0), [({"index": 7}, [("IFLA_MASTER", 0)])]),
    "port flags come last": (
        ChangeLink(7, master=5, hairpin=True, isolated=False, learning=False),
        [
            ({"index": 7}, [("IFLA_MASTER", 5)]),
            (
                {"index": 7},
                [
                    (
                        "IFLA_LINKINFO",
                        {
                            "attrs": [
                                ("IFLA_INFO_SLAVE_KIND", "bridge"),
                                (
                                    "IFLA_INFO_SLAVE_DATA",
                                    {
                                        "attrs": [
                                            ("IFLA_BRPORT_MODE", 1),
                                            ("IFLA_BRPORT_LEARNING", 0),
                                            ("IFLA_BRPORT_ISOLATED", 0),
                                        ]
                                    },
                                ),
                            ]
                        },
                    )
                ],
            ),
        ],
    ),
    "nothing": (ChangeLink(7), []),
}


@pytest.mark.parametrize(("wanted", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_packed_as_pyroute2_packs_it(
    wanted: ChangeLink, expected: list[tuple[dict[str, int], Attributes]]
) -> None:
    got = [_normal(tree(message.body, LINK)) for message in link_messages.encode_change(wanted)]
    assert got == [_normal(by_pyroute2(LINK, fields, wanted)) for fields, wanted in expected]


def _normal(one: Any) -> Any:
    return re.sub(r"\\x00'", "'", repr(one))  # the NUL of a kind


def test_deletions_are_packed_as_pyroute2_packs_them() -> None:
    assert tree(link_messages.encode_delete(DeleteLink(7)).body, LINK) == by_pyroute2(LINK, {"index": 7}, [])
    group = link_messages.encode_delete_group(DeleteGroup(77))
    assert tree(group.body, LINK) == by_pyroute2(LINK, {}, [("IFLA_GROUP", 77)])


@pytest.mark.parametrize(
    ("link", "fields", "wanted"),
    [("br0", {}, [("IFLA_IFNAME", "br0")]), (7, {"index": 7}, [])],
    ids=["by name", "by index"],
)
def test_a_query_is_packed_as_pyroute2_packs_it(
    link: str | int, fields: dict[str, int], wanted: Attributes
) -> None:
    assert tree(link_messages.query(link).body, LINK) == by_pyroute2(
        LINK, fields, [*wanted, ("IFLA_EXT_MASK", 8)]
    )


@pytest.mark.parametrize(
    ("address", "fields", "more"),
    [
        ("10.1.0.2/24", {"family": 2, "prefixlen": 24}, [("IFA_BROADCAST", "10.1.0.255")]),
        ("10.1.0.2/31", {"family": 2, "prefixlen": 31}, []),
        ("10.1.0.2/32", {"family": 2, "prefixlen": 32}, []),
        ("127.0.0.2/8", {"family": 2, "prefixlen": 8, "scope": 254}, [("IFA_BROADCAST", "127.255.255.255")]),
        ("fd00::2/64", {"family": 10, "prefixlen": 64, "flags": 2}, []),
        ("fe80::2/64", {"family": 10, "prefixlen": 64, "flags": 2, "scope": 253}, []),
    ],
)
def test_an_address_is_packed_as_pyroute2_packs_it(
    address: str, fields: dict[str, int], more: Attributes
) -> None:
    interface = ip_interface(address)
    both: Attributes = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
    added = addresses.encode_add(AddAddress(7, interface, nodad=True))
    assert tree(added.body, ADDRESS) == by_pyroute2(ADDRESS, {"index": 7, **fields}, [*both, *more])
    deleted = addresses.encode_delete(DeleteAddress(7, interface))
    assert tree(deleted.body, ADDRESS) == by_pyroute2(ADDRESS, {"index": 7, **fields, "flags": 0}, both)


BOOT = {"proto": 3, "type": 1}
ROUTES: dict[str, tuple[Route, dict[str, int], Attributes]] = {
    "default": (
        Route(ip_network("0.0.0.0/0"), 7, ip_address("10.1.0.1")),
        {"family": 2, "table": 254},
        [("RTA_TABLE", 254), ("RTA_OIF", 7), ("RTA_GATEWAY", "10.1.0.1")],
    ),
    "on-link": (
        Route(ip_network("10.9.0.0/16"), 7),
        {"family": 2, "table": 254, "dst_len": 16, "scope": 253},
        [("RTA_TABLE", 254), ("RTA_DST", "10.9.0.0"), ("RTA_OIF", 7)],
    ),
    "everything": (
        Route(
            ip_network("fd09::/32"),
            7,
            ip_address("fd00::1"),
            table=4711,
            priority=50,
            scope=200,
            mtu=1400,
            advmss=1360,
            onlink=True,
            protocol=4,
        ),
        {"family": 10, "table": 0, "dst_len": 32, "scope": 200, "flags": 4, "proto": 4},
        [
            ("RTA_TABLE", 4711),
            ("RTA_DST", "fd09::"),
            ("RTA_OIF", 7),
            ("RTA_GATEWAY", "fd00::1"),
            ("RTA_PRIORITY", 50),
            ("RTA_METRICS", {"attrs": [("RTAX_MTU", 1400), ("RTAX_ADVMSS", 1360)]}),
        ],
    ),
    "IPv4 over IPv6": (
        Route(ip_network("0.0.0.0/0"), 7, ip_address("fd00::1")),
        {"family": 2, "table": 254},
        [("RTA_TABLE", 254), ("RTA_OIF", 7), ("RTA_VIA", {"family": 10, "addr": "fd00::1"})],
    ),
}


@pytest.mark.parametrize(("route", "fields", "wanted"), ROUTES.values(), ids=ROUTES)
def test_a_route_is_packed_as_pyroute2_packs_it(
    route: Route, fields: dict[str, int], wanted: Attributes
) -> None:
    assert tree(routes.encode_add(AddRoute(route)).body, ROUTE) == by_pyroute2(
        ROUTE, {**BOOT, **fields}, wanted
    )


def test_appending_drops_the_exclusive_flag_alone() -> None:
    route = Route(ip_network("0.0.0.0/0"), 7, ip_address("10.1.0.1"))
    first, more = (routes.encode_add(AddRoute(route, append=append)) for append in (False, True))
    assert (first.flags, more.flags) == (0x600, 0x400)
    assert first.body == more.body


def test_a_bridge_is_made_with_its_filtering() -> None:
    message = link_messages.encode_bridge(
        CreateBridge("br0", mac="02:00:00:00:00:01", mtu=1400, vlan_filtering=True)
    )
    info = attributes(attributes(message.body, 16)[18])
    assert info[1].rstrip(b"\0") == b"bridge"
    assert attributes(info[2]) == {7: b"\1"}
    wire = link_messages.encode_bridge(CreateBridge("br0", multicast_snooping=False, group_fwd_mask=0xFFF8))
    info = attributes(attributes(wire.body, 16)[18])
    assert attributes(info[2]) == {9: b"\xf8\xff", 23: b"\0"}
    assert message.body[8:16] == b"\1\0\0\0\1\0\0\0"
    dummy = link_messages.encode_dummy(CreateDummy("d0"))
    assert 2 not in attributes(attributes(dummy.body, 16)[18])


def header(body: bytes) -> bytes:
    """A message as the kernel would send it, with a netlink header that is not read."""
    return (16 + len(body)).to_bytes(4, "little") + bytes(12) + body


def test_a_link_comes_back_with_all_it_has() -> None:
    body = pyroute2_light.encode(
        *LINK,
        {"index": 7, "flags": 0x1 | 0x100},
        [
            ("IFLA_IFNAME", "veth0"),
            ("IFLA_ADDRESS", "02:00:00:00:00:0a"),
            ("IFLA_MTU", 1400),
            ("IFLA_LINK", 3),
            ("IFLA_MASTER", 5),
            ("IFLA_OPERSTATE", "LOWERLAYERDOWN"),
            ("IFLA_GROUP", 77),
            ("IFLA_IFALIAS", "a guest's"),
            (
                "IFLA_LINKINFO",
                {
                    "attrs": [
                        ("IFLA_INFO_KIND", "veth"),
                        ("IFLA_INFO_SLAVE_KIND", "bridge"),
                        (
                            "IFLA_INFO_SLAVE_DATA",
                            {"attrs": [("IFLA_BRPORT_MODE", 1), ("IFLA_BRPORT_ISOLATED", 1)]},
                        ),
                    ]
                },
            ),
        ],
    )
    assert link_messages.decode(header(body)) == Link(
        ifindex=7,
        name="veth0",
        kind="veth",
        mac="02:00:00:00:00:0a",
        mtu=1400,
        up=True,
        operstate="LOWERLAYERDOWN",
        master=5,
        peer=3,
        promisc=True,
        group=77,
        alias="a guest's",
        port=BridgePort(hairpin=True, isolated=True, learning=False),
    )


def test_a_bridge_comes_back_as_one() -> None:
    own = [("IFLA_BR_VLAN_FILTERING", 1), ("IFLA_BR_VLAN_DEFAULT_PVID", 33)]
    data = {"attrs": [*own, ("IFLA_BR_GROUP_FWD_MASK", 8), ("IFLA_BR_MCAST_SNOOPING", 1)]}
    info = {"attrs": [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", data)]}
    body = pyroute2_light.encode(*LINK, {"index": 7}, [("IFLA_IFNAME", "br0"), ("IFLA_LINKINFO", info)])
    found = link_messages.decode(header(body))
    assert (found.kind, found.bridge, found.port) == ("bridge", Bridge(True, 33, group_fwd_mask=8), None)


def test_an_address_comes_back_with_its_state() -> None:
    body = pyroute2_light.encode(
        *ADDRESS,
        {"family": 10, "prefixlen": 64, "index": 7, "scope": 253},
        [("IFA_ADDRESS", "fe80::1"), ("IFA_FLAGS", 0x48)],
    )
    assert addresses.decode(header(body)) == Address(
        7, ip_interface("fe80::1/64"), 253, True, True, permanent=False
    )


def test_the_near_end_of_a_point_to_point_address_is_the_address() -> None:
    body = pyroute2_light.encode(
        *ADDRESS,
        {"family": 2, "prefixlen": 32, "index": 7},
        [("IFA_ADDRESS", "10.0.0.1"), ("IFA_LOCAL", "10.0.0.2"), ("IFA_FLAGS", 0x80)],
    )
    assert addresses.decode(header(body)) == Address(
        7, ip_interface("10.0.0.2/32"), peer=ip_address("10.0.0.1")
    )


@pytest.mark.parametrize(
    "was",
    [
        Address(7, ip_interface("10.1.0.2/24"), broadcast=IPv4Address("10.1.0.255")),
        Address(7, ip_interface("10.1.0.2/32"), 253, noprefixroute=True, peer=ip_address("10.1.0.1")),
        Address(7, ip_interface("fd00::2/64"), noprefixroute=True),
        Address(7, ip_interface("fe80::2/64"), 253, proto=3),
    ],
    ids=lambda was: str(was.address),
)
def test_an_address_comes_back_as_it_was(was: Address) -> None:
    assert addresses.decode(pack(addresses.encode(was))) == was


def test_a_route_with_two_hops_comes_back_as_two() -> None:
    hops = [
        {"oif": 7, "flags": 4, "hops": 0, "attrs": [("RTA_GATEWAY", "10.1.0.1")]},
        {"oif": 8, "flags": 0, "hops": 0, "attrs": [("RTA_GATEWAY", "10.2.0.1")]},
    ]
    body = pyroute2_light.encode(
        *ROUTE,
        {"family": 2, "table": 254, **BOOT},
        [("RTA_TABLE", 254), ("RTA_MULTIPATH", hops)],
    )
    default = Route(ip_network("0.0.0.0/0"), 0, scope=0, protocol=3)
    assert routes.decode(header(body)) == [
        default._replace(ifindex=7, gw=ip_address("10.1.0.1"), onlink=True),
        default._replace(ifindex=8, gw=ip_address("10.2.0.1")),
    ]


@pytest.mark.parametrize(
    "fields", [{"family": 2, "type": 2}, {"family": 128, "type": 1}], ids=["local", "mroute"]
)
def test_what_is_no_unicast_route_is_left_out(fields: dict[str, int]) -> None:
    assert routes.decode(header(pyroute2_light.encode(*ROUTE, fields, []))) == []


NEIGHBOURS = st.builds(
    Neighbour,
    st.integers(1, 1000),
    st.ip_addresses(),
    st.just("02:00:00:00:00:01"),
    permanent=st.booleans(),
    proxy=st.just(False),
)


@given(NEIGHBOURS)
def test_neighbours_come_back_as_they_went(neighbour: Neighbour) -> None:
    assert neighbours.decode(header(neighbours.encode_add(AddNeighbour(neighbour)).body)) == neighbour


def test_a_proxy_comes_back_without_a_mac() -> None:
    proxy = Neighbour(7, ip_address("10.1.0.7"), "", proxy=True)
    assert neighbours.decode(header(neighbours.encode_add(AddNeighbour(proxy)).body)) == proxy


@pytest.mark.parametrize("state", [0x01, 0x20, 0x40], ids=["incomplete", "failed", "noarp"])
def test_neighbours_that_have_not_answered_are_left_out(state: int) -> None:
    body = neighbours.encode_add(
        AddNeighbour(Neighbour(7, ip_address("10.1.0.7"), "02:00:00:00:00:01"))
    ).body
    assert neighbours.decode(header(body[:8] + state.to_bytes(2, "little") + body[10:])) is None


VIDS = st.sets(st.integers(1, 4094), max_size=60)


@given(VIDS)
def test_compressed_ranges_hold_exactly_the_vids_and_could_not_be_fewer(vids: set[int]) -> None:
    ranges = vlans.compress(vids)
    assert [vid for each in ranges for vid in range(each.first, each.last + 1)] == sorted(vids)
    assert all(after.first > before.last + 1 for before, after in pairwise(ranges))


@given(VIDS, st.integers(1, 4094), st.booleans())
def test_vlans_go_out_as_ranges_and_come_back(vids: set[int], native: int, untagged: bool) -> None:
    wanted = (
        *vlans.compress(vids - {native}),
        VlanRange(native, native, pvid=True, untagged=untagged),
    )
    for operation in (AddVlans(7, wanted), DeleteVlans(7, wanted)):
        assert vlans.decode_link(header(vlans.encode(operation).body)) == (7, list(wanted))


def test_every_single_vlan_fits_into_one_message() -> None:
    wanted = tuple(VlanRange(vid, vid) for vid in range(1, 4095))
    assert vlans.decode_link(header(vlans.encode(AddVlans(7, wanted)).body)) == (7, list(wanted))


def test_the_bridges_own_vlans_are_marked() -> None:
    body = vlans.encode(AddVlans(7, (VlanRange(5, 5),), on_bridge=True)).body
    assert attributes(attributes(body, 16)[26])[0] == b"\2\0"


def test_the_vlans_of_a_port_are_read_with_their_ranges() -> None:
    entries = [
        {"attrs": [("BRIDGE_VLANDB_ENTRY_INFO", {"flags": 6, "vid": 33})]},
        {
            "attrs": [
                ("BRIDGE_VLANDB_ENTRY_INFO", {"flags": 0, "vid": 100}),
                ("BRIDGE_VLANDB_ENTRY_RANGE", 199),
            ]
        },
    ]
    kind = ("netlink.rtnl.br_vlan", "br_vlan_msg")
    body = pyroute2_light.encode(
        *kind, {"family": 7, "ifindex": 7}, [("BRIDGE_VLANDB_ENTRY", entry) for entry in entries]
    )
    native = VlanRange(33, 33, pvid=True, untagged=True)
    assert vlans.decode(header(body)) == [native, VlanRange(100, 199)]


@pytest.mark.parametrize(
    ("name", "possible"),
    [("eth0", True), ("a" * 15, True), ("a" * 16, False), ("", False), ("a/b", False), ("é" * 8, False)],
)
def test_names_no_link_can_have_are_known(name: str, possible: bool) -> None:
    assert links.can_exist(name) is possible
