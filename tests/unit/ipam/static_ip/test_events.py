"""What is said of addresses on a VM and on its pod, and what is not worth an event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import CNIError
from cnvnet.ipam.static_ip.plugin import StaticIP
from cnvnet.kube.events import KubernetesEvent
from cnvnet.kube.resources import INSTANCES, PODS
from cnvnet.vm.directory import Directory
from tests.fakes.api_server import ApiServer, refuse
from tests.fakes.launchers import NAMESPACE, Launchers
from tests.unit.ipam.static_ip.test_cluster import IPAM, LAN, ClusterNode

MAC = "02:00:00:00:00:0a"
MACHINE = "6872abbb-50f2-46d8-a9ab-06adb435f608"


class Node(ClusterNode):
    """A node whose process writes events."""

    def __init__(self, folder: Path, directory: Directory) -> None:
        super().__init__(folder, directory)
        self.events: list[KubernetesEvent] = []
        self.plugin = StaticIP(lookup=lambda: self.directory, on_event=self.events.append)

    def said(self) -> list[tuple[str, str, str]]:
        """What was said since the last look: kind and name of the object, reason, words."""
        said = [(f"{e.involved.kind} {e.involved.name}", e.reason, e.message) for e in self.events]
        self.events.clear()
        return said


@pytest.fixture
def node(tmp_path: Path, directory: Directory) -> Node:
    return Node(tmp_path, directory)


def annotate(server: ApiServer, node: Node, pod: PodRef, address: str) -> None:
    """As in another pod of the VM: what was read of this one is forgotten."""
    annotations = {"cnvnet.io/ip_address.lan": address}
    server.objects.patch(PODS, NAMESPACE, pod.name, {"metadata": {"annotations": annotations}})
    assert node.directory is not None
    node.directory = Directory(node.directory.api)


def both(pod: PodRef, reason: str, text: str) -> list[tuple[str, str, str]]:
    return [("VirtualMachine vm-a", reason, text), (f"Pod {pod.name}", reason, text)]


def test_what_is_new_is_said_and_what_is_kept_is_not(
    node: Node, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    (ip,) = node.add(pod).result.ips
    first = ip.address.ip
    involved = [each.involved for each in node.events]
    assert [each.uid for each in involved] == [MACHINE, pod.uid]
    has = f"in network vms for {LAN}"
    assert node.said() == both(pod, "AddressAllocated", f"{first}, {MAC} {has}")
    node.add(pod)
    node.delete(pod)
    node.add(pod)
    assert node.said() == []
    node.delete(pod)
    annotate(server, node, pod, "10.1.0.50")
    node.add(pod)
    asked = "(annotation cnvnet.io/ip_address.lan)"
    moved = f"10.1.0.50, {MAC} {has} {asked}, no longer {first}"
    assert node.said() == both(pod, "AddressMoved", moved)


def test_a_refusal_is_a_warning_on_the_vm_and_its_pod(
    node: Node, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a", {"cnvnet.io/ip_address.lan": "10.9.0.5"})
    with pytest.raises(CNIError) as caught:
        node.add(pod)
    assert {each.type for each in node.events} == {"Warning"}
    assert node.said() == both(pod, "AddressRefused", f"no address in network vms: {caught.value.msg}")
    # Where it is not the addresses that are wrong, but what says so is an annotation.
    annotate(server, node, pod, "no address")
    with pytest.raises(CNIError):
        node.add(pod)
    assert [each[:2] for each in node.said()] == [each[:2] for each in both(pod, "AddressRefused", "")]


def test_an_api_that_does_not_answer_is_no_event(
    node: Node, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    server.inject(refuse(403), verb="create")
    with pytest.raises(CNIError):
        node.add(pod)
    assert node.said() == []


def test_the_end_of_a_lease_is_said_where_it_ends_with_its_pod(node: Node, launchers: Launchers) -> None:
    pod = launchers.start("vm-a")
    kept: dict[str, Any] = {"ipam": {**IPAM, "release": "pod"}}
    (ip,) = node.add(pod, **kept).result.ips
    node.said()
    node.delete(pod)
    text = f"{ip.address.ip}, {MAC} in network vms of {LAN}"
    assert sorted(node.said()) == sorted(both(pod, "AddressReleased", text))


def test_a_migrations_target_has_no_event(
    tmp_path: Path, directory: Directory, launchers: Launchers
) -> None:
    source, target = Node(tmp_path / "1", directory), Node(tmp_path / "2", directory)
    source.add(launchers.start("vm-a"))
    target.add(launchers.migrate("vm-a"))
    assert target.said() == []


def test_a_pod_that_is_no_vm_has_an_event_only_if_it_is_refused(node: Node, launchers: Launchers) -> None:
    pod = launchers.add_pod("web")
    node.add(pod)
    node.delete(pod)
    assert node.said() == []
    with pytest.raises(CNIError):
        node.add(pod, args={"cni": {"ips": ["10.9.0.5"]}})
    ((subject, reason, _),) = node.said()
    assert (subject, reason) == ("Pod web", "AddressRefused")


def test_a_stand_alone_instance_is_its_own_vm(node: Node, launchers: Launchers, server: ApiServer) -> None:
    pod = launchers.start("vm-a")
    server.objects.patch(INSTANCES, NAMESPACE, "vm-a", {"metadata": {"ownerReferences": None}})
    node.add(pod)
    assert node.said()[0][0] == "VirtualMachineInstance vm-a"
