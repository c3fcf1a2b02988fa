"""Two networks share a bridge as gateway: addresses that conflict are refused without `forceAddress`."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests.functional.bridge.bridge_network import (
    Network,
    default_gateway,
    host_local,
    leases,
    ports,
    where_the_reference_errs,
)
from tests.harness import VERSIONS, Node, Sandbox


class Pair(NamedTuple):
    """Two subnets with their gateways, and whether a bridge can have both."""

    family: str
    first: tuple[str, str]
    second: tuple[str, str]
    compatible: bool = False


V4 = Pair("inet", ("10.0.0.0/8", "10.0.0.1"), ("10.1.0.0/16", "10.1.2.3"))
V6 = Pair("inet6", ("2001:db8:1::/48", "2001:db8:1::1"), ("2001:db8:1:2::/64", "2001:db8:1:2::1"))
DISJOINT = Pair("inet6", ("2001:db8:1:2::/64", "2001:db8:1:2::1"), ("fd00:1234::/64", "fd00:1234::1"), True)
PAIRS = [
    pytest.param(V4, id="v4"),
    pytest.param(V6, id="v6-overlapping"),
    pytest.param(DISJOINT, id="v6-disjoint"),
]


def gatewayed(
    node: Node, program: str, version: str, name: str, pool: tuple[str, str], **keys: Any
) -> Network:
    ipam = host_local(node, pool[0], gateway=pool[1])
    return Network(node, program, version, name=name, isGateway=True, ipam=ipam, **keys)


def address(pool: tuple[str, str]) -> str:
    return f"{pool[1]}/{pool[0].split('/')[1]}"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_second_gateway_that_conflicts_is_refused(
    node: Node, program: str, version: str, pair: Pair
) -> None:
    gatewayed(node, program, version, "one", pair.first).add(node.pod()).ok()
    second = gatewayed(node, program, version, "two", pair.second)
    outcome = second.add(node.pod(), container_id="dummy-1")
    held = set(node.addresses("bridge0", family=pair.family))
    if pair.compatible:
        outcome.ok()
        assert held == {address(pair.first), address(pair.second)}
        return
    expected = f'"bridge0" already has an IP address different from {address(pair.second)}'
    assert expected in outcome.error()["msg"]
    assert held == {address(pair.first)}
    assert leases(node, "two") == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_second_gateway_replaces_the_first_when_forced(
    node: Node, program: str, version: str, pair: Pair
) -> None:
    gatewayed(node, program, version, "one", pair.first).add(node.pod()).ok()
    second = gatewayed(node, program, version, "two", pair.second, forceAddress=True)
    second.add(node.pod(), container_id="dummy-1").ok()
    kept = {address(pair.first)} if pair.compatible else set[str]()
    assert set(node.addresses("bridge0", family=pair.family)) == kept | {address(pair.second)}


@where_the_reference_errs("a bridge without ports has no MAC, and it sets that one: issue 620")
def test_a_gateway_comes_to_a_bridge_whose_last_port_has_gone(
    node: Node, pod: Sandbox, program: str
) -> None:
    plain = Network(node, program, name="plain")
    plain.add(pod).ok()
    plain.delete(pod).ok()
    network = Network(node, program, isDefaultGateway=True, ipam=host_local(node, "10.1.2.0/24"))
    result = network.add(pod).ok()
    assert result["interfaces"][0]["mac"] == (node.link("bridge0") or {})["address"] != "00:00:00:00:00:00"
    assert default_gateway(pod) == "10.1.2.1"


def test_a_gateway_is_added_deleted_and_added_again(node: Node, pod: Sandbox, program: str) -> None:
    network = Network(node, program, isDefaultGateway=True, ipam=host_local(node, "10.1.2.0/24"))
    for _ in range(3):
        network.add(pod).ok()
        assert pod.run("ping", "-qc1", "-w10", "10.1.2.1", check=False).returncode == 0
        network.delete(pod).ok()
        assert ports(node) == []


@pytest.mark.parametrize("keys", [{}, {"ipMasq": True}], ids=["gateway", "masquerade"])
def test_what_the_node_knows_of_its_pods_stays_when_others_come_and_go(
    node: Node, program: str, keys: dict[str, Any]
) -> None:
    """The kernel forgets all neighbours of a link whose MAC is set, to the one that it has, too."""
    network = Network(node, program, isGateway=True, ipam=host_local(node, "10.1.2.0/24"), **keys)
    network.add(node.pod()).ok()
    known = {"10.1.2.200": "permanent", "10.1.2.201": "reachable"}
    for ip, state in known.items():
        node.run("ip", "neigh", "add", ip, "lladdr", "02:00:00:00:00:01", "nud", state, "dev", "bridge0")
    other = node.pod()
    network.add(other, container_id="other").ok()
    assert {each["dst"] for each in node.ip("neigh", "show", "dev", "bridge0")} >= known.keys()
    network.delete(other, container_id="other").ok()
    assert {each["dst"] for each in node.ip("neigh", "show", "dev", "bridge0")} >= known.keys()


def test_two_pods_and_the_node_reach_each_other(node: Node, program: str) -> None:
    network = Network(
        node, program, isDefaultGateway=True, ipam=host_local(node, "10.1.2.0/24", "fd00::/64")
    )
    pods = [node.pod(), node.pod()]
    for number, pod in enumerate(pods):
        network.add(pod, container_id=f"vm-{number}").ok()
    for destination in ("10.1.2.1", "10.1.2.3", "fd00::1", "fd00::3"):
        assert pods[0].run("ping", "-qc1", "-w10", destination, check=False).returncode == 0, destination
