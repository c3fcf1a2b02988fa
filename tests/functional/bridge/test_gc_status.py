"""GC removes what ended attachments have left; STATUS says whether the network could take another one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.functional.bridge.bridge_network import OURS, Network, host_local, leases, ports, ruleset
from tests.functional.bridge.ipam import ScriptedIpam
from tests.harness import VERSIONS, Node, Outcome, Sandbox

OLD = [version for version in VERSIONS if version != "1.1.0"]
KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")


def valid(*attachments: tuple[str, str], key: str = KEYS[0]) -> dict[str, Any]:
    return {key: [{"containerID": cid, "ifname": ifname} for cid, ifname in attachments]}


def gc(network: Network, keys: dict[str, Any], **call: Any) -> Outcome:
    return network.node.cni(network.program, "GC", {**network.config, **keys}, **call)


def status(network: Network, **call: Any) -> Outcome:
    return network.node.cni(network.program, "STATUS", network.config, **call)


def attach(network: Network, *container_ids: str) -> dict[str, Sandbox]:
    pods = {cid: network.node.pod() for cid in container_ids}
    for cid, pod in pods.items():
        network.add(pod, container_id=cid).ok()
    return pods


def marks(text: str) -> int:
    """How many ports the guard knows."""
    return len({word.strip('",') for word in text.split() if word.strip('",').startswith("veth")})


@pytest.mark.parametrize("key", KEYS)
def test_gc_removes_what_is_not_listed(node: Node, key: str) -> None:
    ipam = host_local(node, "10.1.2.0/24")
    network = Network(node, OURS, isGateway=True, ipMasq=True, macspoofchk=True, ipam=ipam)
    pods = attach(network, "kept", "dead")
    gc(network, valid(("kept", "eth0"), key=key)).ok()
    assert pods["kept"].link("eth0") is not None
    assert pods["dead"].link("eth0") is None
    text = ruleset(node)
    assert "10.1.2.2" in text
    assert "10.1.2.3" not in text
    assert marks(text) == 1
    assert leases(node) == ["10.1.2.2"], "the lease of what GC took away goes with it"


def test_gc_cleans_up_after_pods_that_vanished(node: Node) -> None:
    network = Network(node, OURS, macspoofchk=True)
    pods = attach(network, "kept", "dead")
    pods["dead"].run("ip", "link", "del", "eth0")
    assert marks(ruleset(node)) == 2
    gc(network, valid(("kept", "eth0"))).ok()
    assert marks(ruleset(node)) == 1
    assert len(list(node.rundir.rglob("attachments/*.json"))) == 1


def test_gc_with_an_empty_list_removes_everything(node: Node) -> None:
    network = Network(node, OURS, macspoofchk=True)
    attach(network, "one", "two")
    gc(network, valid()).ok()
    assert ports(node) == []
    assert marks(ruleset(node)) == 0


@pytest.mark.parametrize("keys", [{}, {KEYS[0]: None}], ids=["absent", "null"])
def test_gc_without_a_list_removes_nothing(node: Node, program: str, keys: dict[str, Any]) -> None:
    network = Network(node, program, macspoofchk=True)
    attach(network, "one")
    gc(network, keys).ok()
    assert len(ports(node)) == 1
    assert marks(ruleset(node)) == 1


def test_gc_tells_one_interface_of_a_pod_from_another(node: Node, pod: Sandbox) -> None:
    network = Network(node, OURS)
    for ifname in ("net1", "net2"):
        network.add(pod, ifname=ifname).ok()
    gc(network, valid(("dummy-0", "net2"))).ok()
    assert pod.link("net1") is None
    assert pod.link("net2") is not None


def test_gc_of_one_network_leaves_another_alone(node: Node) -> None:
    one, two = (Network(node, OURS, name=name, macspoofchk=True) for name in ("one", "two"))
    attach(one, "a")
    pods = attach(two, "b")
    gc(one, valid()).ok()
    assert pods["b"].link("eth0") is not None
    assert marks(ruleset(node)) == 1


@pytest.mark.parametrize(
    "items",
    ["text", [5], [{"containerID": 5, "ifname": "eth0"}], [{"ifname": "eth0"}], {"containerID": "a"}],
    ids=str,
)
def test_gc_with_a_list_that_makes_no_sense_removes_nothing(node: Node, items: object) -> None:
    network = Network(node, OURS)
    attach(network, "one")
    gc(network, {KEYS[0]: items}).error()
    assert len(ports(node)) == 1


def test_gc_is_passed_on_to_the_address_manager(node: Node) -> None:
    ipam = ScriptedIpam(node)
    network = Network(node, OURS, ipam=ipam.config)
    keys = valid(("kept", "eth0"))
    gc(network, keys, cni_path=ipam.cni_path).ok()
    assert ipam.commands == ["GC"]
    assert ipam.calls[0].config[KEYS[0]] == keys[KEYS[0]]


def test_an_address_manager_that_cannot_collect_is_reported(node: Node) -> None:
    ipam = ScriptedIpam(node)
    ipam.refuses("GC", 11, "the store is away")
    network = Network(node, OURS, ipam=ipam.config)
    assert "the store is away" in gc(network, valid(), cni_path=ipam.cni_path).error()["msg"]


@pytest.mark.parametrize("version", OLD)
@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_older_versions_have_neither(node: Node, program: str, version: str, command: str) -> None:
    error = node.cni(program, command, Network(node, program, version).config).error()
    assert (error["code"], error["msg"]) == (1, f"config version does not allow {command}")


def test_a_network_without_addresses_is_ready(node: Node, program: str) -> None:
    assert status(Network(node, program)).ok() is None
    assert list(node.links()) == ["lo"]


def test_a_network_whose_address_manager_is_ready_is_ready(node: Node, program: str) -> None:
    ipam = ScriptedIpam(node)
    assert status(Network(node, program, ipam=ipam.config), cni_path=ipam.cni_path).ok() is None
    assert ipam.commands == ["STATUS"]


def test_a_network_whose_address_manager_is_not_ready_says_why(node: Node, program: str) -> None:
    ipam = ScriptedIpam(node)
    ipam.refuses("STATUS", 50, "no address left")
    error = status(Network(node, program, ipam=ipam.config), cni_path=ipam.cni_path).error()
    assert (error["code"], error["msg"]) == (50, "no address left")


def test_a_network_whose_address_manager_is_missing_is_not_ready(node: Node, program: str) -> None:
    error = status(Network(node, program, ipam={"type": "no-such-ipam"})).error()
    assert 'failed to find plugin "no-such-ipam"' in error["msg"]


def test_a_configuration_that_add_would_refuse_is_not_ready(node: Node) -> None:
    assert "vlan" in status(Network(node, OURS, vlan=5000)).error()["msg"].lower()


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_neither_needs_a_container(node: Node, program: str, command: str) -> None:
    config = {**Network(node, program).config, **valid()}
    absent = {"CNI_CONTAINERID": "\0", "CNI_NETNS": "\0", "CNI_IFNAME": "\0", "CNI_ARGS": "\0"}
    node.cni(program, command, config, env=absent).ok()
