"""Keys of leases and requests of the runtime, and any configuration at all: understood or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request, parse
from cnvnet.ipam.static_ip.config import Config, store_refs
from cnvnet.ipam.store.ref import KUBERNETES, SQLITE, StoreRef
from cnvnet.vm.identity import VM
from tests.unit.ipam.static_ip.configured import (
    IPAM,
    JSON,
    SUBNET,
    config,
    refused,
    request,
    shape,
)


def test_the_defaults() -> None:
    found = config()
    assert found.policy == (b"\x0a\x63", "vm-deleted", 0)
    assert (found.store, found.vm, found.addresses, found.mac, found.mac_where) == (
        StoreRef(SQLITE, "/state"),
        None,
        (),
        "",
        "",
    )


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
    assert config({**SUBNET, "dataDir": "/srv/leases"}).store == StoreRef(SQLITE, "/srv/leases")
    assert store_refs(request({**SUBNET, "dataDir": "/srv/leases"})) == (StoreRef(SQLITE, "/srv/leases"),)


@pytest.mark.parametrize("ipam", [7, {"dataDir": 7}, {"dataDir": "relative"}, {"subnet": 9}])
def test_delete_finds_a_folder_whatever_the_configuration(ipam: Any) -> None:
    assert store_refs(request(ipam)) == (StoreRef(SQLITE, "/state"),)


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
            {"store": "kubernetes", "dataDir": "/srv"},
            "ipam.dataDir: ipam.store kubernetes keeps no leases in a folder",
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


def test_address_requests_come_from_three_places_the_strongest_first() -> None:
    found = config(
        cni_args="IP=10.0.0.9, fd00::9/64;MAC=0a:63:00:00:00:09",
        runtimeConfig={"ips": ["10.0.0.7/24"], "mac": "0A-63-00-00-00-07"},
        args={"cni": {"ips": ["10.0.0.8"], "mac": "0a:63:00:00:00:08"}},
    )
    assert [(str(wish.ip), wish.where) for wish in found.addresses] == [
        ("10.0.0.7", "runtimeConfig.ips[0]"),
        ("10.0.0.8", "args.cni.ips[0]"),
        ("10.0.0.9", "CNI_ARGS IP"),
        ("fd00::9", "CNI_ARGS IP"),
    ]
    assert (found.mac, found.mac_where) == ("0a:63:00:00:00:07", "runtimeConfig.mac")


def test_a_requested_mac_names_the_key_it_comes_from() -> None:
    mac = "0a:63:00:00:00:08"
    assert config(args={"cni": {"mac": mac}}).mac_where == "args.cni.mac"
    assert config(cni_args=f"MAC={mac}").mac_where == "CNI_ARGS MAC"


def test_the_vm_is_the_one_that_the_request_names() -> None:
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
    with refused(f"{reason}, or give the node credentials for the API and ipam.store kubernetes"):
        config(cni_args=args)
    with refused(reason):
        config({**SUBNET, "store": "sqlite"}, cni_args=args)
    assert config({**SUBNET, "nodeLocal": True}, cni_args=args).vm is None


@pytest.mark.parametrize(
    ("keys", "in_kubernetes", "has_api", "kind"),
    [
        ({}, True, True, KUBERNETES),
        ({}, False, True, SQLITE),
        ({"nodeLocal": True}, True, True, SQLITE),
        ({"nodeLocal": True, "store": "sqlite"}, True, True, SQLITE),
        ({"store": "kubernetes"}, True, False, KUBERNETES),
        ({"store": "kubernetes"}, False, False, KUBERNETES),
        ({"store": "kubernetes", "nodeLocal": True}, True, True, KUBERNETES),
    ],
)
def test_keys_and_credentials_say_which_store_it_is(
    keys: dict[str, Any], in_kubernetes: bool, has_api: bool, kind: str
) -> None:
    args = "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=d" if in_kubernetes else ""
    asked = request({**SUBNET, **keys}, args)
    assert Config.parse(asked, lambda: has_api).store == StoreRef(kind, "/state")


def test_credentials_are_not_looked_for_where_they_decide_nothing() -> None:
    def has_api() -> bool:
        raise AssertionError

    args = "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=d"
    for asked in (
        request(),
        request({**SUBNET, "nodeLocal": True}, args),
        request({**SUBNET, "store": "kubernetes"}, args),
    ):
        Config.parse(asked, has_api)


@pytest.mark.parametrize("key", ["isGateway", "isDefaultGateway"])
def test_a_network_whose_addresses_move_has_no_gateway_on_every_node(key: str) -> None:
    keys: dict[str, Any] = {key: True}
    with refused(
        f"{key}: every node would have the gateway's address, and VMs move between nodes: let a router of "
        "the network be the gateway, or say ipam.nodeLocal: true"
    ):
        Config.parse(request({**SUBNET, "store": "kubernetes"}, "", "1.0.0", **keys))
    local = Config.parse(request({**SUBNET, "store": "kubernetes", "nodeLocal": True}, "", "1.0.0", **keys))
    assert local.store.kind == KUBERNETES


def test_a_missing_ipam_key_has_the_references_text() -> None:
    with pytest.raises(CNIError) as caught:
        Config.parse(parse({"CNI_COMMAND": "ADD"}, b'{"cniVersion": "1.0.0", "name": "net"}'))
    assert (caught.value.code, caught.value.msg) == (7, "IPAM config missing 'ipam' key")


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


@pytest.mark.parametrize(
    ("ipam", "useless"),
    [
        ({"exclude": ["10.0.0.5", "10.0.0.8/29", "10.0.0.128/25", "10.0.0.255", "10.0.0.0"]}, None),
        ({"exclude": ["10.0.0.5", "10.99.0.0/24"]}, 'ipam.exclude[1]: "10.99.0.0/24"'),
        ({"exclude": ["fd00::5"]}, 'ipam.exclude[0]: "fd00::5"'),
        ({"exclude": ["10.0.0.200"], "rangeEnd": "10.0.0.100"}, 'ipam.exclude[0]: "10.0.0.200"'),
        (
            {"exclude": ["9.9.9.9"], "ipRanges": [{"range": "10.1.0.0/24", "exclude": ["10.2.0.1"]}]},
            'ipam.exclude[0]: "9.9.9.9", ipam.ipRanges[0].exclude[0]: "10.2.0.1"',
        ),
    ],
)
def test_exclusions_outside_every_range_are_one_line_of_an_add(ipam: Any, useless: str | None) -> None:
    found = config({**SUBNET, **ipam})
    text = f"{useless}: in no range of the network ({found.pool.name}), so nothing is excluded"
    assert found.remarks == ((text,) if useless else ())
