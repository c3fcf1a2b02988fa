"""What pods of this node hold beside what the API has of it: made again where it was lost, else disputed.

A restored backup lacks what was written since, and has what has ended since. The controller ends what a pod
held only when the API has the pod no more, by its UID, which never comes back. So what a pod lacks that is
there was lost, and so was what is older in the API than this node has seen it. The rest has ended: its node
was declared lost, and the addresses may be on another one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Final, NamedTuple

from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.ipam import refusals
from cnvnet.ipam.lease import LEAVING, Cooldown, Holder, Lease, LeaseKey, hold, same_vm
from cnvnet.ipam.store import holds, object_names, objects
from cnvnet.ipam.store.holds import Hold, Holds
from cnvnet.ipam.store.kubernetes_facts import Facts, TakenAddresses
from cnvnet.ipam.store.kubernetes_reservations import Claim, Reservations, TryAgain
from cnvnet.ipam.store.kubernetes_work import interface, pod_addresses
from cnvnet.ipam.store.lease_owner import LeaseOwner
from cnvnet.ipam.store.objects import StoredLease, StoredReservation
from cnvnet.ipam.store.protocol import Ledger
from cnvnet.kube.api import Api, ApiError, NotFound
from cnvnet.kube.ended import pod_uids
from cnvnet.kube.resources import INSTANCES, PODS, VIRTUAL_MACHINES, Resource
from cnvnet.vm.identity import ACTIVE

# What a look has made of a hold: the API has it again; the pod may not use it; the pod may use it again; it
# goes on with what another one has as well.
REMADE: Final = "remade"
FENCED: Final = "fenced"
OPENED: Final = "opened"
DISPUTED: Final = "disputed"

# Which holds a look compares: all, with the reservations of VMs' leases as well; all; the disputed ones.
EVERYTHING: Final = "everything"
LEASES: Final = "leases"
DISPUTES: Final = "disputes"
SCOPES: Final = (EVERYTHING, LEASES, DISPUTES)

# HTTP: also for a kind that the cluster does not have.
_NOT_FOUND: Final = 404
_SERVER_ERRORS: Final = 500
# HTTP: who asks is not known, may not read, or asks too much.
_NO_ANSWER: Final = (401, 403, 429)


class Finding(NamedTuple):
    """One thing that a look has changed."""

    # As it is now.
    hold: Hold
    # REMADE, FENCED, OPENED or DISPUTED.
    kind: str
    # Why; "" for OPENED.
    reason: str


class Compared(NamedTuple):
    """What one look has found."""

    findings: tuple[Finding, ...] = ()
    # What could not be compared or made again, and why.
    left: tuple[str, ...] = ()
    # Why the look has ended early: the API did not answer. "": it has not.
    absent: str = ""


class Remake(NamedTuple):
    """Runs an action of a store whose changes were in the API before."""

    run: Callable[[Callable[[Ledger], None], LeaseOwner | None], None]
    # What other threads have seen.
    taken: TakenAddresses
    node: str


class _Taken(CNIError):
    """An address, or the name of the lease, is another one's."""

    def __init__(self, msg: str, since: int, key: LeaseKey) -> None:
        super().__init__(TRY_AGAIN_LATER, msg)
        self.since = since
        self.key = key


class _Unreadable(CNIError):
    """The API answers, and does not say what it has: one that has just begun knows no rights yet."""


@contextmanager
def _reading() -> Generator[None]:
    """_Unreadable, ApiError."""
    try:
        yield
    except ApiError as e:
        if e.status in _NO_ANSWER:
            raise _Unreadable(e.code, e.msg) from e
        raise


