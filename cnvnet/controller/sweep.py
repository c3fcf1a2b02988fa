"""Which addresses nothing uses any more: a pure plan, by a snapshot of the cluster and what was seen before.

An address that is freed too early is given to two virtual machines; one that is freed too late is missing
for some minutes. So what is absent counts only if it was absent in an earlier sweep as well and for the
grace period, and whatever is in doubt stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from cnvnet.controller import steps
from cnvnet.controller.snapshot import ClusterSnapshot, Doubt, Instance, SweptLease
from cnvnet.controller.steps import Absence, CleanupStep
from cnvnet.ipam.lease import NEVER, POD, Holder, LeaseKey
from cnvnet.ipam.store.object_names import FINALIZER, is_mac, lease_name
from cnvnet.ipam.store.objects import StoredLease, StoredReservation
from cnvnet.kube.ended import GONE, PRESENT
from cnvnet.kube.resources import INSTANCES, IPAM_CLAIMS, NODES, PODS, VIRTUAL_MACHINES, VM_LEASES

# Seconds after which a pod that the API does not have any more counts as ended, whatever its node says:
# longer than a node that works needs to end one, and than its agent needs to be heard again.
POD_GONE: Final = 600.0


class Limits(NamedTuple):
    """For how many seconds something has to be missing."""

    grace: float
    pod_gone: float = POD_GONE


# By what was missing: when a sweep first missed it, in time.monotonic()'s seconds.
Memory = Mapping[tuple[str, ...], float]


class Waiting(NamedTuple):
    """A step that is done if nothing changes for so many seconds more; at the next sweep at the earliest."""

    step: CleanupStep
    seconds: float


class Plan(NamedTuple):
    """What a sweep makes of a snapshot."""

    # What is done now.
    steps: tuple[CleanupStep, ...]
    # What may be done soon: its time has not come yet.
    waiting: tuple[Waiting, ...]
    # What looks odd, and is left alone.
    doubts: tuple[Doubt, ...]
    # What was missing, and since when: for the next plan.
    memory: dict[tuple[str, ...], float]


def plan(snapshot: ClusterSnapshot, memory: Memory, limits: Limits, *, now: float, clock: int) -> Plan:
    """The plan of one sweep.

    Args:
        snapshot: The cluster.
        memory: That of the plan before; {} for the first.
        limits: How long something has to be missing.
        now: time.monotonic(): clocks are set.
        clock: Seconds since 1970, as cooldowns have them.
    """
    return _Planner(snapshot, memory, limits, now, clock).plan()


class _Cause(NamedTuple):
    """Why a step may be done, and for how many seconds it still has to be true; None: for none."""

    reason: str
    seconds: float | None
    absences: tuple[Absence, ...] = ()


class _Planner:
    def __init__(
        self, snapshot: ClusterSnapshot, memory: Memory, limits: Limits, now: float, clock: int
    ) -> None:
        self._snapshot = snapshot
        self._memory = memory
        self._limits = limits
        self._now = now
        self._clock = clock
        self._missing: dict[tuple[str, ...], float] = {}
        self._doubts = list(snapshot.doubts)
        # Of all that runs: the UIDs of instances, which stand alone or not, and of their VirtualMachines.
        self._running = {uid for each in snapshot.instances.values() for uid in (each.uid, each.machine)}
        self._by_uid = {each.stored.uid: each for each in snapshot.leases}
        self._names = {(each.stored.key.namespace, each.stored.name) for each in snapshot.leases}

    def plan(self) -> Plan:
        planned = [*self._of_leases(), *self._of_reservations()]
        return Plan(
            tuple(step for step, seconds in planned if seconds is None),
            tuple(Waiting(step, seconds) for step, seconds in planned if seconds is not None),
            tuple(self._doubts),
            self._missing,
        )

    # -- leases

    def _of_leases(self) -> Iterator[tuple[CleanupStep, float | None]]:
        for each in self._snapshot.leases:
            stored = each.stored
            yield from self._of_holders(stored)
            if stored.is_deleted:
                if is_finishable(stored):
                    yield CleanupStep(steps.FINISH_LEASE, "it is deleted and no pod holds it", stored), None
                continue
            if any(entry.until <= self._clock for entry in stored.cooling):
                yield CleanupStep(steps.END_COOLDOWN, "its cooldown is over", stored), None
                continue  # one change of one version
            cause = self._end_of_lease(each)
            if cause is not None:
                step = CleanupStep(steps.DELETE_LEASE, cause.reason, stored, absences=cause.absences)
                yield step, cause.seconds

    def _of_holders(self, stored: StoredLease) -> Iterator[tuple[CleanupStep, float | None]]:
        if stored.lease is None and stored.holder_keys:
            subject = f"VMLease {stored.key.namespace}/{stored.name}"
            self._doubts.append(Doubt(subject, "it has holders and no address"))
        for holder in stored.lease.holders if stored.lease is not None else ():
            key = stored.holder_keys[holder.container_id, holder.ifname]
            cause = self._end_of_pod(holder, f"VMLease {stored.key.namespace}/{stored.name}: holder {key}")
            if cause is not None:
                step = CleanupStep(
                    steps.END_HOLDER, cause.reason, stored, holder=key, absences=cause.absences
                )
                yield step, cause.seconds

    def _end_of_lease(self, swept: SweptLease) -> _Cause | None:
        """Why a VMLease is deleted: its VM is gone, or its own policy has ended it."""
        stored = swept.stored
        if stored.holder_keys:
            # A pod that holds it and is there is one of the VM; one that is gone is ended first.
            return None
        subject = f"{stored.key.namespace}/{stored.name}"
        if stored.lease is None:
            if any(each.until > self._clock for each in stored.cooling):
                return None
            return self._after("no address", stored.uid, "it has no address any more")
        if stored.lease.release == POD:
            return self._after("no pod", stored.uid, "its last pod has gone (release: pod)")
        if stored.lease.release == NEVER:
            return None
        uid = stored.lease.vm_uid
        if not uid:
            self._doubts.append(
                Doubt(f"VMLease {subject}", "it names no VM's UID: kept for a VM of that name")
            )
            return None
        machines = self._snapshot.machines
        if machines is None or uid in machines or uid in self._running:
            return None
        if swept.claim is not None and swept.claim.uid in self._snapshot.claims:
            return None  # the claim's life is the lease's
        instance = self._snapshot.instances.get((stored.key.namespace, stored.key.vm))
        if instance is not None and _may_be_of(instance, uid):
            return None  # a VM that was deleted with --cascade=orphan runs on
        if self._has_pod(stored.key, uid):
            return None
        return self._after(
            "no VM",
            stored.uid,
            f"VM {stored.key.namespace}/{stored.key.vm} ({uid}) is gone, and so are its pods",
            *_absences_of_vm(swept, uid, has_instance=instance is not None),
        )

    def _has_pod(self, key: LeaseKey, uid: str) -> bool:
        """Whether a pod is there that may be the VM's, by the instance that it belongs to."""
        instance = self._snapshot.instances.get((key.namespace, key.vm))
        return any(
            instance is None or instance.uid != each or _may_be_of(instance, uid)
            for each in self._snapshot.launchers.get((key.namespace, key.vm), ())
        )

    # -- pods

    def _end_of_pod(self, holder: Holder, subject: str) -> _Cause | None:
        """Why a pod counts as ended: it is gone, and its node can run it no more or had time to end it."""
        namespace, _, name = holder.pod.partition("/")
        if not holder.pod_uid or not namespace or not name:
            self._doubts.append(Doubt(subject, "it names no pod with a UID"))
            return None
        if holder.pod_uid in self._snapshot.pods:
            return None
        text = f"pod {holder.pod} ({holder.pod_uid})"
        absent = Absence(PODS, namespace, name, holder.pod_uid)
        age = self._missing_for("pod", holder.pod_uid)
        seconds = _left(age, self._limits.pod_gone)
        gone = _Cause(f"{text} has been gone for {int(age or 0)} s", seconds, (absent,))
        state = self._snapshot.nodes.get(holder.node, GONE) if holder.node else PRESENT
        if state == PRESENT:
            return gone
        lost = self._after(
            f"node {state}",
            f"{holder.node} {holder.pod_uid}",
            f"{text} is gone, and its node {holder.node} is {state}",
            absent,
            Absence(NODES, "", holder.node, or_out_of_service=True),
        )
        return lost if gone.seconds is not None else gone

    # -- reservations

    def _of_reservations(self) -> Iterator[tuple[CleanupStep, float | None]]:
        for each in self._snapshot.reservations:
            if each.pod is not None:
                action, cause = self._end_of_pods_address(each)
            else:
                action, cause = steps.DELETE_RESERVATION, self._end_of_reservation(each)
            if cause is not None:
                step = CleanupStep(action, cause.reason, reservation=each, absences=cause.absences)
                yield step, cause.seconds

    def _end_of_pods_address(self, reservation: StoredReservation) -> tuple[str, _Cause | None]:
        pod = reservation.pod
        if reservation.until:
            is_over = reservation.until <= self._clock
            return steps.DELETE_RESERVATION, _Cause("its cooldown is over", None) if is_over else None
        if pod is None or not pod.holders:
            return steps.DELETE_RESERVATION, None
        cause = self._end_of_pod(pod.holders[0], f"IPReservation {reservation.name}")
        cools = pod.cooldown > 0 and not is_mac(reservation.address)
        return steps.COOL_RESERVATION if cools else steps.DELETE_RESERVATION, cause

    def _end_of_reservation(self, reservation: StoredReservation) -> _Cause | None:
        """Why the reservation of a lease is deleted: the lease is gone, or has no use for it."""
        uid = reservation.lease_uid
        where = f"VMLease {reservation.namespace}/{reservation.lease_name}"
        if uid in self._snapshot.lease_uids:
            return self._end_of_unlisted(reservation, where)
        if not uid:
            self._doubts.append(
                Doubt(f"IPReservation {reservation.name}", "it names neither a lease nor a pod")
            )
            return None
        absence = Absence(VM_LEASES, reservation.namespace, reservation.lease_name, uid)
        if reservation.until:
            # The lease was finished: its addresses cool down without it.
            is_over = reservation.until <= self._clock
            return _Cause("its cooldown is over", None, (absence,)) if is_over else None
        if (reservation.namespace, reservation.lease_name) not in self._names and self._may_run(reservation):
            return None  # its lease was lost, not ended: the agent of its pod makes another one
        return self._after("lease", reservation.uid, f"its {where} ({uid}) is gone", absence)

    def _end_of_unlisted(self, reservation: StoredReservation, where: str) -> _Cause | None:
        lease = self._by_uid.get(reservation.lease_uid)
        if lease is None or lease.stored.is_deleted or reservation.address in reserved(lease.stored):
            return None
        return self._after("listed", reservation.uid, f"its {where} does not list {reservation.address}")

    def _may_run(self, reservation: StoredReservation) -> bool:
        """Whether an instance or a pod is there whose lease would have the name that a reservation says."""
        names = self._snapshot.instances.keys() | self._snapshot.launchers.keys()
        prefix = reservation.lease_name.rpartition("-")[0]
        return any(
            namespace == reservation.namespace and prefix == _prefix(namespace, vm)
            for namespace, vm in names
        )

    # -- sightings

    def _after(self, what: str, uid: str, reason: str, *absences: Absence) -> _Cause:
        """What is done when it has been so in two sweeps and for the grace period."""
        return _Cause(reason, _left(self._missing_for(what, uid), self._limits.grace), absences)

    def _missing_for(self, what: str, uid: str) -> float | None:
        """For how many seconds it has been so; None: an earlier sweep did not see it."""
        first = self._memory.get((what, uid))
        self._missing[what, uid] = self._now if first is None else first
        return None if first is None else self._now - first


