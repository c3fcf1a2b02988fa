"""Every key of static-ip: what it means, and what is said when it is wrong."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request, parse
from cnvnet.cni.result import DNS, Route
from cnvnet.ipam.pool import Pool
from cnvnet.ipam.static_ip.config import Config, folder
from cnvnet.vm.identity import VM

SUBNET = {"subnet": "10.0.0.0/24"}


def request(ipam: Any = SUBNET, cni_args: str = "", cni_version: str = "1.0.0", **keys: Any) -> Request:
    document = {"cniVersion": cni_version, "name": "net", "ipam": ipam, **keys}
    env = {"CNI_COMMAND": "ADD", "CNI_IFNAME": "eth0", "CNI_ARGS": cni_args, "CNVNET_STATEDIR": "/state"}
    return parse(env, json.dumps(document).encode())


def config(ipam: Any = SUBNET, cni_args: str = "", cni_version: str = "1.0.0", **keys: Any) -> Config:
    return Config.parse(request(ipam, cni_args, cni_version, **keys))


@contextmanager
def refused(message: str, code: int = 7) -> Generator[None]:
    with pytest.raises(CNIError) as caught:
        yield
    assert (caught.value.code, caught.value.msg) == (code, message)


def shape(found: Pool) -> list[list[str]]:
    """Sets of ranges as "first-last via gateway"."""
    return [[f"{each.name} via {each.gateway}" for each in given.ranges] for given in found.sets]


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
    ({**SUBNET, "exclude": ["10.0.0.5", "z"]}, 'ipam.exclude[1]: "z" is not an IP address'),
    ({**SUBNET, "exclude": ["10.0.0.5/99"]}, 'ipam.exclude[0]: "10.0.0.5/99" is not in CIDR notation'),
    (
        {**SUBNET, "exclude": ["10.0.0.0/24"]},
        "ipam.exclude: leaves no address of 10.0.0.1-10.0.0.254",
    ),
    (
        {"ipRanges": [{"range": "10.0.0.0/24", "exclude": [""]}]},
        'ipam.ipRanges[0].exclude[0]: "" is not an IP address',
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
        Route(ip_network("0.0.0.0/0")),
        Route(ip_network("fd01::/64"), ip_address("fd00::9"), mtu=1400, table=7, scope=0),
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


# -- leases


def test_the_defaults() -> None:
    found = config()
    assert found.policy == (b"\x0a\x63", "vm-deleted", 0)
    assert (found.folder, found.vm, found.wishes, found.mac, found.mac_where) == ("/state", None, (), "", "")


@pytest.mark.parametrize(
    ("mac", "prefix"),
    [
        ("sticky", b"\x0a\x63"),
        ("off", b""),
        ({}, b"\x0a\x63"),
        ({"mode": "off"}, b""),
        ({"prefix": "02:Ff"}, b"\x02\xff"),
        ({"mode": "sticky", "prefix": "ae:00"}, b"\xae\x00"),
    ],
)
def test_mac_is_a_mode_or_an_object_with_a_prefix(mac: Any, prefix: bytes) -> None:
    assert config({**SUBNET, "mac": mac}).policy.mac_prefix == prefix


@pytest.mark.parametrize(
    ("cooldown", "seconds"),
    [(0, 0), (90, 90), ("90", 90), ("90s", 90), ("10m", 600), ("1h", 3600), ("2d", 172800)],
)
def test_a_cooldown_is_a_number_of_seconds_or_says_its_unit(cooldown: Any, seconds: int) -> None:
    assert config({**SUBNET, "cooldown": cooldown}).policy.cooldown == seconds


def test_the_folder_is_data_dir_or_the_state_directory() -> None:
    assert config({**SUBNET, "dataDir": "/srv/leases"}).folder == "/srv/leases"
    assert folder(request({**SUBNET, "dataDir": "/srv/leases"})) == "/srv/leases"


@pytest.mark.parametrize("ipam", [7, {"dataDir": 7}, {"dataDir": "relative"}, {"subnet": 9}])
def test_delete_finds_a_folder_whatever_the_configuration(ipam: Any) -> None:
    assert folder(request(ipam)) == "/state"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mac": 7}, "ipam.mac: expected a string, got an integer"),
        ({"mac": "random"}, 'ipam.mac: "random" is not one of sticky, off'),
        ({"mac": {"mode": "x"}}, 'ipam.mac.mode: "x" is not one of sticky, off'),
        ({"mac": {"prefix": 10}}, "ipam.mac.prefix: expected a string, got an integer"),
        ({"mac": {"prefix": "0a"}}, 'ipam.mac.prefix: "0a" is not two octets such as 0a:63'),
        ({"mac": {"prefix": "0a:6g"}}, 'ipam.mac.prefix: "0a:6g" is not two octets such as 0a:63'),
        ({"mac": {"prefix": "0a:63:00"}}, 'ipam.mac.prefix: "0a:63:00" is not two octets such as 0a:63'),
        (
            {"mac": {"prefix": "00:16"}},
            "ipam.mac.prefix: 00:16 is not locally administered and unicast (x2, x6, xa or xe)",
        ),
        (
            {"mac": {"prefix": "03:00"}},
            "ipam.mac.prefix: 03:00 is not locally administered and unicast (x2, x6, xa or xe)",
        ),
        ({"mac": {"mode": "off", "prefix": "0a:63"}}, "ipam.mac.prefix: MACs are off"),
        ({"release": 1}, "ipam.release: expected a string, got an integer"),
        ({"release": "later"}, 'ipam.release: "later" is not one of vm-deleted, never, pod'),
        ({"cooldown": -1}, "ipam.cooldown: -1 is not between 0 and 31622400"),
        ({"cooldown": 1.5}, "ipam.cooldown: expected an integer, got a number with a fraction or exponent"),
        ({"cooldown": True}, "ipam.cooldown: expected an integer, got true"),
        ({"cooldown": "-1"}, 'ipam.cooldown: "-1" is no time such as 90, "10m", "1h" or "1d"'),
        ({"cooldown": "m"}, 'ipam.cooldown: "m" is no time such as 90, "10m", "1h" or "1d"'),
        ({"cooldown": "2 weeks"}, 'ipam.cooldown: "2 weeks" is no time such as 90, "10m", "1h" or "1d"'),
        ({"cooldown": "367d"}, "ipam.cooldown: 31708800 is not between 0 and 31622400"),
        ({"store": 1}, "ipam.store: expected a string, got an integer"),
        ({"store": "etcd"}, 'ipam.store: "etcd" is not one of sqlite, kubernetes'),
        (
            {"store": "kubernetes"},
            'ipam.store: "kubernetes" is not available in this version, only "sqlite"',
        ),
        ({"nodeLocal": "yes"}, "ipam.nodeLocal: expected true or false, got a string"),
        ({"dataDir": 1}, "ipam.dataDir: expected a string, got an integer"),
        ({"dataDir": "state"}, "ipam.dataDir: not an absolute path"),
        ({"dataDir": "/a\0b"}, "ipam.dataDir: not an absolute path"),
    ],
    ids=lambda value: json.dumps(value)[:60] if not isinstance(value, str) else "",
)
def test_a_wrong_key_of_the_leases_is_named(keys: dict[str, Any], message: str) -> None:
    with refused(message):
        config({**SUBNET, **keys})


def test_unknown_keys_are_ignored_and_keys_match_without_regard_to_case() -> None:
    found = config({"SubNet": "10.0.0.0/24", "COOLDOWN": 5, "sbunet": 7, "log_file": "/tmp/x"}, bogus=[1])
    assert (shape(found.pool), found.policy.cooldown) == ([["10.0.0.1-10.0.0.254 via 10.0.0.1"]], 5)


# -- what the runtime asks for


def test_wishes_come_from_three_places_the_strongest_first() -> None:
    found = config(
        cni_args="IP=10.0.0.9, fd00::9/64;MAC=0a:63:00:00:00:09",
        runtimeConfig={"ips": ["10.0.0.7/24"], "mac": "0A-63-00-00-00-07"},
        args={"cni": {"ips": ["10.0.0.8"], "mac": "0a:63:00:00:00:08"}},
    )
    assert [(str(wish.ip), wish.where) for wish in found.wishes] == [
        ("10.0.0.7", "runtimeConfig.ips[0]"),
        ("10.0.0.8", "args.cni.ips[0]"),
        ("10.0.0.9", "CNI_ARGS IP"),
        ("fd00::9", "CNI_ARGS IP"),
    ]
    assert (found.mac, found.mac_where) == ("0a:63:00:00:00:07", "runtimeConfig.mac")


def test_a_wished_mac_names_the_key_it_comes_from() -> None:
    mac = "0a:63:00:00:00:08"
    assert config(args={"cni": {"mac": mac}}).mac_where == "args.cni.mac"
    assert config(cni_args=f"MAC={mac}").mac_where == "CNI_ARGS MAC"


def test_the_vm_is_whom_the_request_names() -> None:
    assert config(cni_args="VM_NAME=vm1;VM_NAMESPACE=a").vm == VM("a", "vm1", "", "eth0", "active")
    assert config(args={"cni": {"vm": {"name": "vm2"}}}).vm == VM("default", "vm2", "", "eth0", "active")


@pytest.mark.parametrize(
    ("keys", "message", "code"),
    [
        ({"runtimeConfig": 7}, "runtimeConfig: expected an object, got an integer", 7),
        ({"runtimeConfig": {"ips": "x"}}, "runtimeConfig.ips: expected a list of strings, got a string", 7),
        ({"runtimeConfig": {"ips": ["x"]}}, 'runtimeConfig.ips[0]: "x" is not an IP address', 7),
        (
            {"runtimeConfig": {"ips": ["10.0.0.5", "10.0.0.5/x"]}},
            'runtimeConfig.ips[1]: "10.0.0.5/x" is not in CIDR notation',
            7,
        ),
        ({"runtimeConfig": {"mac": "x"}}, 'runtimeConfig.mac: "x" is not a MAC address', 7),
        ({"args": []}, "args: expected an object, got a list", 7),
        ({"args": {"cni": 1}}, "args.cni: expected an object, got an integer", 7),
        ({"args": {"cni": {"ips": 1}}}, "args.cni.ips: expected a list of strings, got an integer", 7),
        ({"args": {"cni": {"ips": [""]}}}, 'args.cni.ips[0]: "" is not an IP address', 7),
        (
            {"args": {"cni": {"mac": "01:00:5e:00:00:01"}}},
            'args.cni.mac: "01:00:5e:00:00:01" is a multicast MAC address',
            7,
        ),
        ({"cni_args": "IP=ten"}, 'CNI_ARGS IP: "ten" is not an IP address', 7),
        ({"cni_args": "MAC=ten"}, 'CNI_ARGS MAC: "ten" is not a MAC address', 7),
        ({"cni_args": "IP"}, 'ARGS: invalid pair "IP"', 4),
        ({"cni_args": "FOO=1"}, 'ARGS: unknown args ["FOO=1"]', 4),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_wrong_request_is_named(keys: dict[str, Any], message: str, code: int) -> None:
    with refused(message, code):
        config(**keys)


def test_the_embedded_store_is_refused_to_a_cluster_with_the_reason() -> None:
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=d"
    reason = (
        "ipam.store: sqlite knows the leases of one node only, and with Kubernetes two nodes would give one "
        "address twice: give each node ranges of its own and say so by ipam.nodeLocal: true"
    )
    with refused(reason):
        config(cni_args=args)
    assert config({**SUBNET, "nodeLocal": True}, cni_args=args).vm is None


def test_a_missing_ipam_key_has_the_references_text() -> None:
    with pytest.raises(CNIError) as caught:
        Config.parse(parse({"CNI_COMMAND": "ADD"}, b'{"cniVersion": "1.0.0", "name": "net"}'))
    assert (caught.value.code, caught.value.msg) == (7, "IPAM config missing 'ipam' key")


# -- anything at all

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(
        ["10.0.0.0/24", "10.0.0.5", "fd00::/64", "10.0.0.5-10.0.0.9/24", "::ffff:10.0.0.0/120", "/etc"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
RANGE_KEYS = ["subnet", "rangeStart", "rangeEnd", "gateway", "range", "range_start", "range_end", "exclude"]
LEASE_KEYS = [
    "ranges",
    "ipRanges",
    "routes",
    "dns",
    "resolvConf",
    "mac",
    "release",
    "cooldown",
    "store",
    "dataDir",
]
RANGE = st.dictionaries(st.sampled_from(RANGE_KEYS), JSON, max_size=5)
IPAM = st.dictionaries(
    st.sampled_from([*RANGE_KEYS, *LEASE_KEYS, "nodeLocal", "bogus"]),
    JSON | RANGE | st.lists(RANGE, max_size=2) | st.lists(st.lists(RANGE, max_size=2), max_size=2),
    max_size=6,
)


@given(JSON | IPAM, JSON, JSON, st.text(max_size=30))
def test_whatever_the_configuration_it_is_understood_or_refused(
    ipam: Any, runtime: Any, args: Any, cni_args: str
) -> None:
    asked = request(ipam, cni_args, runtimeConfig=runtime, args={"cni": args})
    answer = understood(asked)
    if isinstance(answer, CNIError):
        assert answer.code in (4, 7)
        assert answer.msg
    else:
        assert all(given.spans for given in answer.pool.sets)


def understood(asked: Request) -> Config | CNIError:
    try:
        return Config.parse(asked)
    except CNIError as e:
        return e