class Comparison:
    """One look at the hold files of a node. Not for several threads."""

    def __init__(self, api: Api, held: Holds, remake: Remake, *, boot_id: str) -> None:
        """`boot_id` is this boot's: the holds of another one are of pods that are no more."""
        self._api = api
        self._holds = held
        self._remake = remake
        self._boot_id = boot_id

    def run(self, *, network: str | None, scope: str) -> Compared:
        """Compare the holds of a network, None for all. `scope` is one of SCOPES. CNIError 5."""
        findings: list[Finding] = []
        left: list[str] = []
        for each in self._holds.all(network):
            if not self._is_of_this_boot(each) or (scope == DISPUTES and not each.dispute):
                continue
            try:
                finding = self._compare(each, thorough=scope == EVERYTHING)
            except _Unreadable as e:
                return Compared(tuple(findings), tuple(left), e.msg)
            except (CNIError, TryAgain) as e:
                if isinstance(e, ApiError) and (not e.status or e.status >= _SERVER_ERRORS):
                    return Compared(tuple(findings), tuple(left), e.msg)
                left.append(f"{each.lease.key}: {e}")
            except Exception as e:  # noqa: BLE001 -- one odd object must not keep others from being compared
                left.append(f"{each.lease.key}: {type(e).__name__}: {e}")
            else:
                findings += [finding] if finding is not None else []
        return Compared(tuple(findings), tuple(left))

    def _is_of_this_boot(self, each: Hold) -> bool:
        return each.state == holds.HELD and each.holder is not None and each.holder.boot_id == self._boot_id

    def _compare(self, each: Hold, *, thorough: bool) -> Finding | None:
        if each.lease.key.is_vm:
            return self._compare_vm(each, thorough=thorough)
        return self._compare_pod(each)

    # -- of VMs

    def _compare_vm(self, each: Hold, *, thorough: bool) -> Finding | None:
        key, facts = each.lease.key, self._facts()
        with _reading():
            stored = facts.read_lease(key.namespace, object_names.lease_name(key))
        lives: bool | None = None
        try:
            if stored is not None and _is_named(each, stored):
                if thorough or each.is_remade:
                    return self._reserve_listed(each, stored, facts)
                return self._settle(each, _as_stored(each, stored))
            lives = self._lives(each)
            if not lives and not _may_be_lost(each, stored):
                return self._fence(each, _without_this_pod(each, stored))
            self._remake_lease(each, stored)
        except _Taken as e:
            return self._dispute(each, e, lives=self._lives(each) if lives is None else lives)
        return Finding(self._holds.get(*each.interface) or each, REMADE, _what_was_missing(each, stored))

    def _reserve_listed(self, each: Hold, stored: StoredLease, facts: Facts) -> Finding | None:
        """Reserve what the VMLease lists and is not reserved for it. _Taken, TryAgain."""
        claim, reservations = Claim(stored.key, lease_uid=stored.uid), self._reservations()
        addresses = objects.addresses_of(each.lease)
        with _reading():
            found = {address: facts.read_reservation(each.network, address) for address in addresses}
        missing = [address for address, it in found.items() if it is None or not claim.has(it)]
        for address in missing:
            it = found[address]
            if it is not None:
                _ensure_own(facts.owner_by(it), address, each)
            reservations.reserve(claim, address, os.urandom(8).hex(), 0)
        settled = self._settle(each, _as_stored(each, stored)._replace(is_remade=False))
        if not missing:
            return settled
        now = self._holds.get(*each.interface) or each
        return Finding(now, REMADE, f"{', '.join(missing)} of {each.lease.key} was not reserved")

    def _remake_lease(self, each: Hold, stored: StoredLease | None) -> None:
        """Make the pod a holder of what it has, in a lease that is made again if there is none. _Taken."""
        key, holder = each.lease.key, each.holder
        if holder is None:
            return
        if stored is None:
            self._drop_own(each)

        def write(ledger: Ledger) -> None:
            # It is this action's own interface.
            ledger.held_by(*each.interface)
            lease = ledger.get(key)
            if lease is not None and not same_vm(lease.vm_uid, each.lease.vm_uid):
                raise _taken(lease, f"the VMLease of {key}", each)
            for ip in each.lease.ips:
                _ensure_own(ledger.owner_of(key.network, ip), str(ip), each)
            if each.lease.mac:
                _ensure_own(ledger.owner_of_mac(key.network, each.lease.mac), each.lease.mac, each)
            ledger.change(lease, _with(lease, each.lease, holder), until=0)

        # One that is there has its owner, which may be an IPAMClaim.
        self._remake.run(write, self._owner(each.lease) if stored is None else None)

    def _drop_own(self, each: Hold) -> None:
        """Free what is reserved for the VMLease that was lost: the new one has another UID."""
        if each.lease_uid:
            self._reservations().drop(
                Claim(each.lease.key, lease_uid=each.lease_uid), objects.addresses_of(each.lease)
            )

    def _owner(self, lease: Lease) -> LeaseOwner | None:
        """The object with which the lease goes; None if it is gone, and then the controller sees to it."""
        key = lease.key
        for resource in (VIRTUAL_MACHINES, INSTANCES):
            if lease.vm_uid and self._uid(resource, key.vm, key.namespace) == lease.vm_uid:
                return LeaseOwner(resource.api_version, resource.kind, key.vm, lease.vm_uid)
        return None

    def _uid(self, resource: Resource, name: str, namespace: str) -> str:
        try:
            return str(self._api.get(resource, name, namespace)["metadata"]["uid"])
        except ApiError as e:
            if e.status == _NOT_FOUND:
                return ""
            raise

    # -- of pods that are no VM

    def _compare_pod(self, each: Hold) -> Finding | None:
        facts = self._facts()
        claim, addresses = Claim(each.lease.key, pod=each.lease), pod_addresses(each.lease)
        with _reading():
            found = {address: facts.read_reservation(each.network, address) for address in addresses}
        own = {address: it for address, it in found.items() if it is not None and claim.has(it)}
        known = {it.name: it.uid for it in own.values() if not it.until}
        if len(known) == len(found):
            return self._settle(each, each._replace(reservations=known))
        lives = self._lives(each)
        try:
            for address, it in found.items():
                if it is not None and address not in own:
                    _ensure_own(facts.owner_by(it), address, each)
            if not lives and any(it.until for it in own.values()):
                return self._fence(each, f"{', '.join(own)} cools down: the pod's node was declared lost")
            made = self._reserve_again(each, claim, found)
        except _Taken as e:
            return self._dispute(each, e, lives=lives)
        except TryAgain:
            return None  # another one was faster: the next look sees what it has
        return made

    def _reserve_again(
        self, each: Hold, claim: Claim, found: dict[str, StoredReservation | None]
    ) -> Finding | None:
        # Without UIDs, so that a DEL in between asks the API for what this makes.
        begun = each._replace(reservations={}, addresses=())
        if not self._holds.replace(each, begun):
            return None
        reservations, made = self._reservations(), dict[str, str]()
        nonce = os.urandom(8).hex()
        for address in found:
            reservation = reservations.reserve(claim, address, nonce, 0)
            made[reservation.name] = reservation.uid
        known = begun._replace(reservations=made, dispute="", fenced=False)
        if not self._holds.replace(begun, known):
            reservations.delete_known(made)
            return None
        missing = [address for address, it in found.items() if it is None or not claim.has(it)]
        return Finding(known, REMADE, f"{', '.join(missing)} was not reserved")

    # -- what becomes of it

    def _settle(self, each: Hold, known: Hold) -> Finding | None:
        """The API has it: `known` is what it says."""
        now = known._replace(dispute="", fenced=False)
        if now == each or not self._holds.replace(each, now):
            return None
        return Finding(now, OPENED, "") if each.dispute else None

    def _fence(self, each: Hold, reason: str) -> Finding | None:
        return self._write(each, reason, fenced=True)

    def _dispute(self, each: Hold, taken: _Taken, *, lives: bool) -> Finding | None:
        """Of two claims the older one stays, unless its pod has ended."""
        own = (each.lease.since, each.lease.key)
        # 0: it only waits to be freed.
        is_younger = taken.since > 0 and own > (taken.since, taken.key)
        return self._write(each, taken.msg, fenced=not lives or is_younger)

    def _write(self, each: Hold, reason: str, *, fenced: bool) -> Finding | None:
        now = each._replace(dispute=reason, fenced=fenced)
        if now == each or not self._holds.replace(each, now):
            return None
        return Finding(now, FENCED if fenced else DISPUTED, reason)

    def _lives(self, each: Hold) -> bool:
        """Whether the API has the pod, by its UID."""
        holder = each.holder
        namespace, _, name = holder.pod.partition("/") if holder is not None else ("", "", "")
        if holder is None or not holder.pod_uid or not name:
            return False
        try:
            with _reading():
                return holder.pod_uid in pod_uids(self._api.get(PODS, name, namespace))
        except NotFound:
            return False

    def _facts(self) -> Facts:
        return Facts(self._api, self._remake.taken)

    def _reservations(self) -> Reservations:
        return Reservations(self._api, self._facts(), self._remake.node)