def _left(age: float | None, limit: float) -> float | None:
    """The seconds that something has to be true for still; None for none."""
    if age is None:
        return limit
    return limit - age if age < limit else None


def is_finishable(stored: StoredLease) -> bool:
    """Whether a VMLease waits for nothing but to be finished."""
    return stored.is_deleted and FINALIZER in stored.finalizers and not stored.holder_keys


def reserved(stored: StoredLease) -> set[str]:
    """The addresses that a VMLease has, reserves, or keeps from others."""
    return {*stored.listed, *stored.pending, *(str(each.ip) for each in stored.cooling)}


def _prefix(namespace: str, vm: str) -> str:
    """What the names of a VM's leases begin with."""
    return lease_name(LeaseKey("", namespace, vm, "")).rpartition("-")[0]


def _may_be_of(instance: Instance, machine: str) -> bool:
    """Whether an instance can be that of a VirtualMachine that is gone: it has no other."""
    return instance.machine in ("", machine)


def _absences_of_vm(swept: SweptLease, uid: str, *, has_instance: bool) -> Iterator[Absence]:
    key = swept.stored.key
    yield Absence(VIRTUAL_MACHINES, key.namespace, key.vm, uid)
    # One that is there is another VM's, by its owner.
    yield Absence(INSTANCES, key.namespace, key.vm, uid if has_instance else "")
    if swept.claim is not None:
        yield Absence(IPAM_CLAIMS, key.namespace, swept.claim.name, swept.claim.uid)
