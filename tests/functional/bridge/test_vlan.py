"""A port is in the VLANs that `vlan`, `vlanTrunk` and `preserveDefaultVlan` name, and in no other.

These tests need a kernel whose bridges can filter VLANs.

Two versions are enough here: results of all of them are compared elsewhere.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.functional.bridge.bridge_network import (
    OURS,
    Network,
    assert_attached,
    assert_gone,
    default_gateway,
    host_local,
    kind,
    leases,
    ports,
    where_the_reference_errs,
)
from tests.functional.bridge.test_l3 import DUAL, TRIPLE, V4, V6, gateway
from tests.harness import CHECKABLE, Node, Sandbox

pytestmark = pytest.mark.vlan
VERSIONS = ["0.3.1", "1.1.0"]  # taken in turns: a machine that runs this is slow
TRUNK = [{"id": 101}, {"minID": 200, "maxID": 210}]
TAGGED = {101, *range(200, 211)}


def vlans(node: Sandbox, port: str) -> dict[int, set[str]]:
    """The VLANs of a port, with their flags."""
    shown = json.loads(node.run("bridge", "-j", "vlan", "show", "dev", port).stdout)
    return {item["vlan"]: set(item.get("flags", [])) for entry in shown for item in entry["vlans"]}


NATIVE = {"PVID", "Egress Untagged"}
LAYER_2: dict[str, tuple[dict[str, Any], dict[int, set[str]]]] = {
    "vlan": ({"vlan": 100}, {100: NATIVE}),
    "vlan-and-default": ({"vlan": 100, "preserveDefaultVlan": True}, {1: {"Egress Untagged"}, 100: NATIVE}),
    "vlan-only": ({"vlan": 100, "preserveDefaultVlan": False}, {100: NATIVE}),
    "trunk": ({"vlanTrunk": TRUNK}, {1: NATIVE, **{vid: set() for vid in TAGGED}}),
    "both": ({"vlan": 100, "vlanTrunk": TRUNK}, {100: NATIVE, **{vid: set() for vid in TAGGED}}),
    "empty-trunk": ({"vlanTrunk": []}, {1: NATIVE}),
    "overlapping": (
        {"vlanTrunk": [{"minID": 7, "maxID": 9}, {"id": 8}, {"id": 5, "minID": 9, "maxID": 10}]},
        {1: NATIVE, **{vid: set[str]() for vid in (5, 7, 8, 9, 10)}},
    ),
}


@pytest.mark.parametrize(("name", "version"), list(zip(LAYER_2, VERSIONS * len(LAYER_2), strict=False)))
def test_a_port_is_in_its_vlans(node: Node, pod: Sandbox, program: str, version: str, name: str) -> None:
    keys, expected = LAYER_2[name]
    network = Network(node, program, version, **keys)
    result = assert_attached(network, pod, network.add(pod))
    assert vlans(node, ports(node)[0]) == expected
    if program == OURS and version in CHECKABLE:
        assert network.check(pod, result).ok() is None
    network.delete(pod).ok()
    assert_gone(network, pod)


DEFAULT_VLAN: dict[str, dict[str, bool]] = {"unsaid": {}, "without": {"preserveDefaultVlan": False}}
GATEWAYS = [
    pytest.param(VERSIONS[(number + offset) % 2], DEFAULT_VLAN[said], subnets, id=f"{name}-{said}")
    for offset, said in enumerate(DEFAULT_VLAN)
    for number, (name, subnets) in enumerate((("v4", V4), ("v6", V6), ("dual", DUAL), ("triple", TRIPLE)))
]


@pytest.mark.parametrize(("version", "keys", "subnets"), GATEWAYS)
def test_the_node_is_gateway_of_a_vlan_by_a_link_of_its_own(
    node: Node, pod: Sandbox, program: str, version: str, keys: dict[str, bool], subnets: tuple[str, ...]
) -> None:
    config: dict[str, Any] = {"isDefaultGateway": True, "vlan": 100, **keys}
    network = Network(node, program, version, ipam=host_local(node, *subnets), **config)
    result = assert_attached(network, pod, network.add(pod))
    assert [interface["name"] for interface in result["interfaces"]][3] == "bridge0.100"
    own = node.link("bridge0.100")
    assert own is not None
    assert kind(own) == "veth"
    peer = next(link for link in node.links().values() if link["ifindex"] == own["ifindex"] - 1)
    assert vlans(node, peer["ifname"]) == {100: NATIVE}
    for family, letter in (("inet", "."), ("inet6", ":")):
        wanted = sorted(gateway(subnet) for subnet in subnets if letter in subnet)
        assert sorted(node.addresses("bridge0.100", family=family)) == wanted
        assert node.addresses("bridge0", family=family) == []
        assert default_gateway(pod, "-4" if family == "inet" else "-6") == (
            gateway(next(subnet for subnet in subnets if letter in subnet)).split("/")[0] if wanted else ""
        )
    if version in CHECKABLE:
        assert network.check(pod, result).ok() is None
    network.delete(pod).ok()
    assert_gone(network, pod)
    assert leases(node) == []
    assert node.link("bridge0.100") is not None
    network.delete(pod).ok()


@pytest.mark.parametrize(
    ("version", "keys"),
    [
        ("0.1.0", {"vlan": 100}),
        ("0.2.0", {"vlanTrunk": TRUNK}),
        ("0.1.0", {"vlan": 100, "vlanTrunk": TRUNK}),
    ],
    ids=["vlan", "trunk", "both"],
)
def test_the_oldest_versions_refuse_layer_2_with_vlans_too(
    node: Node, pod: Sandbox, program: str, version: str, keys: dict[str, Any]
) -> None:
    error = Network(node, program, version, **keys).add(pod).error()
    assert "cannot convert: no valid IP addresses" in error["msg"]


def test_the_second_pod_of_a_vlan_finds_its_gateway(node: Node, program: str) -> None:
    config: dict[str, Any] = {"isDefaultGateway": True, "vlan": 100}
    network = Network(node, program, ipam=host_local(node, *V4), **config)
    pods = [node.pod(), node.pod()]
    for number, pod in enumerate(pods):
        network.add(pod, container_id=f"vm-{number}").ok()
    own = [name for name in node.links() if name.startswith("bridge0.")]
    assert own == ["bridge0.100"]
    for destination in ("10.1.2.1", "10.1.2.3"):
        assert pods[0].run("ping", "-qc1", "-w5", destination, check=False).returncode == 0


def test_pods_of_different_vlans_do_not_hear_each_other(node: Node, program: str) -> None:
    pods = [node.pod() for _ in range(3)]
    for number, (pod, vlan) in enumerate(zip(pods, (100, 100, 200), strict=True)):
        Network(node, program, vlan=vlan).add(pod, container_id=f"vm-{number}").ok()
        pod.run("ip", "addr", "add", f"10.0.0.{number + 1}/24", "dev", "eth0")
    assert pods[0].run("ping", "-qc1", "-w5", "10.0.0.2", check=False).returncode == 0
    assert pods[0].run("ping", "-qc1", "-w2", "10.0.0.3", check=False).returncode == 1


def test_a_trunk_carries_tagged_frames_of_its_vlans_only(node: Node, program: str) -> None:
    trunk, member = node.pod(), node.pod()
    Network(node, program, vlanTrunk=[{"id": 100}, {"id": 300}]).add(trunk, container_id="trunk").ok()
    Network(node, program, vlan=100).add(member, container_id="member").ok()
    member.run("ip", "addr", "add", "10.0.0.2/24", "dev", "eth0")
    for vid, expected in ((100, 0), (300, 1)):
        trunk.run("ip", "link", "add", f"eth0.{vid}", "link", "eth0", "type", "vlan", "id", str(vid))
        trunk.run("ip", "addr", "add", "10.0.0.1/24", "dev", f"eth0.{vid}")
        trunk.run("ip", "link", "set", f"eth0.{vid}", "up")
        assert trunk.run("ping", "-qc1", "-w2", "10.0.0.2", check=False).returncode == expected
        trunk.run("ip", "link", "del", f"eth0.{vid}")


def test_a_trunk_of_every_vlan(node: Node, pod: Sandbox, program: str) -> None:
    network = Network(node, program, vlanTrunk=[{"minID": 2, "maxID": 4094}])
    network.add(pod).ok()
    assert vlans(node, ports(node)[0]) == {1: NATIVE, **{vid: set[str]() for vid in range(2, 4095)}}
    network.delete(pod).ok()


@where_the_reference_errs("it adds the native VLAN once more without its flags")
@pytest.mark.parametrize(
    "trunk", [[{"id": 100}, {"id": 101}], [{"minID": 99, "maxID": 101}]], ids=["id", "range"]
)
def test_the_native_vlan_stays_native_when_the_trunk_has_it_too(
    node: Node, pod: Sandbox, program: str, trunk: list[dict[str, int]]
) -> None:
    Network(node, program, vlan=100, vlanTrunk=trunk).add(pod).ok()
    assert vlans(node, ports(node)[0])[100] == NATIVE


def test_the_older_default_can_be_asked_for(node: Node, pod: Sandbox) -> None:
    Network(node, OURS, vlan=100, compat="v1.5").add(pod).ok()
    assert vlans(node, ports(node)[0]) == LAYER_2["vlan-and-default"][1]


DAMAGES: dict[str, tuple[list[str], str]] = {
    "missing": (["del", "vid", "100"], "100"),
    "one-more": (["add", "vid", "77"], "77"),
    "not-native": (["add", "vid", "100"], "100"),
    "trunk-missing": (["del", "vid", "205"], "205"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_check_finds_a_port_in_the_wrong_vlans(node: Node, pod: Sandbox, name: str) -> None:
    command, message = DAMAGES[name]
    network = Network(node, OURS, vlan=100, vlanTrunk=TRUNK)
    result = network.add(pod).ok()
    assert network.check(pod, result).ok() is None
    node.run("bridge", "vlan", command[0], "dev", ports(node)[0], *command[1:])
    assert message in network.check(pod, result).error()["msg"]


# A VLAN on a bridge that does not filter is an error; here the kernel could filter.
@pytest.mark.parametrize("keys", [{"vlan": 33}, {"vlanTrunk": TRUNK}], ids=["vlan", "trunk"])
def test_an_existing_bridge_without_filtering_is_refused(
    node: Node, pod: Sandbox, keys: dict[str, Any]
) -> None:
    node.run("ip", "link", "add", "bridge0", "type", "bridge")
    network = Network(node, OURS, **keys)
    assert "bridge bridge0 does not filter VLANs" in network.add(pod).error()["msg"]
    assert ports(node) == []
    node.run("ip", "link", "set", "bridge0", "type", "bridge", "vlan_filtering", "1")
    network.add(pod).ok()


def test_a_bridge_with_another_default_vlan(node: Node, pod: Sandbox, program: str) -> None:
    options = ("vlan_filtering", "1", "vlan_default_pvid", "5")
    node.run("ip", "link", "add", "bridge0", "type", "bridge", *options)
    Network(node, program, vlan=100).add(pod).ok()
    assert vlans(node, ports(node)[0]) == {100: NATIVE}
