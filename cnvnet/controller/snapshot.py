"""What a sweep decides by: the objects of the cluster, read. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from cnvnet.cni.errors import CNIError
from cnvnet.controller import known_fields
from cnvnet.ipam.lease import POLICIES
from cnvnet.ipam.store import object_names, objects
from cnvnet.ipam.store.objects import StoredLease, StoredReservation
from cnvnet.kube.ended import node_state, pod_uids

Document = Mapping[str, Any]

_CLAIMS: Final = "k8s.cni.cncf.io/"
_KUBEVIRT: Final = "kubevirt.io/"


class Reference(NamedTuple):
    """An object that another one names."""

    name: str
    uid: str


class Instance(NamedTuple):
    """A VirtualMachineInstance. `machine` is the UID of its VirtualMachine, "" for one that has none."""

    namespace: str
    name: str
    uid: str
    machine: str


class SweptLease(NamedTuple):
    """A VMLease, and the IPAMClaim that owns it."""

    stored: StoredLease
    claim: Reference | None


class Doubt(NamedTuple):
    """An object that is left alone, and why."""

    subject: str
    reason: str


class ClusterSnapshot(NamedTuple):
    """The cluster. What refers to an object was listed before it, so none of them is missed."""

    reservations: tuple[StoredReservation, ...]
    leases: tuple[SweptLease, ...]
    # The UIDs of all VMLeases, of those too that cannot be read.
    lease_uids: frozenset[str]
    # The UIDs of all pods; of static ones also the kubelet's.
    pods: frozenset[str]
    # The UIDs of the instances that pods belong to, by namespace and name of the instance.
    launchers: Mapping[tuple[str, str], frozenset[str]]
    # By namespace and name.
    instances: Mapping[tuple[str, str], Instance]
    # The UIDs of all VirtualMachines; None where the cluster has no such kind.
    machines: frozenset[str] | None
    # PRESENT or OUT_OF_SERVICE by name.
    nodes: Mapping[str, str]
    # The UIDs of the IPAMClaims that are there, of those that own leases whose VM is not.
    claims: frozenset[str]
    doubts: tuple[Doubt, ...]


def assemble(
    *,
    reservations: Iterable[Document],
    leases: Iterable[Document],
    pods: Iterable[Document],
    instances: Iterable[Document],
    machines: Iterable[Document] | None,
    nodes: Iterable[Document],
) -> ClusterSnapshot:
    """The cluster, of its objects as the API has them; that IPAMClaims are there is not known yet.

    Of pods, instances and machines the metadata alone are read.
    """
    leases, pods = list(leases), list(pods)
    known_reservations, unread_reservations = read_reservations(reservations)
    known_leases, unread_leases = read_leases(leases)
    read = [read_instance(each) for each in instances]
    return ClusterSnapshot(
        reservations=tuple(known_reservations),
        leases=tuple(known_leases),
        lease_uids=frozenset(map(uid_of, leases)),
        pods=frozenset(uid for each in pods for uid in pod_uids(each)),
        launchers=read_launchers(pods),
        instances={(each.namespace, each.name): each for each in read},
        machines=None if machines is None else frozenset(map(uid_of, machines)),
        nodes={each["metadata"]["name"]: node_state(each) for each in nodes},
        claims=frozenset(),
        doubts=(*unread_reservations, *unread_leases),
    )


def claims_asked_for(snapshot: ClusterSnapshot) -> set[tuple[str, Reference]]:
    """The IPAMClaims, by namespace, on which it depends what becomes of a lease: those of absent VMs."""
    return {
        (each.stored.key.namespace, each.claim)
        for each in snapshot.leases
        if each.claim is not None
        and each.stored.lease is not None
        and snapshot.machines is not None
        and each.stored.lease.vm_uid not in snapshot.machines
    }


def read_reservations(documents: Iterable[Document]) -> tuple[list[StoredReservation], list[Doubt]]:
    """The IPReservations that can be read."""
    reservations: list[StoredReservation] = []
    doubts: list[Doubt] = []
    for each in documents:
        subject = f"IPReservation {each['metadata'].get('name', '')}"
        if unknown := known_fields.unknown_field(each, known_fields.IP_RESERVATION):
            doubts.append(Doubt(subject, f"{unknown}: a field that this version does not know"))
            continue
        try:
            reservations.append(objects.read_reservation(each))
        except (CNIError, ValueError) as e:
            doubts.append(Doubt(subject, str(e)))
    return reservations, doubts


def read_leases(documents: Iterable[Document]) -> tuple[list[SweptLease], list[Doubt]]:
    """The VMLeases that can be read."""
    leases: list[SweptLease] = []
    doubts: list[Doubt] = []
    for each in documents:
        try:
            leases.append(read_lease(each))
        except UnreadableObject as e:
            doubts.append(Doubt(subject_of_lease(each), str(e)))
    return leases, doubts


class UnreadableObject(Exception):
    """An object that is left alone; the text says why."""


def read_lease(document: Document) -> SweptLease:
    """A VMLease. UnreadableObject."""
    if unknown := known_fields.unknown_field(document, known_fields.VM_LEASE):
        raise UnreadableObject(f"{unknown}: a field that this version does not know")
    try:
        stored = objects.read_lease(document)
        # They are freed by their names, and no schema says that they are addresses.
        object_names.ips_of(stored.pending)
    except (CNIError, ValueError) as e:
        raise UnreadableObject(str(e)) from e
    if stored.lease is not None and stored.lease.release not in POLICIES:
        raise UnreadableObject(f"spec.release: {stored.lease.release!r}, which this version does not know")
    owners = document["metadata"].get("ownerReferences") or ()
    claims = (each for each in owners if str(each.get("apiVersion", "")).startswith(_CLAIMS))
    claim = next((Reference(str(each.get("name")), str(each.get("uid"))) for each in claims), None)
    return SweptLease(stored, claim)


def subject_of_lease(document: Document) -> str:
    """A VMLease in a message."""
    return f"VMLease {document['metadata'].get('namespace', '')}/{document['metadata'].get('name', '')}"


def uid_of(document: Document) -> str:
    """An object's UID."""
    return str(document["metadata"].get("uid", ""))


def read_launchers(pods: Iterable[Document]) -> dict[tuple[str, str], frozenset[str]]:
    """The instances that pods belong to."""
    instances: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for each in pods:
        metadata = each["metadata"]
        for owner in metadata.get("ownerReferences") or ():
            if _is(owner, "VirtualMachineInstance"):
                instances[metadata["namespace"], owner["name"]].add(owner["uid"])
    return {key: frozenset(uids) for key, uids in instances.items()}


def read_instance(document: Document) -> Instance:
    """A VirtualMachineInstance."""
    metadata = document["metadata"]
    owners = metadata.get("ownerReferences") or ()
    machine = next((str(each["uid"]) for each in owners if _is(each, "VirtualMachine")), "")
    return Instance(metadata["namespace"], metadata["name"], metadata["uid"], machine)


def _is(owner: Document, kind: str) -> bool:
    return owner.get("kind") == kind and str(owner.get("apiVersion", "")).startswith(_KUBEVIRT)