def _is_named(each: Hold, stored: StoredLease) -> bool:
    """Whether the VMLease has the pod as a holder of what it holds."""
    is_holder = (each.container_id, each.ifname) in stored.holder_keys
    return is_holder and set(stored.listed).issuperset(objects.addresses_of(each.lease))


def _as_stored(each: Hold, stored: StoredLease) -> Hold:
    return each._replace(lease_uid=stored.uid, holder_key=stored.holder_keys[each.container_id, each.ifname])


def _may_be_lost(each: Hold, stored: StoredLease | None) -> bool:
    """Whether what a pod has that is gone may be made again: no lease says that it has ended."""
    if stored is None:
        return True
    if stored.holder_keys.keys() - {(each.container_id, each.ifname)}:
        return False
    if (each.container_id, each.ifname) in stored.holder_keys:
        return True
    return stored.uid == each.lease_uid and _is_older(stored.version, each.version)


def _is_older(version: str, other: str) -> bool:
    """Whether one version of an object comes before another: the API has gone back."""
    return version.isdecimal() and other.isdecimal() and int(version) < int(other)


def _with(lease: Lease | None, held: Lease, holder: Holder) -> Lease:
    """A lease with the pod as a holder of what it has."""
    if lease is None:
        return held._replace(holders=(holder,))
    others = [each for each in lease.holders if interface(each) != interface(holder)]
    if any(each.role == ACTIVE for each in others):
        # One that the API has is not replaced by one that it has lost.
        holder = holder._replace(role=LEAVING) if holder.role == ACTIVE else holder
    return hold(lease._replace(ips=held.ips, mac=held.mac), holder)


