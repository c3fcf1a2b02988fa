"""How holds, leases and the addresses of pods end in the Kubernetes API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import Cooldown, Lease, LeaseKey
from cnvnet.ipam.store import holds, object_names, objects
from cnvnet.ipam.store.holds import Hold, Holds
from cnvnet.ipam.store.kubernetes_facts import Facts
from cnvnet.ipam.store.kubernetes_reservations import Claim, Reservations, TryAgain
from cnvnet.ipam.store.objects import StoredLease
from cnvnet.kube.api import Api, ApiError, Conflict, Document, NotFound
from cnvnet.kube.resources import VM_LEASES

# HTTP: what the server says to a UID that is another object's.
_UNPROCESSABLE: Final = 422


def roles_patch(stored: StoredLease) -> Document:
    """The merge patch after which the VMLease shows the roles that its holders have; {} where it does."""
    holders = stored.lease.holders if stored.lease is not None else ()
    roles = {stored.holder_keys[each.container_id, each.ifname]: each.role for each in holders}
    changed: Document = {key: role for key, role in roles.items() if stored.roles.get(key) != role}
    if not changed:
        return {}
    return {"metadata": {"resourceVersion": stored.version}, "status": {"roles": changed}}


class Endings:
    """What one run ends."""

    def __init__(self, api: Api, facts: Facts, held: Holds, reservations: Reservations) -> None:
        self._api = api
        self._facts = facts
        self._holds = held
        self._reservations = reservations

    def end_blindly(self, hold: Hold, now: int) -> None:
        """End a holder of a VM's lease that outlives it: one request, whatever else the lease is by now.

        Where the lease is as its first ADD has left it, the same request says that its addresses are
        reserved, and the next ADD need not look. ApiError.
        """
        # Of a disputed hold an address is reserved for another lease.
        settled = hold.version if hold.is_unsettled and not hold.dispute else ""
        if not (settled and self._end_holder(hold, now, settled)):
            self._end_holder(hold, now, "")
        self.tidy(hold)
        self.end_if_marked(hold)

    def _end_holder(self, hold: Hold, now: int, settled: str) -> bool:
        """Whether it has ended, or its lease with it; False: the lease or its version is another one."""
        key = hold.lease.key
        patch = objects.release_patch(hold.holder_key, uid=hold.lease_uid, now=now, settled=settled)
        try:
            left = self._api.patch(VM_LEASES, object_names.lease_name(key), patch, key.namespace)
        except NotFound:
            return True
        except ApiError as e:
            # Another lease has the name by now: what it lacks is this UID.
            if e.status not in (_UNPROCESSABLE, 409):
                raise
            return False
        self._show_heir(left)
        return True

    def _show_heir(self, document: Document) -> None:
        """Say which pod is active after the one that was: for people; programs know it without."""
        try:
            stored = objects.read_lease(document)
            if patch := roles_patch(stored):
                self._api.patch(VM_LEASES, stored.name, patch, stored.key.namespace)
        except CNIError:
            pass  # the next write says it

    def end_pods(
        self,
        key: LeaseKey,
        ended: list[Hold],
        cooling: tuple[Cooldown, ...],
        elsewhere: Lease | None = None,
    ) -> None:
        """Free what pods had that are no VM, but for addresses that cool down. ApiError.

        Where none of this node's has `ended`, `elsewhere` is the lease of another node's pod.
        """
        if not ended and elsewhere is not None:
            self._end_reservations(key, self._reserved_for(elsewhere, ()), cooling)
        for hold in ended:
            # None: killed between a CREATE and its answer.
            known = dict(hold.reservations) or self._reserved_for(hold.lease, hold.addresses)
            kept = self._end_reservations(key, known, cooling)
            if kept:
                ips = tuple(each.ip for each in cooling)
                self._holds.write(
                    hold._replace(
                        state=holds.COOLING,
                        lease=hold.lease._replace(ips=ips, holders=()),
                        reservations=kept,
                        until=cooling[0].until,
                        since=cooling[0].since,
                    )
                )

    def _reserved_for(self, pod: Lease, addresses: Iterable[str]) -> dict[str, str]:
        """The IPReservations of a pod that is no VM, by their names, and their UIDs."""
        claim, known = Claim(pod.key, pod=pod), dict[str, str]()
        for address in {*addresses, *objects.addresses_of(pod)}:
            reservation = self._facts.read_reservation(pod.key.network, address)
            if reservation is not None and claim.has(reservation):
                known[reservation.name] = reservation.uid
        return known

    def _end_reservations(
        self, key: LeaseKey, known: Mapping[str, str], cooling: tuple[Cooldown, ...]
    ) -> dict[str, str]:
        """Delete these but for those of addresses that cool down, which are kept and returned."""
        names = {object_names.reservation_name(key.network, str(each.ip)) for each in cooling}
        kept = {name: uid for name, uid in known.items() if name in names}
        self._reservations.delete_known({name: uid for name, uid in known.items() if name not in names})
        if kept:
            self._reservations.cool(kept, until=cooling[0].until, since=cooling[0].since)
        return kept

    def end_lease(self, stored: StoredLease) -> None:
        """Delete a VMLease as it was seen. TryAgain, ApiError.

        It is marked, so that nothing can be added; then its addresses are freed, and then it goes.
        """
        key = stored.key
        try:
            if not stored.is_deleted:
                self._api.delete(
                    VM_LEASES, stored.name, key.namespace, uid=stored.uid, resource_version=stored.version
                )
            addresses = {*stored.listed, *stored.pending, *(str(each.ip) for each in stored.cooling)}
            claim = Claim(key, lease_uid=stored.uid)
            self._reservations.drop(claim, sorted(addresses), is_marked=True)
            others = [each for each in stored.finalizers if each != object_names.FINALIZER]
            patch = {"metadata": {"uid": stored.uid, "finalizers": others or None}}
            self._api.patch(VM_LEASES, stored.name, patch, key.namespace)
        except NotFound:
            pass
        except Conflict:
            self._facts.forget(key)
            raise TryAgain from None

    def tidy(self, hold: Hold) -> None:
        """Free addresses that an attempt has reserved, or was to free, and that the lease does not list."""
        if not hold.addresses or not hold.lease.key.is_vm:
            return
        stored = self._facts.read_lease(hold.lease.key.namespace, object_names.lease_name(hold.lease.key))
        cooling = [str(each.ip) for each in stored.cooling] if stored is not None else []
        listed = {*(stored.listed if stored is not None else ()), *cooling}
        uids = {hold.lease_uid, stored.uid if stored is not None else ""} - {""}
        for uid in uids:
            gone = stored is None or stored.uid != uid
            left = hold.addresses if gone else [each for each in hold.addresses if each not in listed]
            self._reservations.drop(Claim(hold.lease.key, lease_uid=uid), left)

    def end_if_marked(self, hold: Hold) -> None:
        """Go on with the deletion of a lease that a call has begun and that was killed. ApiError."""
        if not hold.ends:
            return
        key = hold.lease.key
        stored = self._facts.read_lease(key.namespace, object_names.lease_name(key))
        if stored is not None and stored.is_deleted and not stored.holder_keys:
            self.end_lease(stored)
