"""DEL succeeds when there is nothing left to do, and removes only what its own ADD has made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import harness
from tests.functional.agent.own_agent import eventually
from tests.functional.bridge.bridge_network import (
    OURS,
    REFERENCE,
    Network,
    host_local,
    leases,
    ports,
    ruleset,
    where_the_reference_errs,
)
from tests.functional.bridge.ipam import ScriptedIpam
from tests.harness import Node, Sandbox


def plain_file(node: Node) -> str:
    path = node.folder / "not-a-netns"
    path.touch()
    return str(path)


WRONG_PLACES: dict[str, Callable[[Node], str]] = {
    "none": lambda _node: "",
    "missing": lambda node: str(node.folder / "gone"),
    "plain-file": plain_file,
    "another-namespace": lambda node: node.pod().netns,
}


def everything(node: Node, program: str) -> Network:
    ipam = host_local(node, "10.1.2.0/24", "fd00::/64")
    return Network(node, program, isGateway=True, ipMasq=True, macspoofchk=True, ipam=ipam)


@pytest.mark.parametrize("place", [place for place in WRONG_PLACES if place != "plain-file"])
def test_addresses_are_given_back_wherever_the_namespace_went(
    node: Node, pod: Sandbox, program: str, place: str
) -> None:
    network = everything(node, program)
    network.add(pod).ok()
    assert leases(node) == ["10.1.2.2", "fd00::2"]
    network.delete(WRONG_PLACES[place](node)).ok()
    assert leases(node) == []


@where_the_reference_errs("it fails, and the address is lost")
def test_a_namespace_path_that_is_a_plain_file_is_no_obstacle(
    node: Node, pod: Sandbox, program: str
) -> None:
    network = everything(node, program)
    network.add(pod).ok()
    network.delete(plain_file(node)).ok()
    assert leases(node) == []


@pytest.mark.parametrize("place", ["none", "missing", "plain-file"])
@where_the_reference_errs("it derives what to remove from the link that is gone")
def test_nothing_leaks_when_the_namespace_is_gone(
    node: Node, pod: Sandbox, program: str, place: str
) -> None:
    network = everything(node, program)
    mac = network.add(pod).ok()["interfaces"][2]["mac"]
    network.delete(WRONG_PLACES[place](node)).ok()
    text = ruleset(node)
    assert "dummy-0" not in text
    assert "10.1.2.2" not in text
    assert mac not in text


@pytest.mark.parametrize("with_result", [False, True], ids=["alone", "with-prevResult"])
def test_ours_removes_everything_of_an_attachment_in_a_namespace_it_cannot_find(
    node: Node, pod: Sandbox, *, with_result: bool
) -> None:
    network = everything(node, OURS)
    result = network.add(pod).ok()
    network.delete("", result if with_result else None).ok()
    assert ports(node) == []
    assert pod.link("eth0") is None
    assert "veth" not in ruleset(node)


@pytest.mark.parametrize("lost", ["record", "rundir"])
def test_a_lost_record_does_not_keep_a_port(node: Node, pod: Sandbox, lost: str) -> None:
    network = everything(node, OURS)
    result = network.add(pod).ok()
    records = list(node.rundir.rglob("attachments/*.json"))
    assert len(records) == 1
    if lost == "record":
        records[0].unlink()
    else:
        node.rundir.rename(node.folder / "away")
    network.delete(pod, result).ok()
    # With the folder the agent's socket is lost.
    assert node.alone.exists() == (lost == "rundir" and harness.through == "agent")
    node.alone.unlink(missing_ok=True)
    assert pod.link("eth0") is None
    assert ports(node) == []
    assert leases(node) == []
    text = ruleset(node)
    assert "10.1.2.2" not in text
    assert "veth" not in text


@where_the_reference_errs("it deletes any link of that name")
def test_a_foreign_link_of_that_name_stays(node: Node, pod: Sandbox, program: str) -> None:
    pod.run("ip", "link", "add", "eth0", "type", "bridge")
    Network(node, program).delete(pod).ok()
    assert pod.link("eth0") is not None


@where_the_reference_errs("it deletes any link of that name")
def test_a_link_of_that_name_in_another_pod_stays(node: Node, pod: Sandbox, program: str) -> None:
    network = Network(node, program)
    other = node.pod()
    network.add(pod, container_id="one").ok()
    network.add(other, container_id="two").ok()
    network.delete(other, container_id="one").ok()
    assert other.link("eth0") is not None


@where_the_reference_errs("it parses the whole configuration once more, and refuses it")
def test_a_configuration_that_became_invalid_does_not_keep_an_attachment(
    node: Node, pod: Sandbox, program: str
) -> None:
    network = Network(node, program, ipam=host_local(node, "10.1.2.0/24"))
    network.add(pod).ok()
    network.with_(vlan=5000, mtu="big").delete(pod).ok()
    assert pod.link("eth0") is None
    assert leases(node) == []


def test_deleting_again_and_again_succeeds(node: Node, pod: Sandbox, program: str) -> None:
    network = everything(node, program)
    network.add(pod).ok()
    for _ in range(3):
        assert network.delete(pod).ok() is None
    assert network.delete("").ok() is None


def test_the_bridge_its_address_and_other_ports_stay(node: Node, pod: Sandbox, program: str) -> None:
    network = everything(node, program)
    other = node.pod()
    network.add(pod, container_id="one").ok()
    network.add(other, container_id="two").ok()
    kept = ports(node)[1]
    network.delete(pod, container_id="one").ok()
    assert ports(node) == [kept]
    assert node.addresses("bridge0") == ["10.1.2.1/24"]
    assert (other.link("eth0") or {})["operstate"] == "UP"


def test_a_deleted_bridge_is_no_obstacle(node: Node, pod: Sandbox, program: str) -> None:
    network = everything(node, program)
    network.add(pod).ok()
    node.run("ip", "link", "del", "bridge0")
    network.delete(pod).ok()
    assert pod.link("eth0") is None
    assert leases(node) == []


def test_a_flushed_ruleset_is_no_obstacle(node: Node, pod: Sandbox) -> None:
    network = everything(node, OURS)
    network.add(pod).ok()
    node.run("nft", "flush", "ruleset")
    network.delete(pod).ok()
    assert ports(node) == []


def test_the_address_manager_is_asked_even_without_a_namespace(
    node: Node, pod: Sandbox, program: str
) -> None:
    ipam = ScriptedIpam(node)
    network = Network(node, program, ipam=ipam.config)
    network.add(pod, cni_path=ipam.cni_path).ok()
    network.delete("", cni_path=ipam.cni_path).ok()
    assert ipam.commands == ["ADD", "DEL"]
    assert ipam.calls[1].container_id == "dummy-0"


def test_an_address_manager_that_cannot_release_is_reported(node: Node, pod: Sandbox, program: str) -> None:
    ipam = ScriptedIpam(node)
    network = Network(node, program, ipam=ipam.config)
    network.add(pod, cni_path=ipam.cni_path).ok()
    ipam.refuses("DEL", 11, "the store is away")
    error = network.delete(pod, cni_path=ipam.cni_path).error()
    assert (error["code"], "the store is away" in error["msg"]) == (11, True)
    ipam.answers("DEL", None)
    network.delete(pod, cni_path=ipam.cni_path).ok()
    assert pod.link("eth0") is None


def test_no_record_is_left(node: Node, pod: Sandbox) -> None:
    network = everything(node, OURS)
    network.add(pod).ok()
    network.delete(pod).ok()
    left: list[Path] = [path for path in node.rundir.rglob("attachments/*") if path.suffix == ".json"]
    assert left == []


@pytest.mark.parametrize("bridge", ["bridge1", "bridge0"])
def test_the_clean_up_of_a_refused_add_leaves_the_interface_that_was_there(
    node: Node, pod: Sandbox, bridge: str
) -> None:
    network = everything(node, OURS)
    result = network.add(pod, container_id="one").ok()
    rival = network.with_(name="rival", bridge=bridge)
    assert "already exists" in rival.add(pod, container_id="two").error()["msg"]
    rival.delete(pod, container_id="two").ok()
    network.check(pod, result, container_id="one").ok()
    network.delete(pod, container_id="one").ok()
    assert pod.link("eth0") is None


def test_without_a_record_a_veth_that_leads_elsewhere_stays(node: Node, pod: Sandbox) -> None:
    """A port of another bridge, or of none, is another program's."""
    Network(node, REFERENCE, bridge="bridge1").add(pod).ok()
    Network(node, OURS).delete(pod).ok()
    assert pod.link("eth0") is not None


