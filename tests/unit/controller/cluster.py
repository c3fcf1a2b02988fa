"""A cluster as documents of the API: what the controller's tests begin with."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from cnvnet.controller import snapshot
from cnvnet.controller.snapshot import ClusterSnapshot
from cnvnet.ipam.lease import VM_DELETED, Cooldown, Holder, Lease, LeaseKey
from cnvnet.ipam.store import objects
from cnvnet.kube.ended import OUT_OF_SERVICE_TAINT
from cnvnet.kube.resources import (
    INSTANCES,
    IP_RESERVATIONS,
    IPAM_CLAIMS,
    NODES,
    PODS,
    VIRTUAL_MACHINES,
    VM_LEASES,
    Resource,
)
from tests.fakes.api_server import ApiServer

Document = dict[str, Any]

NAMESPACE = "tenant"
NETWORK = "lan"
KUBEVIRT = "kubevirt.io/v1"
# The clock of the tests, in seconds since 1970.
CLOCK = 1_800_000_000


class Cluster:
    """Its objects by kind, namespace and name. UIDs are `<name>-uid` unless a test says otherwise."""

    def __init__(self) -> None:
        self.objects: dict[tuple[Resource, str, str], Document] = {}
        self.has_kubevirt = True
        self.add_node("n1")
        self.add_node("n2")

    def add(self, resource: Resource, document: Document) -> Document:
        metadata = document["metadata"]
        metadata.setdefault("uid", f"{metadata['name']}-uid")
        metadata.setdefault("resourceVersion", "7")
        document.setdefault("apiVersion", resource.api_version)
        document.setdefault("kind", resource.kind)
        self.objects[resource, metadata.get("namespace", ""), metadata["name"]] = document
        return document

    def remove(self, resource: Resource, name: str, namespace: str = NAMESPACE) -> None:
        del self.objects[resource, namespace if resource.namespaced else "", name]

    def get(self, resource: Resource, name: str, namespace: str = NAMESPACE) -> Document:
        return self.objects[resource, namespace if resource.namespaced else "", name]

    def all(self, resource: Resource) -> Iterator[Document]:
        return (copy.deepcopy(each) for (kind, _, _), each in self.objects.items() if kind == resource)

    def add_node(self, name: str, *, is_out_of_service: bool = False) -> None:
        taints = [{"key": OUT_OF_SERVICE_TAINT, "value": "nodeshutdown", "effect": "NoExecute"}]
        spec = {"taints": taints} if is_out_of_service else {}
        self.add(NODES, {"metadata": {"name": name}, "spec": spec})

    def add_machine(self, name: str, uid: str = "") -> Document:
        return self.add(VIRTUAL_MACHINES, _metadata(name, uid))

    def add_instance(self, name: str, uid: str = "vmi-uid", machine: str = "") -> None:
        document = _metadata(name, uid)
        if machine:
            document["metadata"]["ownerReferences"] = [_owner("VirtualMachine", name, machine)]
        self.add(INSTANCES, document)

    def add_pod(
        self, name: str, uid: str = "", *, instance: str = "", instance_uid: str = "vmi-uid"
    ) -> Document:
        document = _metadata(name, uid)
        if instance:
            owner = _owner("VirtualMachineInstance", instance, instance_uid) | {"controller": True}
            document["metadata"]["ownerReferences"] = [owner]
        return self.add(PODS, document)

    def add_running(
        self,
        vm: str,
        *,
        node: str = "n1",
        ips: tuple[str, ...] = ("10.0.0.5",),
        mac: str = "0a:58:0a:00:00:05",
    ) -> objects.StoredLease:
        """A VM, its instance, its pod, its lease and the reservations of that."""
        self.add_machine(vm)
        self.add_instance(vm, f"{vm}-vmi", machine=f"{vm}-uid")
        self.add_pod(f"{vm}-pod", instance=vm, instance_uid=f"{vm}-vmi")
        return self.add_lease(vm, holders=[holder(f"{vm}-pod", node)], ips=ips, mac=mac)

    def add_lease(
        self,
        vm: str,
        *,
        holders: list[Holder] | None = None,
        ips: tuple[str, ...] = ("10.0.0.5",),
        mac: str = "0a:58:0a:00:00:05",
        vm_uid: str | None = None,
        release: str = VM_DELETED,
        cooldown: int = 0,
        cooling: tuple[Cooldown, ...] = (),
        uid: str = "",
        is_deleted: bool = False,
        is_reserved: bool = True,
    ) -> objects.StoredLease:
        """A VM's lease and its reservations."""
        lease = Lease(
            key=key(vm),
            ips=tuple(ip_address(each) for each in ips),
            mac=mac,
            vm_uid=f"{vm}-uid" if vm_uid is None else vm_uid,
            release=release,
            cooldown=cooldown,
            holders=tuple(holders or ()),
        )
        document = objects.lease_document(lease, cooling=cooling, nonce="1")
        document["metadata"]["uid"] = uid or f"lease-{vm}"
        if is_deleted:
            document["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
        stored = objects.read_lease(self.add(VM_LEASES, document))
        if is_reserved:
            for address in (*stored.listed, *(str(each.ip) for each in cooling)):
                self.reserve(stored.key, address, stored.uid)
        return stored

    def reserve(self, leased: LeaseKey, address: str, lease_uid: str) -> str:
        """A lease's reservation; its name."""
        document = objects.reservation_document(leased, address, nonce="1", lease_uid=lease_uid)
        return str(self.add(IP_RESERVATIONS, document)["metadata"]["name"])

    def reserve_for_pod(
        self, pod: str, node: str = "n1", *, address: str = "10.0.0.9", uid: str = "", cooldown: int = 0
    ) -> str:
        """The reservation of a pod that is no VM; its name."""
        held = holder(pod, node, uid=uid)
        lease = Lease(
            key=LeaseKey(NETWORK, "", held.container_id, held.ifname),
            ips=(ip_address(address),),
            release="pod",
            cooldown=cooldown,
            holders=(held,),
        )
        document = objects.reservation_document(lease.key, address, nonce="1", pod=lease)
        return str(self.add(IP_RESERVATIONS, document)["metadata"]["name"])

    def load(self, server: ApiServer) -> None:
        """Its objects into a server."""
        for (resource, _, _), document in self.objects.items():
            server.objects.put(resource, document)

    def snapshot(self) -> ClusterSnapshot:
        kubevirt = self.has_kubevirt
        taken = snapshot.assemble(
            reservations=self.all(IP_RESERVATIONS),
            leases=self.all(VM_LEASES),
            pods=self.all(PODS),
            instances=self.all(INSTANCES),
            machines=self.all(VIRTUAL_MACHINES) if kubevirt else None,
            nodes=self.all(NODES),
        )
        return taken._replace(claims=frozenset(each["metadata"]["uid"] for each in self.all(IPAM_CLAIMS)))


def key(vm: str) -> LeaseKey:
    return LeaseKey(NETWORK, NAMESPACE, vm, "pod1")


def holder(pod: str, node: str = "n1", *, role: str = "active", uid: str = "") -> Holder:
    return Holder(
        container_id=f"{pod}-container",
        ifname="pod1",
        role=role,
        netns=f"/run/netns/{pod}",
        inode=4026531840,
        boot_id="boot",
        since=CLOCK - 60,
        node=node,
        pod=f"{NAMESPACE}/{pod}",
        pod_uid=uid or f"{pod}-uid",
    )


def cooling(vm: str, ip: str, until: int) -> Cooldown:
    return Cooldown(key(vm), ip_address(ip), "", f"{vm}-uid", until, until - 60)


def _metadata(name: str, uid: str) -> Document:
    return {"metadata": {"name": name, "namespace": NAMESPACE, "uid": uid or f"{name}-uid"}}


def _owner(kind: str, name: str, uid: str) -> Document:
    return {"apiVersion": KUBEVIRT, "kind": kind, "name": name, "uid": uid}