def _ensure_own(owner: Lease | Cooldown | None, address: str, each: Hold) -> None:
    if owner is not None and owner.key != each.lease.key:
        raise _taken(owner, address, each)


def _taken(owner: Lease | Cooldown, what: str, each: Hold) -> _Taken:
    if isinstance(owner, Cooldown):
        text = f"{what} of {each.lease.key} cools down for {owner.key}"
    else:
        where = "".join(f" in {refusals.user(other)} on node {other.node}" for other in owner.holders[:1])
        text = f"{what} of {each.lease.key} is {owner.key}'s{where}, too"
    return _Taken(text, owner.since, owner.key)


def _without_this_pod(each: Hold, stored: StoredLease | None) -> str:
    lease = stored.lease if stored is not None else None
    holders: Iterable[Holder] = lease.holders if lease is not None else ()
    others = ", ".join(f"{refusals.user(other)} on node {other.node}" for other in holders)
    pod = refusals.user(each.holder) if each.holder is not None else each.container_id
    what = f"is in {others}, and {pod} has ended" if others else f"has no pod any more: {pod} has ended"
    return f"{each.lease.key} {what} in the Kubernetes API"


def _what_was_missing(each: Hold, stored: StoredLease | None) -> str:
    if stored is None:
        return f"{each.lease.key} had no VMLease"
    if (each.container_id, each.ifname) not in stored.holder_keys:
        return f"the VMLease of {each.lease.key} did not name the pod"
    return f"the addresses of {each.lease.key} were not reserved"