@pytest.mark.parametrize("ipam", [None, {}, {"type": "static"}], ids=["none", "empty", "another"])
def test_addresses_are_given_back_to_where_they_are_from(
    node: Node, pod: Sandbox, ipam: dict[str, str] | None
) -> None:
    network = everything(node, OURS)
    network.add(pod).ok()
    network.with_(ipam=ipam).delete(pod).ok()
    assert leases(node) == []


@pytest.mark.parametrize("ipam_type", ["../host-local", "no-such-program"])
def test_an_address_manager_that_never_was_is_no_obstacle(node: Node, pod: Sandbox, ipam_type: str) -> None:
    network = Network(node, OURS, ipam={"type": ipam_type})
    assert network.add(pod).error()["code"] == 7
    deleted = network.delete(pod)
    deleted.ok()
    assert ipam_type in deleted.stderr


def test_a_port_that_was_renamed_on_both_sides_is_found(node: Node, pod: Sandbox) -> None:
    network = Network(node, OURS)
    host = network.add(pod).ok()["interfaces"][1]["name"]
    for sandbox, name in ((node, host), (pod, "eth0")):
        sandbox.run("ip", "link", "set", name, "down")
        sandbox.run("ip", "link", "set", name, "name", "renamed")
    network.delete(pod).ok()
    assert eventually(lambda: node.link("renamed") is None and pod.link("renamed") is None)
