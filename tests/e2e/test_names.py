"""Which lease a pod's interface has, whatever its VM is called and whatever the pod is for."""

from __future__ import annotations

from typing import Any

import pytest

from cnvnet.vm import names
from tests import kubevirt as recorded
from tests.e2e.cnvnet_objects import LEASES
from tests.e2e.control_plane import ControlPlane
from tests.e2e.kubevirt_objects import INSTANCES, LAUNCHERS, KubeVirt
from tests.e2e.machine import eventually
from tests.e2e.static_ip import StaticIpNode, leases, reserved

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

Document = dict[str, Any]
Nodes = tuple[StaticIpNode, StaticIpNode]
# 253 is the most that an object's name may have.
LONG = "a-vm-whose-name-is-longer-than-a-label-may-be-so-it-is-cut-there"


@pytest.mark.parametrize("name", [LONG[:64].ljust(64, "x"), "v" * 253, "a.dotted.vm.name", f"{LONG}.b.c"])
def test_a_vm_of_any_name_keeps_its_address_over_a_restart(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, nodes: Nodes, name: str
) -> None:
    machine = kubevirt.create_machine(tenant, name)
    first = kubevirt.start(machine, "node-1")
    given = nodes[0].add(first.pod)
    (lease,) = leases(control_plane, tenant)
    assert lease["spec"]["vm"] == name
    nodes[0].delete(first.pod)
    kubevirt.stop(first)
    second = kubevirt.start(machine, "node-2")
    assert nodes[1].add(second.pod) == given
    nodes[1].delete(second.pod)
    kubevirt.stop(second)
    kubevirt.delete(machine)


def test_two_names_that_differ_behind_63_bytes_are_two_vms(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, nodes: Nodes
) -> None:
    common = "n" * 63
    machines = [
        kubevirt.create_machine(tenant, f"{common}{end}", mac=f"02:00:00:00:04:0{end}") for end in (1, 2)
    ]
    running = [kubevirt.start(machine, "node-1") for machine in machines]
    given = [nodes[0].add(each.pod) for each in running]
    assert given[0] != given[1]
    listed = leases(control_plane, tenant)
    assert {each["spec"]["vm"] for each in listed} == {f"{common}1", f"{common}2"}
    assert len({each["metadata"]["name"] for each in listed}) == 2
    for each in running:
        nodes[0].delete(each.pod)
        kubevirt.stop(each)
        kubevirt.delete(each.machine)


def start_recorded(kubevirt: KubeVirt, namespace: str, name: str, machine: Document | None) -> Document:
    """The launcher pod of a VM as it was recorded; `machine` owns its instance, None: nothing does."""
    pod, instance = recorded.started(name)
    for document in (pod, instance):
        for key in ("uid", "resourceVersion", "creationTimestamp", "generation", "finalizers"):
            document["metadata"].pop(key, None)
        document["metadata"]["namespace"] = namespace
    for owner in instance["metadata"].get("ownerReferences", ()):
        assert machine is not None
        owner["uid"] = machine["metadata"]["uid"]
    made = kubevirt.api.create(INSTANCES.format(namespace), instance)
    pod["metadata"]["ownerReferences"][0]["uid"] = made["metadata"]["uid"]
    pod["spec"]["nodeName"] = "node-1"
    created: Document = kubevirt.api.create(LAUNCHERS.format(namespace), pod)
    return created


