"""The writes of one run of the Kubernetes store: what its attempts have made, and how it is taken back.

For the leases that gain something: the hold file, the VMLease with holder and addresses, then one
IPReservation for each address, then the hold file again. Releases go to the hold file first and to the API
as far as it answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from cnvnet.call_context import log, taking_back
from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import Lease, LeaseKey
from cnvnet.ipam.store import holds, object_names, objects
from cnvnet.ipam.store.holds import Hold, Holds
from cnvnet.ipam.store.kubernetes_endings import Endings
from cnvnet.ipam.store.kubernetes_facts import Facts
from cnvnet.ipam.store.kubernetes_intents import Intents
from cnvnet.ipam.store.kubernetes_ledger import RELEASE_SECONDS, KubernetesLedger
from cnvnet.ipam.store.kubernetes_networks import NetworkRegistry
from cnvnet.ipam.store.kubernetes_reservations import Claim, Reservations, TryAgain
from cnvnet.ipam.store.kubernetes_work import Work, interface, interfaces, makes_way, pod_addresses
from cnvnet.ipam.store.lease_owner import LeaseOwner
from cnvnet.ipam.store.objects import StoredLease
from cnvnet.kube.api import Api, ApiError, Conflict, NotFound, deadline
from cnvnet.kube.resources import VM_LEASES


class _Written(NamedTuple):
    """A VMLease as an attempt has left it."""

    # Before the first attempt; None: the run has made it.
    base: StoredLease | None
    current: StoredLease
    # Addresses that the run has reserved.
    reserved: frozenset[str]


class Commit:
    """One run's writes. Not for several threads."""

    def __init__(
        self,
        api: Api,
        facts: Facts,
        held: Holds,
        networks: NetworkRegistry,
        *,
        node: str,
        owner: LeaseOwner | None,
        clock: Callable[[], int],
        remade: bool = False,
    ) -> None:
        """`remade`: what is written was in the API before, and pods have it."""
        self._api = api
        self._facts = facts
        self._holds = held
        self._networks = networks
        self._node = node
        self._owner = owner
        self._clock = clock
        self._reservations = Reservations(api, facts, node)
        self.endings = Endings(api, facts, held, self._reservations)
        self._written: dict[LeaseKey, _Written] = {}
        # Reservations of pods that are no VM that the run has made, by key: name and UID.
        self._pods: dict[LeaseKey, dict[str, str]] = {}
        self._intents = Intents(held, node, remade=remade)
        # Leases with our holder that others have changed since.
        self._joined: dict[LeaseKey, list[str]] = {}
        # Holds as they were before they were marked as ending, by a call that fails if the API does.
        self._marked: dict[tuple[str, str, str], Hold] = {}
        # Addresses of leases that have changed while they were written, and that they may not list any more.
        self._left: dict[LeaseKey, set[str]] = {}
        self._ledger: KubernetesLedger | None = None

    def apply(self, ledger: KubernetesLedger) -> None:
        """Store what an action has made of the leases. TryAgain; CNIError, and then `undo` has to follow."""
        self._ledger = ledger
        gaining = [each for each in ledger.works.values() if ledger.is_gaining(each.before, each.after)]
        others = [each for each in ledger.works.values() if each not in gaining]
        goes_on = {each.key for each in gaining}
        for key in [each for each in (*self._written, *self._pods) if each not in goes_on]:
            self._undo_key(key)
        early = [each for each in others if makes_way(each, gaining)]
        for work in early:
            self._release(work)
        for work in gaining:
            self._gain(work)
        for lease in ledger.confirmed:
            self._confirm(lease)
        for work in [each for each in others if each not in early]:
            self._release(work)
        for work in gaining:
            self._finish(work)

    def undo(self, error: BaseException) -> None:
        """Take back what the attempts have written, because of this error.

        What the API does not take, or may have taken without an answer, is left to a later `drain`.
        """
        try:
            with taking_back():
                for key in (*self._written, *self._pods):
                    self._undo_key(key)
                for key, keys in self._joined.items():
                    self._end_holders(key, keys)
        except (ApiError, TryAgain) as e:
            log(f"{e}: what the call has written is taken back later")
            error = e
        if not _is_refusal(error):
            return
        for hold in self._marked.values():
            self._holds.write(hold)
        self._intents.withdraw()

    def close(self) -> None:
        """Leave the hold files as they are."""
        self._intents.close()

    # -- gaining

    def _gain(self, work: Work) -> None:
        lease = _after(work)
        namespace = lease.key.namespace or next(
            (each.pod.partition("/")[0] for each in lease.holders if each.pod), ""
        )
        terms = None
        if namespace and set(objects.addresses_of(lease)) - set(objects.addresses_of(work.before)):
            pool = self._now.pools.get(lease.key.network)
            terms = self._networks.ensure_admitted(lease.key.network, namespace, pool, lease.ips)
        if lease.key.is_vm:
            self._gain_lease(work, lease)
        else:
            self._gain_pod(work, lease)
        if terms is not None:
            self._networks.ensure_within_limit(lease.key.network, namespace, terms)

    def _gain_lease(self, work: Work, lease: Lease) -> None:
        key = lease.key
        written = self._written.get(key)
        current = written.current if written is not None else work.stored
        reserved = written.reserved if written is not None else frozenset[str]()
        self._intend(work, lease, current, reserved)
        if current is not None:
            reserved |= self._verify(current, lease, reserved)
        listed = set(current.listed) if current is not None else set[str]()
        new = [each for each in objects.addresses_of(lease) if each not in listed]
        nonce = os.urandom(8).hex() if new else ""
        over = self._over(key.network)
        work.cooling = tuple(each for each in work.cooling if each.until > over)
        if current is None:
            stored = self._create(work, lease, nonce, new)
        else:
            before = written.current.lease if written is not None else work.before
            stored = self._patch(work, current, before, lease, nonce, tuple(new), owner=self._owner)
        base = written.base if written is not None else work.stored
        self._written[key] = _Written(base, stored, reserved)
        claim = Claim(key, lease_uid=stored.uid)
        with self._reservations.begun(claim, new[1:], nonce) as begun:
            for address in new:
                self._reservations.reserve(claim, address, nonce, over, begun.pop(address, None))
                written = self._written[key]
                self._written[key] = written._replace(reserved=written.reserved | {address})

    def _verify(self, stored: StoredLease, lease: Lease, reserved: frozenset[str]) -> frozenset[str]:
        """Reserve what the VMLease lists and of which nothing says yet that it is reserved; returns that."""
        claim, over = Claim(stored.key, lease_uid=stored.uid), self._over(stored.key.network)
        wanted = {*objects.addresses_of(lease)} & {*stored.listed} - reserved
        unsure = [each for each in stored.pending if each in wanted]
        for address in unsure:
            self._reservations.reserve_listed(claim, address, stored.nonce, over)
        return frozenset(unsure)

    def _create(self, work: Work, lease: Lease, nonce: str, new: list[str]) -> StoredLease:
        key = lease.key
        document = objects.lease_document(
            lease, cooling=work.cooling, nonce=nonce, pending=new, owner=self._owner
        )
        try:
            return objects.read_lease(self._api.create(VM_LEASES, document, key.namespace))
        except Conflict:
            stored = self._facts.read_lease(key.namespace, object_names.lease_name(key))
        if stored is not None and stored.nonce == nonce and stored.key == key and not stored.is_deleted:
            return stored  # the answer to the first CREATE was lost
        self._facts.set_lease(key, stored)
        raise TryAgain

    def _patch(
        self,
        work: Work,
        current: StoredLease,
        before: Lease | None,
        after: Lease | None,
        nonce: str,
        pending: tuple[str, ...],
        owner: LeaseOwner | None = None,
    ) -> StoredLease:
        """Write what differs; TryAgain if the VMLease has changed since it was read."""
        key = current.key
        write = partial(objects.lease_patch, current, before, after, now=self._clock(), owner=owner)
        patch = write(cooling=work.cooling, nonce=nonce, pending=pending)
        if not patch or (patch.keys() == {"metadata", "spec"} and patch["spec"].keys() == {"pending"}):
            return current
        try:
            return objects.read_lease(self._api.patch(VM_LEASES, current.name, patch, key.namespace))
        except NotFound:
            stored = None
        except Conflict:
            stored = self._facts.read_lease(key.namespace, current.name)
        if stored is not None and nonce and stored.nonce == nonce and stored.uid == current.uid:
            return stored  # the answer to the first PATCH was lost
        self._moved(key, stored)
        self._left.setdefault(key, set()).update(
            {*current.listed, *(str(each.ip) for each in current.cooling), *objects.addresses_of(before)}
        )
        raise TryAgain

    def _moved(self, key: LeaseKey, stored: StoredLease | None) -> None:
        self._facts.set_lease(key, stored)
        written = self._written.pop(key, None)
        if written is not None:
            base = set(written.base.holder_keys.values()) if written.base is not None else set[str]()
            self._joined[key] = [each for each in written.current.holder_keys.values() if each not in base]

    def _gain_pod(self, work: Work, lease: Lease) -> None:
        self._intend(work, lease, None, frozenset())
        made = self._pods.setdefault(lease.key, {})
        claim, nonce = Claim(lease.key, pod=lease), os.urandom(8).hex()
        had = {
            object_names.reservation_name(lease.key.network, each): each
            for each in objects.addresses_of(work.before)
        }
        for address in pod_addresses(lease):
            name = object_names.reservation_name(lease.key.network, address)
            if name not in made and name not in had:
                reservation = self._reservations.reserve(
                    claim, address, nonce, self._over(lease.key.network)
                )
                made[name] = reservation.uid

    def _confirm(self, lease: Lease) -> None:
        """An ADD that was repeated: all that it has must be reserved, as it may not be after a kill."""
        stored = self._facts.lease(lease.key) if lease.key.is_vm else None
        if stored is None:
            return
        own = [each for each in lease.holders if interface(each) in self._now.own]
        if self._intents.resume(lease, own, stored) and not self._facts.is_current(stored):
            raise TryAgain  # its release was written in between
        self._verify(stored, lease, frozenset())
        left = self._left.pop(lease.key, set()) - {*stored.listed}
        self._reservations.drop(Claim(lease.key, lease_uid=stored.uid), sorted(left))
        self._intents.confirm(lease, own, stored)

    # -- done

    def _intend(
        self, work: Work, lease: Lease, stored: StoredLease | None, reserved: frozenset[str]
    ) -> None:
        addresses = {*objects.addresses_of(work.before), *objects.addresses_of(lease), *reserved}
        addresses |= {*(stored.listed if stored is not None else ())}
        self._intents.begin(lease, self._now.gaining_holders(work, self._node), stored, addresses)

    def _finish(self, work: Work) -> None:
        """Free what the lease has given up, and write down that the pods have what they asked for."""
        lease = _after(work)
        left = self._drop_given_up(work, lease)
        written = self._written.get(lease.key)
        self._intents.finish(
            lease,
            self._now.gaining_holders(work, self._node),
            written.current if written is not None else None,
            left=left,
            reservations=self._pods.get(lease.key, {}),
        )
        self._intents.forget(lease.key, interfaces(work.before) - interfaces(lease))
        self._facts.taken.add(lease.key.network, lease.ips)

    def _drop_given_up(self, work: Work, lease: Lease) -> tuple[str, ...]:
        """Free the addresses that the lease no longer has; those that are left to `drain`."""
        written = self._written.get(lease.key)
        former = {
            *objects.addresses_of(work.before),
            *(work.stored.listed if work.stored is not None else ()),
        }
        former |= {str(each.ip) for each in (work.stored.cooling if work.stored is not None else ())}
        former |= written.reserved if written is not None else set()
        former |= self._left.pop(lease.key, set())
        former |= self._intents.former_addresses(lease.key)
        kept = {*objects.addresses_of(lease), *(str(each.ip) for each in work.cooling)}
        given_up = tuple(sorted(former - kept))
        self._facts.taken.discard(lease.key.network, object_names.ips_of(given_up))
        if lease.key.is_vm:
            uid = written.current.uid if written is not None else ""
            claim = Claim(lease.key, lease_uid=uid)
        else:
            claim = Claim(lease.key, pod=lease)
        try:
            self._reservations.drop(claim, given_up)
        except ApiError as e:
            log(f"{e}: {', '.join(given_up)} of {lease.key} is freed later")
            return given_up
        return ()

    # -- releasing

    def _release(self, work: Work) -> None:
        """Write a lease that gains nothing. Where pods of this node end, the API need not answer."""
        key = work.key
        gone = interfaces(work.before) - interfaces(work.after)
        former = [hold for each in gone if (hold := self._holds.get(key.network, *each)) is not None]
        queued = key in self._now.from_holds
        ends = key.is_vm and work.after is None and not work.cooling
        ended = [
            each._replace(state=holds.RELEASING, ends=ends or each.ends or each.state == holds.ADDING)
            for each in former
        ]
        for hold, before in zip(ended, former, strict=True):
            if hold == before:
                continue  # the queue may have locked this file
            self._holds.write(hold)
            if not queued:
                self._marked[hold.interface] = before
        try:
            if queued:
                with deadline(RELEASE_SECONDS):
                    self._write_release(work, ended)
            else:
                self._write_release(work, ended)
        except CNIError as e:
            if not queued:
                raise
            log(f"{e}: {key} is released when it answers")
            return
        self._facts.forget(key)
        for hold in ended:
            self._holds.remove(hold)
            self._marked.pop(hold.interface, None)
        if work.before is not None and work.after is None and not work.cooling:
            self._facts.taken.discard(key.network, work.before.ips)

    def _write_release(self, work: Work, ended: list[Hold]) -> None:
        key = work.key
        if not key.is_vm:
            self.endings.end_pods(key, ended, work.cooling, work.before)
        elif work.holds:
            for hold in ended:
                moment = work.after.since if work.after is not None else self._clock()
                self.endings.end_blindly(hold, moment)
        elif work.stored is None:
            self._cool(work)
        elif work.after is None and not work.cooling:
            self.endings.end_lease(work.stored)
        else:
            current = self._patch(work, work.stored, work.before, work.after, "", work.stored.pending)
            kept = {*objects.addresses_of(work.after), *(str(each.ip) for each in work.cooling)}
            former = {*work.stored.listed, *(str(each.ip) for each in work.stored.cooling)}
            self._reservations.drop(Claim(key, lease_uid=current.uid), sorted(former - kept))

    def _cool(self, work: Work) -> None:
        """Keep addresses for a VM that has no lease, as one that is imported may have given them up."""
        ips = [str(each.ip) for each in work.cooling]
        if not ips:
            return
        nothing, nonce = Lease(work.key, (), vm_uid=work.cooling[0].vm_uid), os.urandom(8).hex()
        stored = self._create(work, nothing, nonce, ips)
        self._written[work.key] = _Written(None, stored, frozenset())
        for address in ips:
            claim = Claim(work.key, lease_uid=stored.uid)
            self._reservations.reserve(claim, address, nonce, self._over(work.key.network))

    # -- taking back

    def _undo_key(self, key: LeaseKey) -> None:
        made = self._pods.pop(key, {})
        self._reservations.delete_known(made)
        written = self._written.get(key)
        if written is None:
            return
        base, current = written.base, written.current
        claim = Claim(key, lease_uid=current.uid)
        try:
            if base is None:
                self.endings.end_lease(current)
            else:
                patch = objects.lease_patch(
                    current,
                    current.lease,
                    base.lease,
                    cooling=base.cooling,
                    nonce=base.nonce,
                    pending=base.pending,
                    now=self._clock(),
                    owner=self._owner,
                )
                if patch:
                    self._api.patch(VM_LEASES, current.name, patch, key.namespace)
                kept = {*base.listed, *(str(each.ip) for each in base.cooling)}
                self._reservations.drop(claim, sorted((written.reserved | set(current.listed)) - kept))
        except (Conflict, TryAgain):
            self._moved(key, None)
            self._end_holders(key, self._joined.pop(key, []))
        except NotFound:
            pass
        self._written.pop(key, None)
        self._facts.forget(key)

    def _end_holders(self, key: LeaseKey, keys: list[str]) -> None:
        for each in keys:
            try:
                patch = objects.release_patch(each, uid="", now=self._clock())
                self._api.patch(VM_LEASES, object_names.lease_name(key), patch, key.namespace)
            except NotFound:
                pass

    @property
    def _now(self) -> KubernetesLedger:
        if self._ledger is None:
            raise AssertionError("apply comes first")
        return self._ledger

    def _over(self, network: str) -> int:
        return self._now.over.get(network, 0)


def _is_refusal(error: BaseException) -> bool:
    """Whether it is known of everything that was asked before this error whether it was done."""
    if isinstance(error, ApiError):
        return 400 <= error.status < 500
    return isinstance(error, CNIError)


def _after(work: Work) -> Lease:
    if work.after is None:
        raise AssertionError("a lease that gains something is there")
    return work.after
