"""A VM's addresses go with it: two nodes with agents as pods, KubeVirt's objects, leases in the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnvnet.vm import names
from tests.e2e import deployed
from tests.e2e.cnvnet_objects import LEASES, RESERVATIONS
from tests.e2e.kubevirt_objects import KubeVirt, Running
from tests.e2e.machine import eventually
from tests.e2e.testbed import NETWORK_STATUS, NETWORKS, PODS, Node, Testbed, idle_on, running_testbed
from tests.functional.crash.node_state import AttachmentState, attachment_state

pytestmark = pytest.mark.xdist_group("image")

# As the recorded pods name their second network.
NETWORK = "tenants"
LAN = names.hashed("lan")
PORT: dict[str, Any] = {
    "type": "cnv-bridge",
    "bridge": "br1",
    "macspoofchk": True,
    "ipspoofchk": True,
    "ipam": {"type": "static-ip", "subnet": "10.9.0.0/24", "cooldown": 0},
}


class Address(NamedTuple):
    """What a pod has on the VM's network, as the pod's own namespace shows it."""

    ip: str
    mac: str


class Cluster:
    """Two nodes, and the controller of KubeVirt."""

    def __init__(self, testbed: Testbed, kubevirt: KubeVirt) -> None:
        self.testbed = testbed
        self.kubevirt = kubevirt
        self.api = testbed.api
        self.one, self.two = testbed.nodes

    def start(self, machine: dict[str, Any], node: Node) -> Running:
        """The VM's launcher pod runs on the node."""
        running = self.kubevirt.start(machine, node.name, idle_on(node))
        self.testbed.wait_until_running(running.pod["metadata"]["name"])
        return running

    def stop(self, running: Running) -> None:
        """The pod ends as a kubelet ends it, and the instance with it."""
        self.testbed.delete_pod(running.pod["metadata"]["name"])
        self.kubevirt.stop(running)

    def address(self, name: str, node: Node, interface: str) -> Address:
        """Of a pod; Multus' report in the API has to say the same."""
        container_id = node.container_id(name)
        assert container_id
        sandbox = node.sandbox(container_id)
        shown = Address(sandbox.addresses(interface)[0].split("/")[0], sandbox.links()[interface]["address"])
        annotations = self.api.get(f"{PODS}/{name}")["metadata"]["annotations"]
        status = json.loads(annotations[NETWORK_STATUS])[1]
        assert (status["interface"], status["ips"]) == (interface, [shown.ip])
        return shown

    def states(self) -> list[AttachmentState]:
        """What there is of attachments on each node."""
        return [attachment_state(node.machine) for node in self.testbed.nodes]

    def leases(self) -> list[dict[str, Any]]:
        return list(self.api.get(LEASES.format("default"))["items"])

    def reserved(self) -> set[str]:
        """The addresses of the network that the API keeps from others."""
        listed = self.api.get(f"{RESERVATIONS}?labelSelector=cnvnet.io/network={NETWORK}")["items"]
        return {each["spec"]["address"] for each in listed}


@pytest.fixture(scope="module")
def cluster(image_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("moves")
    with running_testbed(folder / "testbed", nodes=2, complete=True) as testbed:
        deployed.apply(testbed, image_archive, folder)
        kubevirt = KubeVirt(testbed.control_plane)
        kubevirt.install()
        testbed.define(NETWORK, {"plugins": [PORT]})
        yield Cluster(testbed, kubevirt)


def test_a_vm_keeps_its_addresses_on_another_node_until_it_is_deleted(cluster: Cluster) -> None:
    before = cluster.states()
    machine = cluster.kubevirt.create_machine("default", "web", mac="02:00:00:00:00:1a")
    first = cluster.start(machine, cluster.one)
    address = cluster.address(first.pod["metadata"]["name"], cluster.one, LAN)
    assert address.mac == "02:00:00:00:00:1a"
    (lease,) = cluster.leases()
    assert (lease["spec"]["vm"], lease["spec"]["ips"], lease["spec"]["mac"]) == (
        "web",
        [*address[:1]],
        address.mac,
    )
    assert [each["node"] for each in lease["status"]["holders"].values()] == ["node-1"]
    cluster.stop(first)

    # While the VM is stopped its address is no one else's, on no node.
    for name, node in (("other-1", cluster.one), ("other-2", cluster.two)):
        cluster.testbed.create_pod(name, node, {NETWORKS: NETWORK})
        cluster.testbed.wait_until_running(name)
    others = [
        cluster.address("other-1", cluster.one, "net1"),
        cluster.address("other-2", cluster.two, "net1"),
    ]
    assert len({address.ip, *(each.ip for each in others)}) == 3

    second = cluster.start(machine, cluster.two)
    assert second.instance["metadata"]["uid"] != first.instance["metadata"]["uid"]
    assert cluster.address(second.pod["metadata"]["name"], cluster.two, LAN) == address
    (lease,) = cluster.leases()
    assert [each["node"] for each in lease["status"]["holders"].values()] == ["node-2"]
    assert cluster.reserved() == {address.ip, address.mac, *(each.ip for each in others)}

    cluster.stop(second)
    cluster.kubevirt.delete(machine)
    eventually(lambda: cluster.leases() == [], "the VM's lease has ended with it")
    eventually(lambda: cluster.reserved() == {each.ip for each in others}, "its address and MAC are free")
    for name in ("other-1", "other-2"):
        cluster.testbed.delete_pod(name)
    eventually(lambda: cluster.reserved() == set(), "a pod's address ends with it")
    # Multus' daemon may go on for a moment after the pod has left the API.
    eventually(lambda: cluster.states() == before, "no node has anything left")
