"""Does the steps of a plan, each only if all is still as it was when the step was planned.

Each change names the version of the object that it is for, and what must be absent is asked for once more
right before. A step that was interrupted is planned again: no order of ends between two requests frees an
address that something may still use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from cnvnet.controller import snapshot, steps
from cnvnet.controller.snapshot import UnreadableObject, read_lease
from cnvnet.controller.steps import Absence, CleanupStep
from cnvnet.controller.sweep import is_finishable, reserved
from cnvnet.ipam.store import objects
from cnvnet.ipam.store.object_names import FINALIZER, reservation_name
from cnvnet.ipam.store.objects import StoredLease, StoredReservation
from cnvnet.kube.api import Api, ApiError, Conflict, Document, NotFound, deadline
from cnvnet.kube.ended import OUT_OF_SERVICE, node_state, pod_uids
from cnvnet.kube.resources import IP_RESERVATIONS, IPAM_CLAIMS, NODES, VM_LEASES, Resource

# The status for a kind that the server does not have, as for an object (NotFound).
_UNKNOWN_KIND: Final = 404


class Overtaken(Exception):
    """Something has changed since the step was planned: nothing was done, and it is planned anew."""


class Done(NamedTuple):
    """What was done: for log, metrics and events."""

    action: str
    # The object, as its event names it.
    document: Document
    subject: str
    network: str
    # Freed addresses, or those of the lease whose holder has ended.
    addresses: tuple[str, ...]
    reason: str
    holder: str = ""


class Cleaner:
    """One thread uses it. `ensure` says how long a write may take, in seconds, or raises."""

    def __init__(
        self,
        api: Api,
        ensure: Callable[[], float],
        report: Callable[[Done], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._ensure = ensure
        self._report = report
        self._clock = clock

    def run(self, step: CleanupStep) -> None:
        """Does a step. Overtaken, ApiError, and what `ensure` raises."""
        for absence in step.absences:
            self._confirm(absence)
        if step.lease is not None:
            self._change_lease(step, step.lease)
        elif step.reservation is not None:
            self._change_reservation(step, step.reservation)

    def finish(self, namespace: str, name: str, reason: str = "it is deleted and no pod holds it") -> bool:
        """Frees the addresses of a VMLease that is being deleted, and removes its finalizer.

        False: it is not finished now, since it is not deleted, pods hold it, or it is gone. Overtaken,
        ApiError, UnreadableObject.
        """
        try:
            document = self._api.get(VM_LEASES, name, namespace)
        except NotFound:
            return False
        # Nothing becomes a holder of a lease that is marked: agents write a version that they have read.
        stored = read_lease(document).stored
        if not is_finishable(stored):
            return False
        until = self._cooldowns(stored)
        freed = [each for each in sorted(reserved(stored)) if self._free(stored, each, until.get(each, 0))]
        rest = [each for each in stored.finalizers if each != FINALIZER]
        self._patch(VM_LEASES, stored.name, stored.version, {"metadata": {"finalizers": rest}}, namespace)
        self._say(steps.FINISH_LEASE, document, stored.key.network, tuple(freed), reason)
        return True

    # -- leases

    def _change_lease(self, step: CleanupStep, lease: StoredLease) -> None:
        namespace = lease.key.namespace
        if step.action == steps.FINISH_LEASE:
            self.finish(namespace, lease.name, step.reason)
            return
        document: Document = _identity(VM_LEASES, namespace, lease.name, lease.uid)
        if step.action == steps.END_HOLDER:
            changes: Document = {"holders": {step.holder: None}, "roles": {step.holder: None}}
            if len(lease.holder_keys) == 1:
                changes["left"] = int(self._clock())
            document = self._patch(VM_LEASES, lease.name, lease.version, {"status": changes}, namespace)
        elif step.action == steps.END_COOLDOWN:
            document = self._end_cooldown(lease)
        else:
            self._delete(VM_LEASES, lease.name, namespace, uid=lease.uid, version=lease.version)
        self._say(step.action, document, lease.key.network, step.addresses, step.reason, step.holder)

    def _end_cooldown(self, lease: StoredLease) -> Document:
        now = int(self._clock())
        rest = tuple(each for each in lease.cooling if each.until > now)
        patch = objects.lease_patch(
            lease, lease.lease, lease.lease, cooling=rest, nonce="", pending=lease.pending, now=now
        )
        document = self._patch(VM_LEASES, lease.name, lease.version, patch, lease.key.namespace)
        # The lease keeps them no longer, so that they can be freed; a later sweep frees those that are left.
        kept = {*lease.listed, *lease.pending, *(str(each.ip) for each in rest)}
        for each in lease.cooling:
            if str(each.ip) not in kept:
                self._free(lease, str(each.ip), 0)
        return document

    def _cooldowns(self, lease: StoredLease) -> dict[str, int]:
        """Until when the addresses of a lease that ends are kept from others."""
        now = int(self._clock())
        until = {str(each.ip): each.until for each in lease.cooling if each.until > now}
        if lease.lease is not None and lease.lease.cooldown > 0:
            until |= {str(each): now + lease.lease.cooldown for each in lease.lease.ips}
        return until

    def _free(self, lease: StoredLease, address: str, until: int) -> bool:
        """Frees an address that is reserved for a lease, or lets it cool down; whether it is free now."""
        try:
            document = self._api.get(IP_RESERVATIONS, reservation_name(lease.key.network, address))
        except NotFound:
            return False
        reservation = _read_reservation(document)
        if reservation.lease_uid != lease.uid:
            return False  # it belongs to another lease, or to a pod
        if until and not reservation.until:
            self._cool(reservation, until)
        elif not until:
            if not lease.is_deleted:
                # Read after its reservation: an ADD may have taken the address back.
                self._ensure_unlisted(reservation)
            self._delete(IP_RESERVATIONS, reservation.name, uid=reservation.uid, version=reservation.version)
        return not until

    # -- reservations

    def _change_reservation(self, step: CleanupStep, reservation: StoredReservation) -> None:
        document = _identity(IP_RESERVATIONS, "", reservation.name, reservation.uid)
        if step.action == steps.COOL_RESERVATION:
            cooldown = reservation.pod.cooldown if reservation.pod is not None else 0
            self._cool(reservation, int(self._clock()) + cooldown)
        else:
            if reservation.lease_uid:
                self._ensure_unlisted(reservation)
            self._delete(IP_RESERVATIONS, reservation.name, uid=reservation.uid, version=reservation.version)
        self._say(step.action, document, reservation.network, step.addresses, step.reason)

    def _ensure_unlisted(self, reservation: StoredReservation) -> None:
        """Its lease does not list the address. A lease does so before the address is reserved."""
        try:
            document = self._api.get(VM_LEASES, reservation.lease_name, reservation.namespace)
        except NotFound:
            return
        lease = read_lease(document).stored
        if lease.uid == reservation.lease_uid and reservation.address in reserved(lease):
            raise Overtaken(
                f"VMLease {reservation.namespace}/{lease.name} lists {reservation.address} again"
            )

    def _cool(self, reservation: StoredReservation, until: int) -> None:
        cooling = {"until": until, "since": int(self._clock())}
        self._patch(IP_RESERVATIONS, reservation.name, reservation.version, {"spec": {"cooling": cooling}})

    # -- preconditions

    def _confirm(self, absence: Absence) -> None:
        """The object is not there. Overtaken, ApiError."""
        try:
            document = self._api.get(absence.resource, absence.name, absence.namespace)
        except NotFound:
            return
        except ApiError as e:
            if absence.resource == IPAM_CLAIMS and e.status == _UNKNOWN_KIND:
                return  # which a cluster need not have
            raise
        uids = pod_uids(document)
        if absence.uid and absence.uid not in uids:
            return
        if (
            absence.resource == NODES
            and absence.or_out_of_service
            and node_state(document) == OUT_OF_SERVICE
        ):
            return
        where = f"{absence.namespace}/{absence.name}" if absence.namespace else absence.name
        raise Overtaken(f"{absence.resource.kind} {where} is there")

    def _patch(
        self, resource: Resource, name: str, version: str, patch: Mapping[str, Any], namespace: str = ""
    ) -> Document:
        metadata = {**patch.get("metadata", {}), "resourceVersion": version}
        with deadline(self._ensure()):
            try:
                return self._api.patch(resource, name, {**patch, "metadata": metadata}, namespace)
            except (Conflict, NotFound) as e:
                raise Overtaken(str(e)) from e

    def _delete(self, resource: Resource, name: str, namespace: str = "", *, uid: str, version: str) -> None:
        with deadline(self._ensure()):
            try:
                self._api.delete(resource, name, namespace, uid=uid, resource_version=version)
            except NotFound:
                pass  # also where the answer to a first request was lost
            except Conflict as e:
                raise Overtaken(str(e)) from e

    def _say(
        self,
        action: str,
        document: Document,
        network: str,
        addresses: tuple[str, ...],
        reason: str,
        holder: str = "",
    ) -> None:
        metadata = document["metadata"]
        where = "/".join(filter(None, (metadata.get("namespace"), metadata["name"])))
        subject = f"{document['kind']} {where}"
        self._report(Done(action, document, subject, network, addresses, reason, holder))


def _read_reservation(document: Document) -> StoredReservation:
    (reservations, doubts) = snapshot.read_reservations([document])
    if doubts:
        raise UnreadableObject(f"{doubts[0].subject}: {doubts[0].reason}")
    return reservations[0]


def _identity(resource: Resource, namespace: str, name: str, uid: str) -> Document:
    metadata = {"name": name, "uid": uid, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
