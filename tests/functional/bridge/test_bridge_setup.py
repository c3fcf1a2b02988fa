"""ADD makes the bridge when it is missing, uses one that is there, and DEL keeps it."""

from __future__ import annotations

import pytest

from tests.functional.bridge.bridge_network import (
    OURS,
    Network,
    assert_attached,
    assert_gone,
    host_local,
    kind,
)
from tests.harness import VERSIONS, Node, Sandbox

each_version = pytest.mark.parametrize("version", VERSIONS)


@each_version
def test_a_missing_bridge_is_made_with_the_wanted_mtu(
    node: Node, pod: Sandbox, program: str, version: str
) -> None:
    network = Network(node, program, version, mtu=5000, ipam=host_local(node, "10.1.2.0/24"))
    assert_attached(network, pod, network.add(pod))
    bridge, inside = node.link("bridge0"), pod.link("eth0")
    assert bridge is not None
    assert inside is not None
    assert bridge["mtu"] == inside["mtu"] == 5000
    assert bridge["promiscuity"] == 0
    assert "UP" in bridge["flags"]
    network.delete(pod).ok()
    assert_gone(network, pod)


@each_version
def test_a_bridge_that_was_there_is_used_as_it_is(
    node: Node, pod: Sandbox, program: str, version: str
) -> None:
    node.run("ip", "link", "add", "bridge0", "type", "bridge")
    before = node.link("bridge0")
    network = Network(node, program, version, ipam=host_local(node, "10.1.2.0/24"))
    assert_attached(network, pod, network.add(pod))
    after = node.link("bridge0")
    assert before is not None
    assert after is not None
    assert before["ifindex"] == after["ifindex"]


@pytest.mark.parametrize(
    ("key", "value"), [("vlan", 33), ("vlanTrunk", [{"id": 33}]), ("vlanTrunk", [])], ids=repr
)
def test_a_kernel_whose_bridges_do_not_filter_vlans_is_named(
    node: Node, pod: Sandbox, key: str, value: object
) -> None:
    outcome = Network(node, OURS, **{key: value}).add(pod)
    if outcome.code == 0:
        pytest.skip("this kernel's do")
    error = outcome.error()
    assert (error["code"], "CONFIG_BRIDGE_VLAN_FILTERING" in error["msg"]) == (7, True)
    assert error["msg"].startswith(key)


@each_version
def test_promisc_mode_makes_the_bridge_promiscuous(
    node: Node, pod: Sandbox, program: str, version: str
) -> None:
    network = Network(node, program, version, promiscMode=True, ipam=host_local(node, "10.1.2.0/24"))
    assert_attached(network, pod, network.add(pod))
    bridge = node.link("bridge0")
    assert bridge is not None
    assert bridge["promiscuity"] == 1
    network.with_(promiscMode=False).delete(pod).ok()
    assert (node.link("bridge0") or {})["promiscuity"] == 1, "nothing ever turns it off"


@each_version
@pytest.mark.parametrize("subnet", ["10.1.2.0/24", "2001:db8:42::/64"], ids=["v4", "v6"])
def test_the_bridge_keeps_its_mac_through_add_and_delete(
    node: Node, pod: Sandbox, program: str, version: str, subnet: str
) -> None:
    node.run("ip", "link", "add", "bridge0", "address", "02:11:22:33:44:55", "type", "bridge")
    network = Network(node, program, version, isDefaultGateway=True, ipam=host_local(node, subnet))
    assert_attached(network, pod, network.add(pod))
    network.delete(pod).ok()
    bridge = node.link("bridge0")
    assert bridge is not None
    assert bridge["address"] == "02:11:22:33:44:55"


@each_version
@pytest.mark.parametrize("subnet", ["10.1.2.0/24", "2001:db8:42::/64"], ids=["v4", "v6"])
def test_a_bridge_made_by_one_add_has_the_same_mac_after_the_delete(
    node: Node, pod: Sandbox, program: str, version: str, subnet: str
) -> None:
    network = Network(node, program, version, isDefaultGateway=True, ipam=host_local(node, subnet))
    assert_attached(network, pod, network.add(pod))
    during = (node.link("bridge0") or {})["address"]
    network.delete(pod).ok()
    assert (node.link("bridge0") or {})["address"] == during


def test_a_layer_2_bridge_of_ours_keeps_its_mac_whatever_ports_come_and_go(node: Node) -> None:
    network = Network(node, OURS)
    macs: set[str] = set()
    for number in range(6):
        pod = node.pod()
        result = network.add(pod, container_id=f"vm-{number}").ok()
        macs.add(result["interfaces"][0]["mac"])
        if number % 2:
            network.delete(pod, container_id=f"vm-{number}").ok()
        macs.add((node.link("bridge0") or {})["address"])
    assert len(macs) == 1, macs


def test_a_link_of_another_kind_is_not_taken_for_a_bridge(node: Node, pod: Sandbox, program: str) -> None:
    node.run("ip", "link", "add", "bridge0", "type", "veth", "peer", "name", "other")
    error = Network(node, program).add(pod).error()
    assert '"bridge0" already exists but is not a bridge' in error["msg"]
    assert kind(node.link("bridge0")) == "veth"
    assert pod.link("eth0") is None


def test_the_bridge_is_called_cni0_by_default(node: Node, pod: Sandbox, program: str) -> None:
    network = Network(node, program)
    del network.config["bridge"]
    network.add(pod).ok()
    assert kind(node.link("cni0")) == "bridge"
    network.delete(pod).ok()


def test_a_bridge_ignores_router_advertisements(node: Node, pod: Sandbox, program: str) -> None:
    Network(node, program).add(pod).ok()
    assert node.run("sysctl", "-n", "net.ipv6.conf.bridge0.accept_ra").stdout.strip() == "0"
