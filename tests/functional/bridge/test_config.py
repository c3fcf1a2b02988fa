"""The configurations that ADD takes, and the codes and texts with which it refuses all others.

Nothing may have been made when a configuration is refused: that is asserted for each.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.functional.bridge.bridge_network import OURS, PROGRAMS, Network, host_local, port_flag, ports
from tests.harness import Node, Sandbox

SINGLE_VLAN = "invalid VLAN ID {} (must be between 0 and 4094)"


def refusal(
    node: Node, pod: Sandbox, program: str, version: str = "1.1.0", /, **keys: Any
) -> dict[str, Any]:
    """The error of an ADD that must fail before it has made anything."""
    error = Network(node, program, version, **keys).add(pod).error()
    assert list(node.links()) == ["lo"]
    assert list(pod.links()) == ["lo"]
    return error


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
@pytest.mark.parametrize("vlan", [-100, 5000, -1, 4095])
def test_a_vlan_out_of_range(node: Node, pod: Sandbox, program: str, version: str, vlan: int) -> None:
    assert refusal(node, pod, program, version, vlan=vlan)["msg"] == SINGLE_VLAN.format(vlan)


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_vlan_0_is_no_vlan(node: Node, pod: Sandbox, program: str, version: str) -> None:
    Network(node, program, version, vlan=0).add(pod).ok()
    assert (node.link("bridge0") or {})["linkinfo"]["info_data"]["vlan_filtering"] == 0


TRUNKS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no-maxID": ([{"minID": 5}], "minID and maxID should be configured simultaneously, maxID is missing"),
    "no-minID": ([{"maxID": 5}], "minID and maxID should be configured simultaneously, minID is missing"),
    "minID-negative": ([{"minID": -1, "maxID": 5}], "incorrect trunk minID parameter"),
    "minID-zero": ([{"minID": 0, "maxID": 5}], "incorrect trunk minID parameter"),
    "minID-large": ([{"minID": 4095, "maxID": 4096}], "incorrect trunk minID parameter"),
    "maxID-large": ([{"minID": 5, "maxID": 4095}], "incorrect trunk maxID parameter"),
    "maxID-negative": ([{"minID": 5, "maxID": -1}], "incorrect trunk maxID parameter"),
    "id-large": ([{"id": 4095}], "incorrect trunk id parameter"),
    "id-negative": ([{"id": -1}], "incorrect trunk id parameter"),
    "id-zero": ([{"id": 0}], "incorrect trunk id parameter"),
    "reversed": ([{"minID": 10, "maxID": 5}], "minID is greater than maxID in trunk parameter"),
    "the-second-item": ([{"id": 7}, {"id": 5000}], "incorrect trunk id parameter"),
    "both-and-a-bad-id": ([{"minID": 5, "maxID": 6, "id": 4095}], "incorrect trunk id parameter"),
}


@pytest.mark.parametrize("name", TRUNKS)
def test_a_trunk_that_cannot_be(node: Node, pod: Sandbox, program: str, name: str) -> None:
    trunk, message = TRUNKS[name]
    assert message in refusal(node, pod, program, vlanTrunk=trunk)["msg"]


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "hairpin-and-promisc": (
        {"hairpinMode": True, "promiscMode": True},
        "cannot set hairpin mode and promiscuous mode at the same time",
    ),
    "ipam-and-link-down": (
        {"disableContainerInterface": True, "ipam": {"type": "host-local"}},
        "cannot use IPAM when DisableContainerInterface flag is set",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_keys_that_contradict_each_other(node: Node, pod: Sandbox, program: str, name: str) -> None:
    keys, message = CONTRADICTIONS[name]
    assert refusal(node, pod, program, **keys)["msg"] == message


OUR_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "ipspoofchk-without-addresses": (
        {"ipspoofchk": True},
        "ipspoofchk: without ipam there are no addresses to allow",
    ),
    "mtu-negative": ({"mtu": -1}, "mtu: -1 is not between 68 and 65535"),
    "mtu-small": ({"mtu": 67}, "mtu: 67 is not between 68 and 65535"),
    "mtu-large": ({"mtu": 65536}, "mtu: 65536 is not between 68 and 65535"),
    "compat": ({"compat": "v9"}, 'compat: "v9" is not known, only "v1.5" is'),
    "backend": ({"ipMasqBackend": "pf"}, 'unknown ipmasq backend "pf"'),
    "bridge-empty": ({"bridge": ""}, "bridge: an empty name"),
    "bridge-long": ({"bridge": "b" * 16}, 'bridge: "bbbbbbbbbbbbbbbb" is longer than 15 characters'),
    "bridge-dots": ({"bridge": ".."}, 'bridge: ".." cannot be the name of an interface'),
    "bridge-all": ({"bridge": "all"}, 'bridge: "all" cannot be the name of an interface'),
    "bridge-slash": ({"bridge": "a/b"}, 'bridge: "a/b" has a character no name of an interface can have'),
    "bridge-template": (
        {"bridge": "br%d"},
        'bridge: "br%d" has a character no name of an interface can have',
    ),
    "bridge-newline": ({"bridge": "br\n"}, "has a character no name of an interface can have"),
    "mac-of-a-group": (
        {"runtimeConfig": {"mac": "01:00:5e:00:00:01"}},
        'runtimeConfig.mac: "01:00:5e:00:00:01" is a multicast MAC address',
    ),
    "mac-zero": (
        {"args": {"cni": {"mac": "00:00:00:00:00:00"}}},
        'args.cni.mac: "00:00:00:00:00:00" cannot be the MAC address of an interface',
    ),
    "mac-short": (
        {"args": {"cni": {"mac": "02:00"}}},
        'args.cni.mac: "02:00" is not a MAC address',
    ),
    "vlan-link-name": (
        {"bridge": "a-long-bridge", "vlan": 100, "isGateway": True, "ipam": {"type": "host-local"}},
        "isGateway: the gateway of VLAN 100 would be called a-long-bridge.100, "
        "which is longer than 15 characters",
    ),
}


@pytest.mark.parametrize("name", OUR_REFUSALS)
def test_values_that_cannot_be_are_refused_by_name(node: Node, pod: Sandbox, name: str) -> None:
    keys, message = OUR_REFUSALS[name]
    error = refusal(node, pod, OURS, **keys)
    assert error["code"] == 7
    assert message in error["msg"]


FLAGS = [
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "ipMasq",
    "hairpinMode",
    "promiscMode",
    "preserveDefaultVlan",
    "macspoofchk",
    "enabledad",
    "disableContainerInterface",
    "portIsolation",
]
OUR_FLAGS = ["ipspoofchk", "dhcpGuard", "raGuard"]
NUMBERS = ["mtu", "vlan"]
TEXTS = ["bridge", "ipMasqBackend"]
OBJECTS = ["ipam", "args", "runtimeConfig", "dns"]

WRONG: list[tuple[str, Any, str]] = [
    *[(key, "true", f"{key}: expected true or false, got a string") for key in FLAGS],
    *[(key, 1, f"{key}: expected true or false, got an integer") for key in FLAGS],
    *[(key, "5", f"{key}: expected an integer, got a string") for key in NUMBERS],
    *[
        (key, 1.5, f"{key}: expected an integer, got a number with a fraction or exponent")
        for key in NUMBERS
    ],
    *[(key, True, f"{key}: expected an integer, got true") for key in NUMBERS],
    *[(key, 5, f"{key}: expected a string, got an integer") for key in TEXTS],
    *[(key, ["x"], f"{key}: expected a string, got a list") for key in TEXTS],
    *[(key, "x", f"{key}: expected an object, got a string") for key in OBJECTS],
    *[(key, [], f"{key}: expected an object, got a list") for key in OBJECTS],
    ("vlanTrunk", {"id": 5}, "vlanTrunk: expected a list of objects, got an object"),
    ("vlanTrunk", [5], "vlanTrunk[0]: expected an object, got an integer"),
    ("vlanTrunk", [{"id": "5"}], "vlanTrunk[0].id: expected an integer, got a string"),
    ("vlanTrunk", [{"minID": 1.5, "maxID": 2}], "vlanTrunk[0].minID: expected an integer"),
    ("ipam", {"type": 5}, "ipam.type: expected a string, got an integer"),
    ("args", {"cni": []}, "args.cni: expected an object, got a list"),
    ("args", {"cni": {"mac": 5}}, "args.cni.mac: expected a string, got an integer"),
    ("runtimeConfig", {"mac": []}, "runtimeConfig.mac: expected a string, got a list"),
    ("dns", {"nameservers": "192.0.2.1"}, "dns.nameservers: expected a list of strings, got a string"),
    ("dns", {"nameservers": [5]}, "dns.nameservers[0]: expected a string, got an integer"),
    ("dns", {"domain": []}, "dns.domain: expected a string, got a list"),
    ("dns", {"search": "x"}, "dns.search: expected a list of strings, got a string"),
    ("dns", {"options": {}}, "dns.options: expected a list of strings, got an object"),
]
OUR_WRONG: list[tuple[str, Any, str]] = [
    *[(key, "true", f"{key}: expected true or false, got a string") for key in OUR_FLAGS],
    ("compat", 1.5, "compat: expected a string, got a number with a fraction or exponent"),
]
BOTH_WRONG = [
    pytest.param(program.values[0], *case, id=f"{program.id}-{case[0]}-{json.dumps(case[1])}")
    for program in PROGRAMS
    for case in WRONG
]


@pytest.mark.parametrize(("program", "key", "value", "message"), BOTH_WRONG)
def test_a_value_of_the_wrong_type(
    node: Node, pod: Sandbox, program: str, key: str, value: object, message: str
) -> None:
    error = refusal(node, pod, program, **{key: value})
    if program == OURS:
        assert error["code"] == 7
        assert message in error["msg"]
    else:
        assert "cannot unmarshal" in error["msg"]


@pytest.mark.parametrize(("key", "value", "message"), OUR_WRONG, ids=[case[0] for case in OUR_WRONG])
def test_a_value_of_the_wrong_type_for_a_key_of_ours(
    node: Node, pod: Sandbox, key: str, value: object, message: str
) -> None:
    error = refusal(node, pod, OURS, **{key: value})
    assert (error["code"], error["msg"]) == (7, message)


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
@pytest.mark.parametrize("key", ["name", "cniVersion"])
def test_a_key_of_every_plugin_with_the_wrong_type(
    node: Node, pod: Sandbox, program: str, command: str, key: str
) -> None:
    config = {**Network(node, program).config, key: 5}
    assert node.cni(program, command, config, pod).error()["code"] == 6


def test_unknown_keys_change_nothing(node: Node, pod: Sandbox, program: str) -> None:
    unknown: dict[str, Any] = {
        "deviceID": "0000:00:01.0",
        "x": {"vlan": 5000},
        "capabilities": {"mac": True},
        "": None,
        "ü": [],
    }
    result = Network(node, program, **unknown).add(pod, unknown_keys=True).ok()
    assert len(result["interfaces"]) == 3


def test_null_is_the_default(node: Node, pod: Sandbox, program: str) -> None:
    keys = dict.fromkeys([*FLAGS, *NUMBERS, *OBJECTS, "vlanTrunk", "ipMasqBackend"])
    result = Network(node, program, **keys).add(pod).ok()
    assert len(result["interfaces"]) == 3
    assert (node.link("bridge0") or {})["linkinfo"]["info_data"]["vlan_filtering"] == 0


@pytest.mark.parametrize("bridge", ["BRIDGE", "Bridge", "bRIDGE"])
def test_the_case_of_keys_does_not_matter(node: Node, pod: Sandbox, program: str, bridge: str) -> None:
    network = Network(
        node, program, **{bridge: "br7", "PORTISOLATION": True, "HairpinMode": True, "MTU": 1400}
    )
    del network.config["bridge"]
    network.add(pod).ok()
    port = ports(node, "br7")[0]
    assert port_flag(node, port, "isolated")
    assert port_flag(node, port, "hairpin")
    assert (pod.link("eth0") or {})["mtu"] == 1400


def test_the_later_of_two_equal_keys_counts(node: Node, pod: Sandbox, program: str) -> None:
    text = json.dumps(Network(node, program).config)[:-1] + ', "Bridge": "br1", "mtu": 1300, "MTU": 1400}'
    node.cni(program, "ADD", text, pod).ok()
    assert ports(node, "br1") != []
    assert (pod.link("eth0") or {})["mtu"] == 1400


def test_white_space_around_the_document_is_fine(node: Node, pod: Sandbox, program: str) -> None:
    node.cni(program, "ADD", f" \r\n\t{json.dumps(Network(node, program).config)}\n \n", pod).ok()


def test_a_large_document_is_read_whole(node: Node, pod: Sandbox, program: str) -> None:
    Network(node, program, ballast="x" * 3_000_000).add(pod, unknown_keys=True).ok()


# `mtu` is the pod's; a bridge that is there already keeps its own.
def test_an_mtu_larger_than_that_of_the_bridge(node: Node, pod: Sandbox, program: str) -> None:
    node.run("ip", "link", "add", "bridge0", "type", "bridge")
    for mtu in ("1400", "1500"):  # once it has been changed, it does not follow the ports any more
        node.run("ip", "link", "set", "bridge0", "mtu", mtu)
    outcome = Network(node, program, mtu=9000).add(pod)
    outcome.ok()
    assert (pod.link("eth0") or {})["mtu"] == 9000
    assert (node.link("bridge0") or {})["mtu"] == 1500
    if program == OURS:
        assert "mtu 9000: bridge bridge0 keeps 1500" in outcome.stderr


def test_an_address_managers_own_keys_are_its_own(node: Node, pod: Sandbox, program: str) -> None:
    ipam = host_local(node, "10.1.2.0/24", unknown=[1, 2], RangeStart="10.1.2.77")
    result = Network(node, program, ipam=ipam).add(pod).ok()
    assert result["ips"][0]["address"] == "10.1.2.77/24"