def test_a_vm_with_one_network_twice_has_two_leases(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, nodes: Nodes
) -> None:
    machine = kubevirt.create_machine(tenant, "vm-twice")
    pod = start_recorded(kubevirt, tenant, "vm-twice", machine)
    given = [nodes[0].add(pod, ifname=names.hashed(network)) for network in ("x", "y")]
    assert given[0] != given[1]
    listed = leases(control_plane, tenant)
    assert {each["spec"]["interface"] for each in listed} == {names.hashed("x"), names.hashed("y")}
    assert len({each["spec"]["mac"] for each in listed}) == 2
    # One of them ends, as when it is unplugged: the other has what it had.
    nodes[0].delete(pod, ifname=names.hashed("x"))
    assert nodes[0].add(pod, ifname=names.hashed("y")) == given[1]
    nodes[0].delete(pod, ifname=names.hashed("y"))
    control_plane.api.delete(f"{LAUNCHERS.format(tenant)}/{pod['metadata']['name']}", gracePeriodSeconds=0)
    control_plane.api.delete(f"{INSTANCES.format(tenant)}/vm-twice")
    kubevirt.delete(machine)


def test_an_instance_without_a_machine_is_its_own_vm_and_its_lease_ends_with_it(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, nodes: Nodes
) -> None:
    pod = start_recorded(kubevirt, tenant, "vmi-alone", None)
    assert nodes[0].add(pod, ifname="eth0")
    (lease,) = leases(control_plane, tenant)
    (owner,) = lease["metadata"]["ownerReferences"]
    assert (lease["spec"]["vm"], owner["kind"]) == ("vmi-alone", "VirtualMachineInstance")
    nodes[0].delete(pod, ifname="eth0")
    control_plane.api.delete(f"{LAUNCHERS.format(tenant)}/{pod['metadata']['name']}", gracePeriodSeconds=0)
    control_plane.api.delete(f"{INSTANCES.format(tenant)}/vmi-alone")
    path = f"{LEASES.format(tenant)}/{lease['metadata']['name']}"
    # No controller runs that would take the finalizer from it.
    eventually(
        lambda: (control_plane.api.find(path) or lease)["metadata"].get("deletionTimestamp"),
        "the garbage collector ends the lease",
    )


def test_a_pod_that_only_makes_storage_come_about_is_never_the_vms(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, nodes: Nodes
) -> None:
    """Of a VM whose volume waits for its first consumer: KubeVirt starts a pod like a launcher before it."""
    machine = kubevirt.create_machine(tenant, "web")
    running = kubevirt.start(machine, "node-1")
    temporary = provisioning(kubevirt, running.pod, "node-2")
    held = nodes[1].add(temporary)
    assert roles(control_plane, tenant) == {"temp"}
    given = nodes[0].add(running.pod)
    assert roles(control_plane, tenant) == {"temp", "active"}
    # It ends behind the start of the real one, and frees nothing of that.
    nodes[1].delete(temporary)
    assert roles(control_plane, tenant) == {"active"}
    assert reserved(control_plane, tenant) == {each.split("/")[0] for each in given}
    nodes[0].delete(running.pod)
    kubevirt.stop(running)
    # Nor does it where it alone is left, and the VM has what it had.
    again = kubevirt.start(machine, "node-1")
    temporary = provisioning(kubevirt, again.pod, "node-2")
    assert nodes[1].add(temporary) == held
    nodes[1].delete(temporary)
    assert nodes[0].add(again.pod) == given
    nodes[0].delete(again.pod)
    kubevirt.stop(again)
    kubevirt.delete(machine)


def provisioning(kubevirt: KubeVirt, pod: Document, node: str) -> Document:
    """A launcher like this one that only makes its volumes come about."""
    metadata = {
        key: pod["metadata"][key] for key in ("ownerReferences", "labels", "annotations", "namespace")
    }
    metadata["annotations"] = {**metadata["annotations"], "kubevirt.io/ephemeral-provisioning": "true"}
    metadata["generateName"] = "virt-launcher-provisioning-"
    path = LAUNCHERS.format(metadata["namespace"])
    created: Document = kubevirt.api.create(
        path, {"metadata": metadata, "spec": {**pod["spec"], "nodeName": node}}
    )
    return created


def roles(control_plane: ControlPlane, namespace: str) -> set[str]:
    """Those of all holders of the namespace's leases."""
    return {
        holder["role"]
        for lease in leases(control_plane, namespace)
        for holder in lease["status"]["holders"].values()
    }
