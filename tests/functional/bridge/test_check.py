"""CHECK succeeds right after ADD, and names what another program has changed since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.functional.bridge.bridge_network import (
    OURS,
    Network,
    host_local,
    ports,
    ruleset,
    where_the_reference_errs,
)
from tests.functional.bridge.snapshot import Roles, snapshot
from tests.harness import CHECKABLE, VERSIONS, Node, Sandbox

each_checkable = pytest.mark.parametrize("version", CHECKABLE)


@each_checkable
@where_the_reference_errs("it asks the address manager that is not there")
def test_a_port_without_addresses_is_found_as_it_should_be(
    node: Node, pod: Sandbox, program: str, version: str
) -> None:
    network = Network(node, program, version, macspoofchk=True, portIsolation=True, mtu=1400)
    result = network.add(pod).ok()
    assert network.check(pod, result).ok() is None


@each_checkable
@pytest.mark.parametrize(
    "keys",
    [
        {"promiscMode": True, "macspoofchk": True},
        {"hairpinMode": True, "mtu": 1400},
        {"ipMasq": True, "portIsolation": True},
        {"ipMasq": True, "ipMasqBackend": "nftables"},
    ],
    ids=str,
)
def test_a_port_with_addresses_is_found_as_it_should_be(
    node: Node, pod: Sandbox, program: str, version: str, keys: dict[str, Any]
) -> None:
    ipam = host_local(node, "10.1.2.0/24", "fd00::/64", routes=[{"dst": "198.51.100.0/24"}])
    network = Network(node, program, version, isDefaultGateway=True, ipam=ipam, **keys)
    result = network.add(pod).ok()
    assert network.check(pod, result).ok() is None


class Damage(NamedTuple):
    """Something that happens to an attachment, and what a CHECK then says (None: the reference is blind)."""

    do: Callable[[Node, Sandbox], object]
    said: str
    reference_notices: bool = True


def _on_port(*args: str) -> Callable[[Node, Sandbox], object]:
    return lambda node, _pod: node.run("ip", "link", "set", "dev", ports(node)[0], *args)


def _in_pod(*args: str) -> Callable[[Node, Sandbox], object]:
    return lambda _node, pod: pod.run("ip", *args)


def _on_node(*argv: str) -> Callable[[Node, Sandbox], object]:
    return lambda node, _pod: node.run(*argv)


DAMAGES = {
    "the-interface-is-gone": Damage(_in_pod("link", "del", "eth0"), "eth0"),
    "another-mac": Damage(
        _in_pod("link", "set", "eth0", "address", "02:00:00:00:00:99"), "02:00:00:00:00:99"
    ),
    "detached": Damage(_on_port("nomaster"), "veth"),
    "no-address": Damage(_in_pod("addr", "del", "10.1.2.2/24", "dev", "eth0"), "10.1.2.2"),
    "no-route": Damage(_in_pod("route", "del", "198.51.100.0/24"), "198.51.100.0"),
    "another-gateway": Damage(_in_pod("route", "replace", "default", "via", "10.1.2.77"), "10.1.2.1", False),
    "the-bridge-is-gone": Damage(_on_node("ip", "link", "del", "bridge0"), "bridge0"),
    "another-mtu": Damage(_in_pod("link", "set", "eth0", "mtu", "1300"), "1300", False),
    "hairpin-off": Damage(_on_port("type", "bridge_slave", "hairpin", "off"), "hairpin", False),
    "isolation-off": Damage(_on_port("type", "bridge_slave", "isolated", "off"), "isolat", False),
    "port-down": Damage(_on_port("down"), "veth", False),
    "interface-down": Damage(_in_pod("link", "set", "eth0", "down"), "eth0"),
    "no-guard": Damage(_on_node("nft", "flush", "ruleset"), "macspoofchk", False),
}
# What only ours has.
DAMAGES_OF_OURS = {
    "empty-chain": Damage(
        _on_node("nft", "flush", "chain", "bridge", "cnv_bridge", "rarp_source"), "cnv_bridge"
    ),
    "no-local-guard": Damage(
        _on_node("nft", "delete", "chain", "bridge", "cnv_bridge", "guard_local"), "cnv_bridge"
    ),
    "learning-bridge": Damage(
        _on_node("ip", "link", "set", "bridge0", "type", "bridge", "no_linklocal_learn", "0"),
        "no_linklocal_learn",
    ),
}


def damaged(node: Node, pod: Sandbox, program: str, damage: Damage) -> tuple[Network, dict[str, Any]]:
    ipam = host_local(node, "10.1.2.0/24", routes=[{"dst": "198.51.100.0/24"}])
    keys: dict[str, Any] = {
        "isDefaultGateway": True,
        "hairpinMode": True,
        "portIsolation": True,
        "macspoofchk": True,
    }
    network = Network(node, program, ipam=ipam, mtu=1400, **keys)
    result = network.add(pod).ok()
    assert network.check(pod, result).ok() is None
    damage.do(node, pod)
    return network, result


@pytest.mark.parametrize("name", DAMAGES)
def test_ours_finds_the_damage_and_names_it(node: Node, pod: Sandbox, name: str) -> None:
    damage = DAMAGES[name]
    network, result = damaged(node, pod, OURS, damage)
    error = network.check(pod, result).error()
    assert damage.said in error["msg"] + error.get("details", "")


@pytest.mark.parametrize("name", DAMAGES_OF_OURS)
def test_damage_to_the_guards_is_found_and_repaired_by_the_next_add(
    node: Node, pod: Sandbox, name: str
) -> None:
    damage = DAMAGES_OF_OURS[name]
    network, result = damaged(node, pod, OURS, damage)
    assert damage.said in network.check(pod, result).error()["msg"]
    network.add(node.pod(), container_id="another").ok()
    network.check(pod, result).ok()


@pytest.mark.parametrize("name", DAMAGES)
def test_the_reference_finds_some_of_it(node: Node, pod: Sandbox, name: str) -> None:
    damage = DAMAGES[name]
    network, result = damaged(node, pod, "bridge", damage)
    assert network.check(pod, result).code == int(damage.reference_notices)


def test_a_check_changes_nothing(node: Node, pod: Sandbox) -> None:
    network, result = damaged(node, pod, OURS, DAMAGES["no-address"])
    roles = Roles(node, pod, network.bridge)
    before = snapshot(node, pod, roles), ruleset(node)
    network.check(pod, result).error()
    assert (snapshot(node, pod, roles), ruleset(node)) == before


# An agent would put it back.
@pytest.mark.alone
def test_lost_masquerading_is_found(node: Node, pod: Sandbox) -> None:
    network = Network(node, OURS, isGateway=True, ipMasq=True, ipam=host_local(node, "10.1.2.0/24"))
    result = network.add(pod).ok()
    node.run("nft", "flush", "ruleset")
    assert "10.1.2.2" in network.check(pod, result).error()["msg"]


def test_a_result_of_before_is_required(node: Node, pod: Sandbox, program: str) -> None:
    network = Network(node, program, ipam=host_local(node, "10.1.2.0/24"))
    network.add(pod).ok()
    error = node.cni(program, "CHECK", network.config, pod).error()
    assert error["msg"].lower() == "required prevresult missing"


@pytest.mark.parametrize("version", [version for version in VERSIONS if version not in CHECKABLE])
def test_versions_without_check_refuse_it(node: Node, pod: Sandbox, program: str, version: str) -> None:
    network = Network(node, program, version, ipam=host_local(node, "10.1.2.0/24"))
    result = network.add(pod).ok()
    error = network.check(pod, result).error()
    assert (error["code"], error["msg"]) == (1, "config version does not allow CHECK")


def test_another_pods_result_does_not_pass(node: Node, program: str) -> None:
    network = Network(node, program, ipam=host_local(node, "10.1.2.0/24"))
    pods = [node.pod(), node.pod()]
    results = [network.add(pod, container_id=f"vm-{n}").ok() for n, pod in enumerate(pods)]
    network.check(pods[0], results[1], container_id="vm-0").error()


def test_an_address_manager_that_finds_something_wrong_is_heard(
    node: Node, pod: Sandbox, program: str
) -> None:
    network = Network(node, program, ipam=host_local(node, "10.1.2.0/24"))
    result = network.add(pod).ok()
    (node.folder / "ipam" / "testConfig" / "10.1.2.2").unlink()
    error = network.check(pod, result).error()
    assert "host-local: Failed to find address added by container dummy-0" in error["msg"]


def test_addresses_of_other_families_and_later_ones_do_not_disturb(
    node: Node, pod: Sandbox, program: str
) -> None:
    network = Network(node, program, ipam=host_local(node, "10.1.2.0/24"))
    result = network.add(pod).ok()
    pod.run("ip", "addr", "add", "198.51.100.1/32", "dev", "eth0")
    pod.run("ip", "addr", "add", "fd00::77/64", "dev", "eth0")
    assert network.check(pod, result).ok() is None
