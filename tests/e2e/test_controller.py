"""cnvnet-controller in a real cluster: what becomes of addresses when a VM, a pod or a node has gone."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cnvnet.ipam.lease import VM_DELETED, Holder, Lease, LeaseKey
from cnvnet.ipam.store import objects
from cnvnet.ipam.store.lease_owner import LeaseOwner
from cnvnet.ipam.store.object_names import lease_name
from tests.e2e.api import Api
from tests.e2e.cnvnet_objects import CONTROLLER, LEASES, RESERVATIONS, SYSTEM, agent, user
from tests.e2e.control_plane import ControlPlane
from tests.e2e.controller_process import Process, end_pod, running_controller
from tests.e2e.kubevirt_objects import MACHINES, KubeVirt, Running
from tests.e2e.machine import eventually
from tests.harness import installed

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

Document = dict[str, Any]

NAMESPACES = "/api/v1/namespaces"
NODES = "/api/v1/nodes"
ELECTION = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/{CONTROLLER}"
IFNAME = "pod37a8eec1ce1"
# Seconds for what a watch reports, and for what two sweeps and the grace period find.
SOON = 10.0
SWEPT = 20.0


@pytest.fixture
def lost_node(control_plane: ControlPlane) -> Iterator[str]:
    """A node for one test, which loses it."""
    name = f"node-{uuid.uuid4().hex[:6]}"
    control_plane.add_node(name)
    yield name
    pods = f"{NAMESPACES}/{SYSTEM}/pods/agent-{name}"
    if control_plane.api.find(pods):
        control_plane.api.delete(pods, gracePeriodSeconds=0)
    if control_plane.api.find(f"{NODES}/{name}"):
        control_plane.api.delete(f"{NODES}/{name}")


class Leased:
    """A VM's lease and its reservations, written by the agent of a node."""

    def __init__(
        self, control_plane: ControlPlane, machine: Document, ip: str, *, pod: Document | None = None
    ) -> None:
        self.admin = control_plane.api
        node = pod["spec"]["nodeName"] if pod is not None else "node-1"
        self.agent = agent(control_plane, node)
        self.namespace, name = machine["metadata"]["namespace"], machine["metadata"]["name"]
        uid = machine["metadata"]["uid"]
        key = LeaseKey(self.namespace, self.namespace, name, IFNAME)
        mac = f"0a:58:{ip_address(ip).packed.hex(':')}"
        holders = (_holder(pod),) if pod is not None else ()
        lease = Lease(key, (ip_address(ip),), mac, uid, release=VM_DELETED, holders=holders)
        owner = LeaseOwner(machine["apiVersion"], machine["kind"], name, uid)
        self.path = f"{LEASES.format(self.namespace)}/{lease_name(key)}"
        written = self.agent.create(
            LEASES.format(self.namespace), objects.lease_document(lease, nonce="1", owner=owner)
        )
        self.reservations = [
            _reserve(
                self.agent,
                node,
                objects.reservation_document(key, address, nonce="1", lease_uid=written["metadata"]["uid"]),
            )
            for address in objects.addresses_of(lease)
        ]

    @property
    def is_there(self) -> bool:
        return self.admin.find(self.path) is not None

    @property
    def reserved(self) -> int:
        return sum(self.admin.find(path) is not None for path in self.reservations)

    @property
    def holders(self) -> list[str]:
        return list(self.admin.get(self.path)["status"].get("holders") or {})

    def leave(self) -> None:
        """As DEL does it."""
        patch = {"status": {"holders": dict.fromkeys(self.holders)}}
        self.agent.patch(self.path, patch)

    def is_free(self) -> bool:
        return not self.is_there and not self.reserved


def _holder(pod: Document) -> Holder:
    metadata = pod["metadata"]
    return Holder(
        container_id=uuid.uuid4().hex * 2,
        ifname=IFNAME,
        role="active",
        netns=f"/run/netns/{metadata['name']}",
        inode=4026532000,
        boot_id="b1",
        since=int(time.time()),
        node=pod["spec"]["nodeName"],
        pod=f"{metadata['namespace']}/{metadata['name']}",
        pod_uid=metadata["uid"],
    )


def _reserve(api: Api, node: str, document: Document) -> str:
    document["spec"]["node"] = node
    created = api.create(RESERVATIONS, document)
    return f"{RESERVATIONS}/{created['metadata']['name']}"


def reserve_for_pod(control_plane: ControlPlane, pod: Document, network: str, ip: str) -> str:
    """The reservation of a pod that is no VM; its path."""
    holder = _holder(pod)
    key = LeaseKey(network, "", holder.container_id, holder.ifname)
    lease = Lease(key, (ip_address(ip),), release="pod", holders=(holder,))
    document = objects.reservation_document(key, ip, nonce="1", pod=lease)
    return _reserve(agent(control_plane, holder.node), holder.node, document)


