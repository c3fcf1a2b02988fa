"""Layer 2: without `ipam` a port has no addresses. Ports with VLANs are in test_vlan."""

from __future__ import annotations

from typing import Any

import pytest

from tests.functional.bridge.bridge_network import (
    LEGACY,
    OURS,
    Network,
    assert_attached,
    assert_gone,
    port_flag,
    ports,
    where_the_reference_errs,
)
from tests.harness import VERSIONS, Node, Sandbox

CURRENT = [version for version in VERSIONS if version not in LEGACY]
each_current_version = pytest.mark.parametrize("version", CURRENT)


@each_current_version
@pytest.mark.parametrize("ipam", [{}, None, {"type": ""}], ids=["empty", "absent", "no-type"])
def test_a_port_without_addresses(
    node: Node, pod: Sandbox, program: str, version: str, ipam: dict[str, str] | None
) -> None:
    network = Network(node, program, version, **({} if ipam is None else {"ipam": ipam}))
    result = assert_attached(network, pod, network.add(pod))
    assert "ips" not in result
    assert pod.addresses("eth0") == pod.addresses("eth0", family="inet6") == []
    network.delete(pod).ok()
    assert_gone(network, pod)
    network.delete(pod).ok()


@pytest.mark.parametrize("version", LEGACY)
@pytest.mark.parametrize("keys", [{}, {"vlan": 100}, {"vlanTrunk": [{"id": 101}]}], ids=str)
def test_versions_whose_results_need_an_address_are_refused(
    node: Node, pod: Sandbox, program: str, version: str, keys: dict[str, Any]
) -> None:
    if program == OURS or not keys:
        network = Network(node, program, version, ipam={}, **keys)
        assert "cannot convert: no valid IP addresses" in network.add(pod).error()["msg"]
        network.delete(pod).ok()
        assert pod.link("eth0") is None
        assert ports(node) == []


@pytest.mark.parametrize("version", LEGACY)
@where_the_reference_errs("it makes everything and then cannot print the result")
def test_nothing_is_made_for_a_result_that_cannot_be_printed(
    node: Node, pod: Sandbox, program: str, version: str
) -> None:
    Network(node, program, version, ipam={}).add(pod).error()
    assert pod.link("eth0") is None
    assert list(node.links()) == ["lo"]


@each_current_version
def test_the_link_in_the_pod_can_be_left_down(node: Node, pod: Sandbox, program: str, version: str) -> None:
    network = Network(node, program, version, disableContainerInterface=True)
    assert_attached(network, pod, network.add(pod))
    inside = pod.link("eth0")
    assert inside is not None
    assert inside["operstate"] == "DOWN"
    assert "UP" not in inside["flags"]
    assert pod.ip("-6", "addr", "show", "dev", "eth0") == []
    network.delete(pod).ok()
    assert_gone(network, pod)


def test_addresses_for_a_link_left_down_are_refused(node: Node, pod: Sandbox, program: str) -> None:
    network = Network(node, program, disableContainerInterface=True, ipam={"type": "host-local"})
    error = network.add(pod).error()
    assert error["msg"] == "cannot use IPAM when DisableContainerInterface flag is set"
    assert pod.link("eth0") is None


@each_current_version
@pytest.mark.parametrize(
    ("keys", "isolated"),
    [({}, False), ({"portIsolation": False}, False), ({"portIsolation": True}, True)],
    ids=["unsaid", "off", "on"],
)
def test_port_isolation(
    node: Node, pod: Sandbox, program: str, version: str, keys: dict[str, Any], isolated: bool
) -> None:
    network = Network(node, program, version, **keys)
    assert_attached(network, pod, network.add(pod))
    assert port_flag(node, ports(node)[0], "isolated") is isolated


@pytest.mark.parametrize(
    ("keys", "hairpin"), [({}, False), ({"hairpinMode": True}, True)], ids=["unsaid", "on"]
)
def test_hairpin_mode(node: Node, pod: Sandbox, program: str, keys: dict[str, Any], hairpin: bool) -> None:
    Network(node, program, **keys).add(pod).ok()
    assert port_flag(node, ports(node)[0], "hairpin") is hairpin


def test_isolated_pods_do_not_hear_each_other_and_others_do(node: Node, program: str) -> None:
    pods = [node.pod() for _ in range(3)]
    for number, pod in enumerate(pods):
        network = Network(node, program, portIsolation=number < 2)
        network.add(pod, container_id=f"vm-{number}").ok()
        pod.run("ip", "addr", "add", f"10.0.0.{number + 1}/24", "dev", "eth0")
    assert pods[0].run("ping", "-qc1", "-w10", "10.0.0.3", check=False).returncode == 0
    assert pods[0].run("ping", "-qc1", "-W1", "10.0.0.2", check=False).returncode == 1


def test_an_interface_name_that_is_taken_is_left_alone(node: Node, pod: Sandbox, program: str) -> None:
    pod.run("ip", "link", "add", "eth0", "type", "bridge")
    error = Network(node, program).add(pod).error()
    assert "eth0" in error["msg"]
    assert "already exists" in error["msg"]
    assert ports(node) == []
    assert (pod.link("eth0") or {})["linkinfo"]["info_kind"] == "bridge"


def test_adding_twice_is_refused_and_the_first_stays(node: Node, pod: Sandbox, program: str) -> None:
    network = Network(node, program)
    network.add(pod).ok()
    before = node.links().keys()
    assert "already exists" in network.add(pod).error()["msg"]
    assert node.links().keys() == before
    assert (pod.link("eth0") or {})["operstate"] == "UP"


def test_one_pod_can_have_several_interfaces_on_one_bridge(node: Node, pod: Sandbox, program: str) -> None:
    network = Network(node, program)
    for ifname in ("net1", "net2"):
        network.add(pod, ifname=ifname).ok()
    assert len(ports(node)) == 2
    network.delete(pod, ifname="net1").ok()
    assert pod.link("net1") is None
    assert pod.link("net2") is not None
