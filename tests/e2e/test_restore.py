"""An API that is restored from a backup which is older than its leases: real etcd, real agents, policies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cnvnet.ipam.store.holds import Hold, Holds
from tests import harness
from tests.e2e.agent_nodes import IPAM, AgentNode, running_node
from tests.e2e.agent_stores import reserved
from tests.e2e.cnvnet_objects import LEASES, RESERVATIONS, install
from tests.e2e.control_plane import ControlPlane, running_control_plane
from tests.e2e.kubevirt_objects import (
    LAUNCHERS,
    MACHINE_DEFINITIONS,
    KubeVirt,
    Running,
    definitions,
)
from tests.e2e.machine import eventually
from tests.functional.bridge.bridge_network import ruleset

# It has a control plane of its own, and no other worker is to have one meanwhile.
pytestmark = pytest.mark.xdist_group("control_plane")

Document = dict[str, Any]

TENANT = "default"
NETWORK = "vms"
ONE, TWO = "node-1", "node-2"


class Cluster:
    """Two nodes with agents, and VMs whose pods no kubelet runs."""

    def __init__(self, control_plane: ControlPlane, kubevirt: KubeVirt, nodes: dict[str, AgentNode]) -> None:
        self.control_plane = control_plane
        self.kubevirt = kubevirt
        self.nodes = nodes
        self.sandboxes: dict[str, Any] = {}

    def start(self, name: str, node: str, number: int) -> Running:
        machine = self.kubevirt.create_machine(TENANT, name, mac=f"02:00:00:00:03:{number:02x}")
        return self.kubevirt.start(machine, node)

    def add(self, pod: Document, **keys: Any) -> str:
        """The address that its ADD gives it."""
        name = pod["metadata"]["uid"]
        node = self.nodes[pod["spec"]["nodeName"]]
        self.sandboxes[name] = node.host.pod()
        done = node.call("ADD", pod, self.sandboxes[name], container_id=name, network=NETWORK, **keys)
        (ip,) = (each["address"].partition("/")[0] for each in done.ok()["ips"])
        return str(ip)

    def delete(self, pod: Document) -> None:
        name, node = pod["metadata"]["uid"], self.nodes[pod["spec"]["nodeName"]]
        node.call("DEL", pod, self.sandboxes[name], container_id=name, network=NETWORK).ok()

    def hold(self, pod: Document) -> Hold:
        node = self.nodes[pod["spec"]["nodeName"]]
        hold = Holds(str(node.host.statedir)).get(NETWORK, pod["metadata"]["uid"], "net1")
        assert hold is not None
        return hold

    def leases(self) -> dict[str, tuple[list[str], list[str]]]:
        """The addresses of VMs, and the pods that have them."""
        found: dict[str, tuple[list[str], list[str]]] = {}
        for each in self.control_plane.api.get(LEASES.format(TENANT))["items"]:
            holders: Document = each["status"].get("holders") or {}
            pods = sorted(str(holder["podUID"]) for holder in holders.values())
            found[each["spec"]["vm"]] = each["spec"]["ips"], pods
        return found

    def reserved(self) -> set[str]:
        return {each for each in reserved(self.control_plane, NETWORK) if each.count(":") != 5}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("restore")
    with ExitStack() as undo:
        control_plane = undo.enter_context(running_control_plane(folder / "control-plane"))
        control_plane.define(*definitions(*MACHINE_DEFINITIONS))
        install(control_plane)
        control_plane.start_controllers()
        for node in (ONE, TWO):
            control_plane.add_node(node)
        kubevirt = KubeVirt(control_plane)
        kubevirt.install()
        patched = undo.enter_context(pytest.MonkeyPatch.context())
        # The agents of these tests have credentials; the harness' own would have none.
        patched.setattr(harness, "through", "")
        nodes = {
            name: undo.enter_context(running_node(control_plane, name, folder / name)) for name in (ONE, TWO)
        }
        yield Cluster(control_plane, kubevirt, nodes)


def test_what_a_restored_backup_lacks_is_made_again_before_its_addresses_are_given_out(
    cluster: Cluster, tmp_path: Path
) -> None:
    control_plane = cluster.control_plane
    stopped = cluster.start("stopped", ONE, 1)
    kept = cluster.add(stopped.pod)
    restarted = cluster.start("restarted", ONE, 2)
    restarted_ip = cluster.add(restarted.pod)
    cluster.delete(restarted.pod)
    control_plane.back_up(tmp_path / "backup")

    # Since the backup: a pod ends, others begin.
    cluster.delete(stopped.pod)
    plain = control_plane.create_pod(TENANT, "plain-0", ONE)
    plain_ip = cluster.add(plain)
    new = cluster.start("new", TWO, 3)
    new_ip = cluster.add(new.pod)
    before = cluster.leases()
    assert before["new"] == ([new_ip], [new.pod["metadata"]["uid"]])

    control_plane.restore(tmp_path / "backup")
    # The pods that were made since are lost as well; their namespaces are there until a kubelet ends them.
    assert control_plane.api.find(f"/api/v1/namespaces/{TENANT}/pods/{new.pod['metadata']['name']}") is None
    eventually(lambda: {"new"} <= cluster.leases().keys(), "the lease is made again", seconds=90)
    assert cluster.leases()["new"] == before["new"]
    eventually(lambda: {plain_ip, new_ip} <= cluster.reserved(), "addresses are reserved", seconds=90)
    # What has ended since is back: nothing of this node holds it, and the controller's rule ends it.
    assert {kept, restarted_ip} <= cluster.reserved()
    assert cluster.hold(new.pod).dispute == cluster.hold(plain).dispute == ""
    other = cluster.start("other", TWO, 4)
    assert cluster.add(other.pod) not in {kept, restarted_ip, plain_ip, new_ip}
    for pod in (other.pod, new.pod, plain):
        cluster.delete(pod)


def test_of_two_claims_after_a_restore_the_older_one_stays_and_comes_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    control_plane = cluster.control_plane
    one = only("10.7.0.240")
    older, ghost = cluster.start("older", ONE, 5), cluster.start("ghost", ONE, 6)
    control_plane.back_up(tmp_path / "backup")
    assert cluster.add(older.pod, **one) == "10.7.0.240"
    other = only("10.7.0.241")
    assert cluster.add(ghost.pod, **other) == "10.7.0.241"
    # Their node hears of nothing while the API is restored and gives the addresses away.
    cluster.nodes[ONE].proxy.stop()
    control_plane.restore(tmp_path / "backup")
    path = f"{LAUNCHERS.format(TENANT)}/{ghost.pod['metadata']['name']}"
    control_plane.api.delete(path, gracePeriodSeconds=0)
    younger, heir = cluster.start("younger", TWO, 7), cluster.start("heir", TWO, 8)
    assert (cluster.add(younger.pod, **one), cluster.add(heir.pod, **other)) == ("10.7.0.240", "10.7.0.241")
    cluster.nodes[ONE].proxy.start()

    eventually(lambda: cluster.hold(older.pod).dispute, "the dispute is noticed", seconds=90)
    assert "VM default/younger (net1)'s in pod default/" in cluster.hold(older.pod).dispute
    # One whose pod has left the API has ended, and is no claim.
    eventually(lambda: cluster.hold(ghost.pod).fenced, "what has ended is fenced", seconds=90)
    assert not cluster.hold(older.pod).fenced
    rules = cluster.nodes[ONE].host
    eventually(lambda: "cnv_fence" in ruleset(rules), "there is a fence", seconds=60)
    assert (cluster.hold(younger.pod).dispute, cluster.hold(heir.pod).dispute) == ("", "")

    # An administrator decides: the younger one's lease is deleted, and the older one has it again.
    cluster.delete(younger.pod)
    for each in control_plane.api.get(LEASES.format(TENANT))["items"]:
        if each["spec"]["vm"] == "younger":
            release(control_plane, each)
    eventually(lambda: not cluster.hold(older.pod).dispute, "the older one has it again", seconds=90)
    assert cluster.leases()["older"] == (["10.7.0.240"], [older.pod["metadata"]["uid"]])
    for pod in (older.pod, ghost.pod, heir.pod):
        cluster.delete(pod)
    eventually(lambda: "cnv_fence" not in ruleset(rules), "no fence is left", seconds=60)


def only(ip: str) -> Document:
    """Keys of a network that has one address."""
    return {"ipam": {**IPAM, "rangeStart": ip, "rangeEnd": ip}}


def release(control_plane: ControlPlane, lease: Document) -> None:
    """As the controller finishes a lease that is deleted."""
    metadata = lease["metadata"]
    path = f"{LEASES.format(metadata['namespace'])}/{metadata['name']}"
    control_plane.api.delete(path)
    for each in control_plane.api.get(RESERVATIONS)["items"]:
        if each["spec"].get("lease", {}).get("uid") == metadata["uid"]:
            control_plane.api.delete(f"{RESERVATIONS}/{each['metadata']['name']}")
    control_plane.api.patch(path, {"metadata": {"finalizers": None}})