def delete_machine(control_plane: ControlPlane, running: Running, **options: Any) -> None:
    """The VirtualMachine alone, whatever runs."""
    path = f"{MACHINES.format(running.namespace)}/{running.name}"
    control_plane.api.patch(path, {"metadata": {"finalizers": None}})
    control_plane.api.delete(path, **options)


def stays(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not holds():
            return False
        time.sleep(0.1)
    return True


def test_a_vm_that_is_deleted_while_it_is_stopped_is_freed_within_seconds(
    control_plane: ControlPlane, kubevirt: KubeVirt, controller: Process, tenant: str
) -> None:
    machine = kubevirt.create_machine(tenant, "web")
    leased = Leased(control_plane, machine, "10.7.0.5")
    assert stays(lambda: leased.reserved == 2, 2)
    kubevirt.delete(machine)
    eventually(leased.is_free, "it is free", seconds=SOON)
    (line,) = (each for each in controller.lines("addresses released") if tenant in each["object"])
    assert (line["network"], line["addresses"]) == (tenant, "0a:58:0a:07:00:05, 10.7.0.5")
    assert line["reason"] == "it is deleted and no pod holds it"


def test_a_vm_that_is_deleted_while_it_runs_is_freed_when_its_pod_has_left(
    control_plane: ControlPlane, kubevirt: KubeVirt, controller: Process, tenant: str
) -> None:
    running = kubevirt.start(kubevirt.create_machine(tenant, "web"), "node-1")
    leased = Leased(control_plane, running.machine, "10.7.0.5", pod=running.pod)
    delete_machine(control_plane, running)
    eventually(
        lambda: "deletionTimestamp" in control_plane.api.get(leased.path)["metadata"], "the lease is marked"
    )
    kubevirt.stop(running)
    # The pod has gone from the API, and its namespace may be there: DEL has not come yet.
    assert stays(lambda: leased.reserved == 2 and len(leased.holders) == 1, 3)
    leased.leave()
    eventually(leased.is_free, "it is free", seconds=SOON)


def test_a_vm_that_is_deleted_as_an_orphan_is_freed_when_it_has_ended(
    control_plane: ControlPlane, kubevirt: KubeVirt, controller: Process, tenant: str
) -> None:
    running = kubevirt.start(kubevirt.create_machine(tenant, "web"), "node-1")
    leased = Leased(control_plane, running.machine, "10.7.0.5", pod=running.pod)
    delete_machine(control_plane, running, propagationPolicy="Orphan")
    eventually(
        lambda: "ownerReferences" not in control_plane.api.get(leased.path)["metadata"], "the owner is gone"
    )
    leased.leave()
    # Its instance runs on, and may come back in another pod.
    assert stays(lambda: leased.reserved == 2, 3)
    kubevirt.stop(running)
    eventually(leased.is_free, "it is free", seconds=SWEPT)
    (line,) = (each for each in controller.lines("lease deleted") if tenant in each["object"])
    uid = running.machine["metadata"]["uid"]
    assert line["reason"] == f"VM {tenant}/web ({uid}) is gone, and so are its pods"


def test_a_lease_that_an_operator_deletes_is_freed_while_its_vm_stays(
    control_plane: ControlPlane, kubevirt: KubeVirt, controller: Process, tenant: str
) -> None:
    machine = kubevirt.create_machine(tenant, "web")
    leased = Leased(control_plane, machine, "10.7.0.5")
    name = leased.path.rpartition("/")[2]
    control_plane.kubectl("delete", "vmlease", name, "-n", tenant, "--timeout=15s")
    assert leased.is_free()
    # The VM may have the address again.
    again = Leased(control_plane, machine, "10.7.0.5")
    assert stays(lambda: again.reserved == 2, 2)
    kubevirt.delete(machine)
    eventually(again.is_free, "it is free", seconds=SOON)


def test_a_namespace_with_leases_ends(
    control_plane: ControlPlane, kubevirt: KubeVirt, controller: Process
) -> None:
    namespace = f"ending-{uuid.uuid4().hex[:8]}"
    control_plane.add_namespace(namespace)
    machines = [kubevirt.create_machine(namespace, f"vm{number}") for number in range(5)]
    leases = [Leased(control_plane, machine, f"10.7.1.{number}") for number, machine in enumerate(machines)]
    for machine in machines:
        path = f"{MACHINES.format(namespace)}/{machine['metadata']['name']}"
        control_plane.api.patch(path, {"metadata": {"finalizers": None}})
    control_plane.api.delete(f"{NAMESPACES}/{namespace}")
    eventually(
        lambda: control_plane.api.find(f"{NAMESPACES}/{namespace}") is None, "it has ended", seconds=30
    )
    assert all(each.is_free() for each in leases)


def test_a_node_that_is_lost_for_good_holds_no_address(
    control_plane: ControlPlane,
    kubevirt: KubeVirt,
    controller: Process,
    tenant: str,
    lost_node: str,
) -> None:
    running = kubevirt.start(kubevirt.create_machine(tenant, "web"), lost_node)
    leased = Leased(control_plane, running.machine, "10.7.0.5", pod=running.pod)
    plain = control_plane.create_pod(tenant, "db-0", lost_node)
    reserved = reserve_for_pod(control_plane, plain, tenant, "10.7.0.9")
    # A StatefulSet makes it anew under its name elsewhere, with an address of its own.
    end_pod(control_plane, plain)
    anew = control_plane.create_pod(tenant, "db-0", "node-1")
    kept = reserve_for_pod(control_plane, anew, tenant, "10.7.0.10")
    # Not ready, or not, is nothing that counts.
    status = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
    control_plane.api.patch(f"{NODES}/{lost_node}/status", {"status": status})
    end_pod(control_plane, running.pod)
    assert stays(lambda: len(leased.holders) == 1, 4)
    assert control_plane.api.find(reserved)
    control_plane.api.delete(f"{NODES}/{lost_node}")
    eventually(lambda: not leased.holders, "the holder has ended", seconds=SWEPT)
    eventually(lambda: control_plane.api.find(reserved) is None, "the pod's is free", seconds=SWEPT)
    # The VM is there and keeps its address, and so does the new pod.
    assert stays(lambda: leased.reserved == 2, 2)
    assert control_plane.api.find(kept)
    (line,) = (each for each in controller.lines("holder ended") if tenant in each["object"])
    assert line["reason"].endswith(f"is gone, and its node {lost_node} is gone")
    events = control_plane.api.get(f"{NAMESPACES}/{tenant}/events")["items"]
    ended = [each["involvedObject"]["kind"] for each in events if each["reason"] == "HolderEnded"]
    assert ended == ["VMLease"]
    kubevirt.stop(running)
    kubevirt.delete(running.machine)
    eventually(leased.is_free, "it is free", seconds=SOON)


def test_a_node_that_is_out_of_service_holds_no_address(
    control_plane: ControlPlane,
    kubevirt: KubeVirt,
    controller: Process,
    tenant: str,
    lost_node: str,
) -> None:
    running = kubevirt.start(kubevirt.create_machine(tenant, "web"), lost_node)
    leased = Leased(control_plane, running.machine, "10.7.0.5", pod=running.pod)
    control_plane.kubectl(
        "taint", "node", lost_node, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    )
    # While the pod is listed, its address is its own.
    assert stays(lambda: len(leased.holders) == 1, 3)
    end_pod(control_plane, running.pod)
    eventually(lambda: not leased.holders, "the holder has ended", seconds=SWEPT)
    assert leased.reserved == 2
    kubevirt.stop(running)
    kubevirt.delete(running.machine)
    eventually(leased.is_free, "it is free", seconds=SOON)


def test_what_would_be_done_is_printed_with_the_rights_of_an_operator(
    control_plane: ControlPlane, tenant: str, controller: Process
) -> None:
    pod = control_plane.create_pod(tenant, "db-0", "node-1")
    reserved = reserve_for_pod(control_plane, pod, tenant, "10.7.0.9")
    operator = user(control_plane, tenant, "operator", "cnvnet-admin")
    kubeconfig = control_plane.kubeconfig(operator.token)
    command = [installed("cnvnet-controller"), "--kubeconfig", str(kubeconfig), "--dry-run"]

    def printed() -> list[str]:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        return [line for line in done.stdout.splitlines() if tenant in line]

    assert printed() == []
    end_pod(control_plane, pod)
    name, uid = reserved.rpartition("/")[2], pod["metadata"]["uid"]
    assert printed() == [
        f"in 600 s, if nothing changes: delete reservation IPReservation {name} ({tenant}, 10.7.0.9): "
        f"pod {tenant}/db-0 ({uid}) has been gone for 0 s"
    ]
    control_plane.api.delete(reserved)


def test_another_replica_acts_when_the_first_is_killed(
    control_plane: ControlPlane,
    kubevirt: KubeVirt,
    controller: Process,
    tenant: str,
    tmp_path: Path,
) -> None:
    """The last one: it ends the controller of the others."""
    machine = kubevirt.create_machine(tenant, "web")
    leased = Leased(control_plane, machine, "10.7.0.5")
    with ExitStack() as undo:
        # An administrator may start one as well.
        by_an_admin = running_controller(control_plane.kubeconfig(), tmp_path / "second.log")
        second = undo.enter_context(by_an_admin)
        eventually(lambda: second.lines("controller started"), "the second has started")
        first = control_plane.api.get(ELECTION)["spec"]["holderIdentity"]
        assert second.lines("this replica leads") == []
        killed = time.monotonic()
        assert controller.end(signal.SIGKILL) == -signal.SIGKILL
        kubevirt.delete(machine)
        eventually(leased.is_free, "it is free", seconds=25)
        # No sooner than the Lease has expired, which was renewed two seconds before at the most.
        assert time.monotonic() - killed > 11
        assert control_plane.api.get(ELECTION)["spec"]["holderIdentity"] != first
        # One that ends by itself gives the Lease back, so that the next need not wait.
        assert second.end() == 0
        assert control_plane.api.get(ELECTION)["spec"]["holderIdentity"] == ""
