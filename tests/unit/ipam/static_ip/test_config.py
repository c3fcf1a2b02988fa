"""Every key of static-ip: what it means, and what is said when it is wrong."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.result import DNS, ResultRoute
from cnvnet.ipam.pool import Pool
from tests.unit.ipam.static_ip.configured import SUBNET, config, refused, shape

# -- ranges


def test_host_locals_subnet_has_its_first_address_as_gateway() -> None:
    assert shape(config().pool) == [["10.0.0.1-10.0.0.254 via 10.0.0.1"]]
    assert not config().pool.sets[0].gives(ip_address("10.0.0.1"))
    assert shape(config({"subnet": "fd00::/64"}).pool) == [["fd00::1-fd00::ffff:ffff:ffff:ffff via fd00::1"]]


def test_host_locals_other_range_keys() -> None:
    ipam = {
        "subnet": "10.0.0.0/24",
        "rangeStart": "10.0.0.10",
        "rangeEnd": "10.0.0.20",
        "gateway": "10.0.0.254",
        "ranges": [
            [{"subnet": "fd00::/64"}],
            [
                {"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.9"},
                {"subnet": "10.2.0.0/24", "gateway": "10.2.0.9"},
            ],
        ],
    }
    assert shape(config(ipam).pool) == [
        ["10.0.0.10-10.0.0.20 via 10.0.0.254"],
        ["fd00::1-fd00::ffff:ffff:ffff:ffff via fd00::1"],
        ["10.1.0.1-10.1.0.9 via 10.1.0.1", "10.2.0.1-10.2.0.254 via 10.2.0.9"],
    ]


def test_the_capability_ip_ranges_come_first_as_in_host_local() -> None:
    capability = {"ipRanges": [[{"subnet": "10.9.0.0/24"}]]}
    found = config(SUBNET, runtimeConfig=capability).pool
    assert shape(found) == [["10.9.0.1-10.9.0.254 via 10.9.0.1"], ["10.0.0.1-10.0.0.254 via 10.0.0.1"]]


@pytest.mark.parametrize(
    ("ipam", "expected"),
    [
        ({"range": "192.168.2.225/28"}, [["192.168.2.225-192.168.2.238 via None"]]),
        ({"range": "192.168.2.5-192.168.2.9/24"}, [["192.168.2.5-192.168.2.9 via None"]]),
        (
            {
                "range": "10.0.0.0/24",
                "range_start": "10.0.0.3",
                "range_end": "10.0.0.4",
                "gateway": "10.0.0.9",
            },
            [["10.0.0.3-10.0.0.4 via 10.0.0.9"]],
        ),
        (
            {"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "fd00::/120"}], "gateway": "10.0.0.1"},
            [["10.0.0.1-10.0.0.254 via 10.0.0.1"], ["fd00::1-fd00::ff via None"]],
        ),
        (
            {"range": "10.0.0.0/24", "ipRanges": [{"range": "fd00::/64", "range_start": "fd00::10"}]},
            [["10.0.0.1-10.0.0.254 via None"], ["fd00::10-fd00::ffff:ffff:ffff:ffff via None"]],
        ),
    ],
)
def test_whereabouts_range_keys(ipam: dict[str, Any], expected: list[list[str]]) -> None:
    assert shape(config(ipam).pool) == expected


@pytest.mark.parametrize("key", ["isGateway", "isDefaultGateway", "ISGATEWAY"])
def test_the_address_that_a_bridge_makes_up_for_itself_is_the_gateway(key: str) -> None:
    ipam = {"ipRanges": [{"range": "10.7.0.0/30"}, {"range": "fd07::5-fd07::9/64"}]}
    bridge: dict[str, Any] = {key: True}
    bridged = config(ipam, **bridge).pool
    assert shape(bridged) == [["10.7.0.1-10.7.0.2 via 10.7.0.1"], ["fd07::5-fd07::9 via fd07::1"]]
    assert [gives(bridged, ip_address(ip)) for ip in ("10.7.0.1", "10.7.0.2")] == [False, True]
    assert bridged.purpose_of(ip_address("fd07::1")) == "the gateway"
    assert shape(config({**ipam, "gateway": "10.7.0.2"}, **bridge).pool) == [
        ["10.7.0.1-10.7.0.2 via 10.7.0.2"],
        ["fd07::5-fd07::9 via fd07::1"],
    ]
    for other in (False, None, "true"):
        bridge[key] = other
        assert shape(config(ipam, **bridge).pool)[0] == ["10.7.0.1-10.7.0.2 via None"]


def test_exclusions_are_networks_or_addresses_of_the_whole_or_of_one_entry() -> None:
    ipam = {
        "ipRanges": [{"range": "10.0.0.0/29", "exclude": ["10.0.0.4/31"]}, {"range": "10.0.1.0/29"}],
        "exclude": ["10.0.0.2", "10.0.1.0/30"],
    }
    found = config(ipam).pool
    given_out = [
        str(ip) for each in ("10.0.0.0/29", "10.0.1.0/29") for ip in ip_network(each) if gives(found, ip)
    ]
    assert given_out == ["10.0.0.1", "10.0.0.3", "10.0.0.6", "10.0.1.4", "10.0.1.5", "10.0.1.6"]


def gives(found: Pool, ip: Any) -> bool:
    return any(each.gives(ip) for each in found.sets)


WRONG_RANGES: list[tuple[Any, str]] = [
    ({}, "no IP ranges specified"),
    ({"ranges": []}, "no IP ranges specified"),
    ([], "ipam: expected an object, got a list"),
    ("10.0.0.0/24", "ipam: expected an object, got a string"),
    ({"subnet": 10}, "ipam.subnet: expected a string, got an integer"),
    ({"subnet": "10.0.0.0"}, 'ipam.subnet: "10.0.0.0" is not in CIDR notation'),
    ({"subnet": "10.0.0.0/33"}, 'ipam.subnet: "10.0.0.0/33" is not in CIDR notation'),
    (
        {"subnet": "10.0.0.7/24"},
        "ipam.subnet: 10.0.0.7/24 has host bits set: the network is 10.0.0.0/24",
    ),
    ({"subnet": "10.0.0.0/31"}, "ipam.subnet: network 10.0.0.0/31 is too small to allocate from"),
    ({"subnet": "fd00::/127"}, "ipam.subnet: network fd00::/127 is too small to allocate from"),
    ({**SUBNET, "rangeStart": "10.0.1.1"}, "ipam.rangeStart: 10.0.1.1 is not in 10.0.0.0/24"),
    ({**SUBNET, "rangeEnd": "fd00::1"}, "ipam.rangeEnd: fd00::1 is not in 10.0.0.0/24"),
    ({**SUBNET, "rangeStart": "ten"}, 'ipam.rangeStart: "ten" is not an IP address'),
    ({**SUBNET, "rangeEnd": 7}, "ipam.rangeEnd: expected a string, got an integer"),
    (
        {**SUBNET, "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"},
        "ipam.rangeEnd: the range would end at 10.0.0.8 before it begins at 10.0.0.9",
    ),
    (
        {**SUBNET, "rangeStart": "10.0.0.255"},
        "ipam.rangeStart: the range would end at 10.0.0.254 before it begins at 10.0.0.255",
    ),
    ({**SUBNET, "gateway": "x"}, 'ipam.gateway: "x" is not an IP address'),
    ({**SUBNET, "gateway": True}, "ipam.gateway: expected a string, got true"),
    ({**SUBNET, "gateway": "fd00::1"}, "ipam.gateway: fd00::1 cannot be the gateway of 10.0.0.0/24"),
    (
        {"ranges": [[SUBNET], [{"subnet": "fd00::/64", "gateway": "10.0.0.1"}]]},
        "ipam.ranges[1][0].gateway: 10.0.0.1 cannot be the gateway of fd00::/64",
    ),
    ({"ranges": {}}, "ipam.ranges: expected a list of lists, got an object"),
    ({"ranges": [{}]}, "ipam.ranges[0]: expected a list of objects, got an object"),
    ({"ranges": [[]]}, "ipam.ranges[0]: empty range set"),
    ({"ranges": [[7]]}, "ipam.ranges[0][0]: expected an object, got an integer"),
    ({"ranges": [[{}]]}, "ipam.ranges[0][0].subnet: required"),
    ({"ranges": [[SUBNET], [{"subnet": "x"}]]}, 'ipam.ranges[1][0].subnet: "x" is not in CIDR notation'),
    ({"ranges": [[SUBNET, {"subnet": "fd00::/64"}]]}, "ipam.ranges[0]: mixed address families"),
    (
        {"ranges": [[SUBNET, {"subnet": "10.0.0.0/16"}]]},
        "ipam.ranges[0]: subnets 10.0.0.1-10.0.0.254 and 10.0.0.1-10.0.255.254 overlap",
    ),
    ({**SUBNET, "ranges": [[SUBNET]]}, "ipam.ranges: range set 0 overlaps with 1"),
    ({"range": "10.0.0.0"}, 'ipam.range: "10.0.0.0" is not in CIDR notation'),
    ({"range": "x-10.0.0.9/24"}, 'ipam.range: "x" is not an IP address'),
    ({"range": "10.0.1.1-10.0.0.9/24"}, "ipam.range: 10.0.1.1 is not in 10.0.0.0/24"),
    (
        {"range": "10.0.0.10-10.0.0.9/24"},
        "ipam.range: the range would end at 10.0.0.9 before it begins at 10.0.0.10",
    ),
    (
        {"range": "10.0.0.5-10.0.0.9/24", "range_start": "10.0.0.6"},
        "ipam.range_start: 10.0.0.6 contradicts ipam.range, which says 10.0.0.5",
    ),
    ({"range": "10.0.0.0/32"}, "ipam.range: network 10.0.0.0/32 is too small to allocate from"),
    (
        {"range": "10.0.0.0/24", "range_end": "10.1.0.1"},
        "ipam.range_end: 10.1.0.1 is not in 10.0.0.0/24",
    ),
    ({"ipRanges": "10.0.0.0/24"}, "ipam.ipRanges: expected a list of objects, got a string"),
    ({"ipRanges": [{}]}, "ipam.ipRanges[0].range: required"),
    ({"ipRanges": [{"range": "y"}]}, 'ipam.ipRanges[0].range: "y" is not in CIDR notation'),
    (
        {"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "10.0.0.0/25"}]},
        "ipam.ranges: range set 0 overlaps with 1",
    ),
    ({**SUBNET, "exclude": "10.0.0.5"}, "ipam.exclude: expected a list of strings, got a string"),
    ({**SUBNET, "exclude": [5]}, "ipam.exclude[0]: expected a string, got an integer"),
    ({**SUBNET, "exclude": ["10.0.0.5", "z"]}, 'ipam.exclude[1]: "z" is neither an address nor a network'),
    ({**SUBNET, "exclude": ["10.0.0.5/99"]}, 'ipam.exclude[0]: "10.0.0.5/99" is not in CIDR notation'),
    (
        {**SUBNET, "exclude": ["10.0.0.0/24"]},
        "ipam.exclude: leaves no address of 10.0.0.1-10.0.0.254",
    ),
    (
        {"ipRanges": [{"range": "10.0.0.0/24", "exclude": [""]}]},
        'ipam.ipRanges[0].exclude[0]: "" is neither an address nor a network',
    ),
]


@pytest.mark.parametrize(
    ("ipam", "message"),
    WRONG_RANGES,
    ids=lambda value: json.dumps(value)[:60] if not isinstance(value, str) else "",
)
def test_a_wrong_range_is_named(ipam: Any, message: str) -> None:
    with refused(message):
        config(ipam)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (7, "runtimeConfig.ipRanges: expected a list of lists, got an integer"),
        ([[{"subnet": "x"}]], 'runtimeConfig.ipRanges[0][0].subnet: "x" is not in CIDR notation'),
        ([[SUBNET]], "ipam.ranges: range set 0 overlaps with 1"),
    ],
)
def test_a_wrong_capability_range_is_named(ranges: Any, message: str) -> None:
    with refused(message):
        config(SUBNET, runtimeConfig={"ipRanges": ranges})


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions_have_one_address_of_a_family(version: str) -> None:
    ipam = {"ranges": [[SUBNET], [{"subnet": "10.1.0.0/24"}]]}
    with refused(f"CNI version {version} does not support more than 1 address per family"):
        config(ipam, cni_version=version)
    assert len(config(ipam, cni_version="0.3.0").pool.sets) == 2
    assert len(config({"ranges": [[SUBNET], [{"subnet": "fd00::/64"}]]}, cni_version=version).pool.sets) == 2


# -- routes and DNS


def test_routes_and_dns_are_passed_on() -> None:
    routes = [
        {"dst": "0.0.0.0/0"},
        {"dst": "fd01::/64", "gw": "fd00::9", "mtu": 1400, "table": 7, "scope": 0},
    ]
    dns = {"nameservers": ["10.0.0.53"], "domain": "example", "search": ["a", "b"], "options": ["ndots:2"]}
    found = config({**SUBNET, "routes": routes, "dns": dns})
    assert found.routes == (
        ResultRoute(ip_network("0.0.0.0/0")),
        ResultRoute(ip_network("fd01::/64"), ip_address("fd00::9"), mtu=1400, table=7, scope=0),
    )
    assert found.dns == DNS(("10.0.0.53",), "example", ("a", "b"), ("ndots:2",))


DEFAULT = {"dst": "0.0.0.0/0"}
FAR = {**SUBNET, "gateway": "10.9.9.9"}
UNREACHABLE = "10.9.9.9 is not in 10.0.0.0/24, so no route can lead through it"


@pytest.mark.parametrize(
    ("ipam", "keys", "key"),
    [
        ({**FAR, "routes": [DEFAULT]}, {}, "ipam.gateway"),
        (FAR, {"isDefaultGateway": True}, "ipam.gateway"),
        ({"range": "10.0.0.0/24", "gateway": "10.9.9.9", "routes": [DEFAULT]}, {}, "ipam.gateway"),
        ({"ranges": [[FAR]], "routes": [DEFAULT]}, {}, "ipam.ranges[0][0].gateway"),
    ],
)
def test_a_route_through_a_gateway_that_is_out_of_reach_is_refused(
    ipam: dict[str, Any], keys: dict[str, Any], key: str
) -> None:
    with refused(f"{key}: {UNREACHABLE}"):
        config(ipam, **keys)


@pytest.mark.parametrize(
    "ipam",
    [
        # Only reported, as by host-local.
        FAR,
        {**FAR, "routes": [{**DEFAULT, "gw": "10.0.0.1"}, {"dst": "fd01::/64"}]},
        # In reach: on the link whatever the subnet, in another set's subnet, by a route of its own.
        {**FAR, "gateway": "169.254.1.1", "routes": [DEFAULT]},
        {"subnet": "fd00::/64", "gateway": "fe80::1", "routes": [{"dst": "::/0"}]},
        {"ranges": [[FAR], [{"subnet": "10.9.9.0/24"}]], "routes": [DEFAULT]},
        {**FAR, "routes": [{"dst": "10.9.9.9/32", "gw": "0.0.0.0", "scope": 253}, DEFAULT]},
        # Of two addresses of a family it is the first that routes lead through.
        {"ranges": [[SUBNET], [{"subnet": "10.1.0.0/24", "gateway": "10.9.9.9"}]], "routes": [DEFAULT]},
    ],
)
def test_a_gateway_outside_its_subnet_is_taken_where_it_works(ipam: dict[str, Any]) -> None:
    assert config(ipam).pool.sets[0].ranges[0].gateway is not None


def test_resolv_conf_is_read_as_host_local_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# comment\nnameserver 10.0.0.53\nnameserver fd00::53 trailing\n\ndomain example\nsearch a b\n"
        "options ndots:2 rotate\noptions edns0\nsortlist 1\nnameserver\n"
    )
    expected = DNS(("10.0.0.53", "fd00::53"), "example", ("a", "b"), ("ndots:2", "rotate", "edns0"))
    assert config({**SUBNET, "resolvConf": str(path)}).dns == expected


WRONG_REPORTS: list[tuple[Any, str]] = [
    ({"routes": {}}, "ipam.routes: expected a list of objects, got an object"),
    ({"routes": [{}]}, "ipam.routes[0].dst: required"),
    ({"routes": [{"dst": "10.0.0.1"}]}, 'ipam.routes[0].dst: "10.0.0.1" is not in CIDR notation'),
    ({"routes": [{"dst": "0.0.0.0/0", "gw": "g"}]}, 'ipam.routes[0].gw: "g" is not an IP address'),
    (
        {"routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]},
        "ipam.routes[0].gw: fd00::1 cannot lead to 0.0.0.0/0",
    ),
    (
        {"routes": [{"dst": "0.0.0.0/0", "mtu": -1}]},
        "ipam.routes[0].mtu: -1 is not between 0 and 4294967295",
    ),
    ({"dns": "10.0.0.53"}, "ipam.dns: expected an object, got a string"),
    ({"dns": {"nameservers": [7]}}, "ipam.dns.nameservers[0]: expected a string, got an integer"),
    ({"dns": {"search": "a"}}, "ipam.dns.search: expected a list of strings, got a string"),
    ({"resolvConf": 7}, "ipam.resolvConf: expected a string, got an integer"),
    ({"resolvConf": "/nowhere/x"}, "ipam.resolvConf: /nowhere/x: no such file or directory"),
    ({"resolvConf": "/x", "dns": {}}, "ipam.resolvConf: ipam.dns is given too"),
    ({"resolvConf": "resolv.conf"}, "ipam.resolvConf: not an absolute path"),
]


@pytest.mark.parametrize(
    ("keys", "message"),
    WRONG_REPORTS,
    ids=lambda value: json.dumps(value)[:60] if not isinstance(value, str) else "",
)
def test_a_wrong_route_or_dns_setting_is_named(keys: dict[str, Any], message: str) -> None:
    with refused(message):
        config({**SUBNET, **keys})
