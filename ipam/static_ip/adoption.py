"""A node's leases become the cluster's when their network has: those of pods that run and of stopped VMs.

That a network is the cluster's is said by its IPNetwork, which an administrator makes, or the first ADD
whose configuration says `store: kubernetes`. From then on each node's agent hands over what its own folders
have of it. A VM that has run as a container, on a node without credentials, gets a lease by its name then,
if what Multus says of the pod's interface is what the lease has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import NamedTuple

from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import ADDED, Record
from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.executables import CNV_BRIDGE
from cnvnet.ipam import allocator
from cnvnet.ipam.lease import POD, VM_DELETED, Lease, LeaseKey
from cnvnet.ipam.static_ip.asked import machine_owner
from cnvnet.ipam.static_ip.switching import settle
from cnvnet.ipam.store import data_dirs
from cnvnet.ipam.store.kubernetes import KubernetesStore
from cnvnet.ipam.store.ref import KUBERNETES, StoreRef
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kube.api import Document
from cnvnet.kube.resources import PODS
from cnvnet.vm.directory import Directory
from cnvnet.vm.identity import TARGET
from cnvnet.vm.launcher import Subject
from cnvnet.vm.network_status import ANNOTATION, interfaces_of


class Adopted(NamedTuple):
    """The leases that the cluster has got, and why it could not get others."""

    leases: tuple[Lease, ...]
    left: tuple[str, ...]


class _Heir(NamedTuple):
    """A lease as the cluster is to have it, and whose VM's it is."""

    lease: Lease
    subject: Subject | None
    node: str


class Adoption:
    """One look at the folders of a node."""

    def __init__(
        self,
        store: KubernetesStore,
        directory: Directory,
        *,
        statedir: str,
        rundir: str,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._directory = directory
        self._statedir = statedir
        self._files = AttachmentFiles(rundir)
        self._clock = clock
        self._adopted: list[Lease] = []
        self._left: list[str] = []

    def run(self) -> Adopted:
        """Hand over what can be. One lease, or one folder, that cannot be read keeps no other."""
        for folder in dict.fromkeys((self._statedir, *data_dirs.read(self._statedir).folders)):
            try:
                self._hand_over(Sqlite(folder))
            except CNIError as e:
                self._left.append(e.msg)
        return Adopted(tuple(self._adopted), tuple(self._left))

    def _hand_over(self, source: Sqlite) -> None:
        # Of a file that an older version has left, None: the next ADD brings it up to date.
        leases = source.glance(lambda ledger: list(ledger.leases())) if source.exists() else None
        networks = sorted({each.key.network for each in leases or ()})
        moved = {network for network in networks if self._store.networks.is_there(network)}
        if not leases or not moved:
            return
        records = {each.key[1:]: each for each in self._files.records(CNV_BRIDGE)}
        # The newest first: of two pods of one VM it is the one that stays.
        for lease in sorted(leases, key=lambda each: -each.since):
            if lease.key.network not in moved:
                continue
            try:
                self._hand_over_one(source, lease, records)
            except CNIError as e:
                self._left.append(f"{lease.key}: {e.msg}")

    def _hand_over_one(
        self, source: Sqlite, lease: Lease, records: Mapping[tuple[str, str, str], Record]
    ) -> None:
        of_lease = [
            record
            for holder in lease.holders
            if (record := records.get((lease.key.network, holder.container_id, holder.ifname))) is not None
        ]
        if any(each.state != ADDED for each in of_lease):
            return  # a call is under way
        heir = self._heir(lease, of_lease)
        if heir is None:
            return
        now = self._clock()
        store = self._store.for_call(machine_owner(heir.subject), heir.node)
        store.run(lambda ledger: allocator.adopt(ledger, heir.lease, origin=source.name, now=now))
        for record in of_lease:
            self._note(record)
        settle(source, store, lease, now)
        self._adopted.append(heir.lease)

    def _heir(self, lease: Lease, records: list[Record]) -> _Heir | None:
        """None for what waits: a migration's target has the addresses that the source's node hands over."""
        if not lease.holders:
            return _Heir(lease._replace(release=_release(lease, records)), None, self._store.node)
        subject, node = None, self._store.node
        holders = list(lease.holders)
        for index, holder in enumerate(holders):
            if not holder.pod:
                raise CNIError(TRY_AGAIN_LATER, "its container is no pod's, which the cluster does not know")
            namespace, _, name = holder.pod.partition("/")
            pod = PodRef(namespace, name, holder.pod_uid)
            subject = self._directory.subject(pod, holder.ifname)
            document = self._directory.api.get(PODS, name, namespace)
            node = str((document.get("spec") or {}).get("nodeName") or node)
            if not lease.key.is_vm:
                _ensure_is_of(document, holder.ifname, lease)
            role = subject.role if subject is not None and not lease.key.is_vm else holder.role
            holders[index] = holder._replace(node=node, role=role)
        if any(each.role == TARGET for each in holders) and not lease.key.is_vm:
            return None
        heir = lease._replace(holders=tuple(holders))
        if subject is not None:
            vm = subject.vm
            key = LeaseKey(lease.key.network, vm.namespace, vm.name, vm.interface)
            heir = heir._replace(key=key, vm_uid=vm.uid, release=_release(lease, records))
        return _Heir(heir, subject, node)

    def _note(self, record: Record) -> None:
        """The record says from now on where the lease is. CNIError."""
        where = StoreRef(KUBERNETES, self._statedir)
        with self._files.locked(record.key) as slot:
            current = slot.read()
            if current is not None:
                slot.write(current._replace(undo={**current.undo, "store": where._asdict()}))


def _release(lease: Lease, records: list[Record]) -> str:
    """The cluster's policy: a node's own ends with the pod unless another one is written."""
    written = [(each.undo.get("ipam") or {}).get("release") for each in records]
    return VM_DELETED if lease.release == POD and POD not in written else lease.release


def _ensure_is_of(pod: Document, ifname: str, lease: Lease) -> None:
    """CNIError 11 unless the pod's interface has the lease's addresses, as Multus or the kubelet says."""
    ips = set(lease.ips)
    for each in interfaces_of(pod):
        if each.name == ifname:
            if each.ips == ips and lease.mac in ("", each.mac):
                return
            raise _differs(f"{ANNOTATION} says {', '.join(map(str, each.ips))} {each.mac}".rstrip(), lease)
    status = pod.get("status") or {}
    if ifname == "eth0" and ips == {ip_address(each["ip"]) for each in status.get("podIPs") or ()}:
        return
    raise _differs(f"{ANNOTATION} has no interface {ifname}", lease)


def _differs(text: str, lease: Lease) -> CNIError:
    has = ", ".join(filter(None, (*map(str, lease.ips), lease.mac)))
    return CNIError(TRY_AGAIN_LATER, f"{text}, and the lease has {has}")
