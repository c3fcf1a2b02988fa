"""IPReservations: the requests that make an address one lease's, and free it again.

Two rules keep two leases from counting on one address. A lease lists an address before it is reserved, and
no longer lists it before it is freed: so a reservation that its lease does not list belongs to nothing, and
may be deleted by the version at which it was seen. And what finds a reservation of its own that an earlier
attempt has left takes it over by a write, so that such a deletion, decided before, no longer succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import partial
from ipaddress import ip_address
from typing import Any, Final

from cnvnet.call_context import started
from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import Cooldown, Lease, LeaseKey
from cnvnet.ipam.store import object_names, objects
from cnvnet.ipam.store.kubernetes_facts import Facts
from cnvnet.ipam.store.objects import StoredReservation
from cnvnet.kube.api import Api, ApiError, Conflict, Document, NotFound
from cnvnet.kube.resources import IP_RESERVATIONS

# What admission answers for another node's reservation (conf/kustomize/base/system).
_FORBIDDEN: Final = 403

# Attempts to reserve one address while others delete and make its object.
_ATTEMPTS: Final = 8


class TryAgain(Exception):
    """A guess was wrong, or an object has changed since it was read."""


class Claim:
    """On what an address is reserved: a VM's lease, by its UID, or a pod that is no VM."""

    def __init__(self, key: LeaseKey, *, lease_uid: str = "", pod: Lease | None = None) -> None:
        self.key = key
        self.lease_uid = lease_uid
        self.pod = pod

    def document(self, address: str, nonce: str, node: str) -> dict[str, Any]:
        """The IPReservation of an address, made by a node."""
        return objects.reservation_document(
            self.key, address, nonce=nonce, node=node, lease_uid=self.lease_uid, pod=self.pod
        )

    def has(self, reservation: StoredReservation) -> bool:
        """Whether a reservation is this one's."""
        if reservation.pod is not None:
            return self.pod is not None and reservation.pod.key == self.key
        return bool(self.lease_uid) and reservation.lease_uid == self.lease_uid


class Reservations:
    """The reservations of one run on a node.

    Admission lets an agent delete what its own node has made; the controller frees the rest.
    """

    def __init__(self, api: Api, facts: Facts, node: str) -> None:
        self._api = api
        self._facts = facts
        self._node = node

    @contextmanager
    def begun(
        self, claim: Claim, addresses: Iterable[str], nonce: str
    ) -> Generator[dict[str, Callable[[], Document]]]:
        """Asks for addresses beside what this thread does, where that can be: what waits for each answer.

        Those that are left in the dictionary have been answered at the end of the block.
        """
        create = partial(self._api.create, IP_RESERVATIONS)
        begun = {
            each: answer
            for each in addresses
            if (answer := started(partial(create, claim.document(each, nonce, self._node)))) is not None
        }
        try:
            yield begun
        finally:
            for answer in begun.values():
                with suppress(CNIError):
                    answer()

    def reserve(
        self,
        claim: Claim,
        address: str,
        nonce: str,
        over: int,
        answer: Callable[[], Document] | None = None,
    ) -> StoredReservation:
        """Make the address the claim's. Cooldowns that end at `over` or before keep it from nothing.

        `answer` is that of `begun`. TryAgain if it is another one's, which is known then; ApiError.
        """
        network, document = claim.key.network, claim.document(address, nonce, self._node)
        for _ in range(_ATTEMPTS):
            create, answer = answer or partial(self._api.create, IP_RESERVATIONS, document), None
            try:
                made = objects.read_reservation(create())
            except Conflict:
                reservation = self._facts.read_reservation(network, address)
            else:
                self._facts.learn(network, address, None)
                return made
            if reservation is None:
                continue
            if claim.has(reservation):
                own = self._take_over(reservation, document, nonce)
                if own is not None:
                    return own
                continue
            owner = self._facts.owner_by(reservation)
            if owner is not None and not (isinstance(owner, Cooldown) and owner.until <= over):
                self._facts.learn(network, address, owner)
                break
            if not self.delete(reservation):
                self._facts.leave(network, address, _left_to_the_controller(reservation))
                break
        self._facts.conflicts += 1
        raise TryAgain

    def reserve_listed(self, claim: Claim, address: str, nonce: str, over: int) -> None:
        """Make sure of an address that the lease lists since the ADD with this nonce; like `reserve`."""
        seen = self._facts.seen(claim.key.network, address)
        if seen is None or not claim.has(seen) or seen.nonce != nonce:
            self.reserve(claim, address, nonce, over)

    def _take_over(
        self, reservation: StoredReservation, document: dict[str, Any], nonce: str
    ) -> StoredReservation | None:
        """A reservation of our own; None if it is gone or has changed."""
        if reservation.nonce == nonce and not reservation.until:
            # The answer to its CREATE was lost, or another ADD of the same lease has made it.
            return reservation
        # It stays the node's that has made it.
        spec = {name: value for name, value in document["spec"].items() if name != "node"}
        patch = {"metadata": {"resourceVersion": reservation.version}, "spec": spec | {"cooling": None}}
        try:
            return objects.read_reservation(self._api.patch(IP_RESERVATIONS, reservation.name, patch))
        except (Conflict, NotFound):
            return None

    def delete(self, seen: StoredReservation) -> bool:
        """Delete a reservation unless it has changed since it was seen. False if only the controller may."""
        try:
            self._api.delete(IP_RESERVATIONS, seen.name, uid=seen.uid, resource_version=seen.version)
        except (Conflict, NotFound):
            pass
        except ApiError as e:
            if e.status != _FORBIDDEN:
                raise
            return False
        return True

    def drop(self, claim: Claim, addresses: Iterable[str], *, is_marked: bool = False) -> None:
        """Free addresses that the claim's lease no longer lists. ApiError.

        The lease is read after its reservations: another ADD may list an address again. `is_marked` says
        that nothing can be added to it.
        """
        read = [self._facts.read_reservation(claim.key.network, each) for each in addresses]
        reservations = [each for each in read if each is not None and claim.has(each)]
        kept: set[str] = set()
        if reservations and claim.pod is None and not is_marked:
            stored = self._facts.read_lease(claim.key.namespace, object_names.lease_name(claim.key))
            if stored is not None and stored.uid == claim.lease_uid:
                kept = {*stored.listed, *(str(each.ip) for each in stored.cooling)}
        for each in reservations:
            if each.address not in kept:
                self.delete(each)

    def delete_known(self, names: dict[str, str]) -> None:
        """Delete reservations by their names and UIDs, whatever has become of them. ApiError."""
        for name, uid in names.items():
            try:
                self._api.delete(IP_RESERVATIONS, name, uid=uid)
            except (Conflict, NotFound):
                pass

    def cool(self, names: dict[str, str], *, until: int, since: int) -> None:
        """Keep the addresses of a pod that has gone. ApiError."""
        for name, uid in names.items():
            patch = {"metadata": {"uid": uid}, "spec": {"cooling": {"until": until, "since": since}}}
            try:
                self._api.patch(IP_RESERVATIONS, name, patch)
            except ApiError as e:
                # Another one has the name by now (422: by its UID).
                if e.status not in (404, 409, 422):
                    raise


def _left_to_the_controller(reservation: StoredReservation) -> Lease:
    """What has an address that its lease lists no more, until the controller has freed it."""
    address, vm = reservation.address, reservation.lease_name.rpartition("-")[0]
    key = LeaseKey(reservation.network, reservation.namespace, vm, "until the controller frees it")
    return Lease(key, (), address) if object_names.is_mac(address) else Lease(key, (ip_address(address),))
