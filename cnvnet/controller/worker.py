"""The loop of the replica that leads: finishes deleted leases as they come, and sweeps in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from cnvnet.cni.errors import CNIError
from cnvnet.controller import steps, survey
from cnvnet.controller.cleanup import Cleaner, Done, Overtaken
from cnvnet.controller.election import Election, LeadershipLost
from cnvnet.controller.metrics import DONE, FAILED, OVERTAKEN, ControllerMetrics
from cnvnet.controller.snapshot import Doubt, UnreadableObject
from cnvnet.controller.steps import CleanupStep
from cnvnet.controller.sweep import Limits, Plan, plan
from cnvnet.ipam.store.object_names import FINALIZER
from cnvnet.kube.api import Api, ApiError, Document
from cnvnet.kube.events import EventWriter, InvolvedObject, KubernetesEvent
from cnvnet.kube.resources import VIRTUAL_MACHINES, VM_LEASES
from cnvnet.kube.watch import Change, Selection, Watcher
from cnvnet.resident import log

# Seconds until a lease that could not be finished is tried again: doubled each time, up to the longest.
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 30.0
# Seconds until a sweep whose steps were overtaken is made again, and how often in a row.
_AGAIN: Final = 1.0
_MOST_AGAIN: Final = 3
# A sweep is made again after so many times as long as it took: 100,000 VMs take ten seconds of a processor.
_SPARED: Final = 10
# Seconds between two looks at whether this replica leads.
_LOOK: Final = 0.5
# Lines of one sweep about objects that are left alone.
_MOST_DOUBTS: Final = 20

# What is logged, and the reason of the event, if there is one.
_WORDS: Final[Mapping[str, tuple[str, str]]] = {
    steps.END_HOLDER: ("holder ended", "HolderEnded"),
    steps.DELETE_LEASE: ("lease deleted", "LeaseDeleted"),
    steps.FINISH_LEASE: ("addresses released", "Released"),
    steps.END_COOLDOWN: ("cooldown ended", ""),
    steps.DELETE_RESERVATION: ("reservation deleted", "Released"),
    steps.COOL_RESERVATION: ("reservation cools down", "CoolsDown"),
}


class Due(NamedTuple):
    """When a deleted lease is looked at, in time.monotonic()'s seconds, and how often that was in vain."""

    at: float
    attempts: int


class CleanupWorker:
    """`run` works while this replica leads, until `stop`. Any thread may call `notify`."""

    def __init__(
        self,
        api: Api,
        election: Election,
        metrics: ControllerMetrics,
        events: EventWriter,
        *,
        interval: float,
        limits: Limits,
    ) -> None:
        """`interval` is between two sweeps, in seconds."""
        self._api = api
        self._election = election
        self._metrics = metrics
        self._events = events
        self._interval = interval
        self._limits = limits
        self._cleaner = Cleaner(api, election.ensure, self._report)
        self._changed = threading.Condition()
        self._stopped = False
        self._deleted: dict[tuple[str, str], Due] = {}
        self._memory: dict[tuple[str, ...], float] = {}
        self._next_sweep = 0.0
        self._again = 0
        self._doubts: frozenset[Doubt] = frozenset()
        self.last_plan: Plan | None = None
        # When it was last seen to go on, in time.monotonic()'s seconds.
        self.heartbeat = time.monotonic()

    def run(self) -> None:
        """Works until `stop`."""
        while not self._wait(_LOOK):
            if self._election.is_leader():
                self._lead()

    def stop(self) -> None:
        """Lets `run` end before its next request."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def notify(self) -> None:
        """This replica may have begun or ceased to lead."""
        with self._changed:
            self._changed.notify_all()

    def _wait(self, seconds: float) -> bool:
        """Whether it is to end."""
        self.heartbeat = time.monotonic()
        with self._changed:
            if not self._stopped:
                self._changed.wait(seconds)
            return self._stopped

    # -- one term of leadership

    def _lead(self) -> None:
        log.info("this replica leads")
        # What another replica has seen is not known here.
        self._memory, self._deleted, self._next_sweep = {}, {}, 0.0
        watcher = Watcher(self._api, Selection(VM_LEASES, metadata_only=True), self._observe, _report_watch)
        thread = threading.Thread(target=watcher.run, name="watch", daemon=True)
        thread.start()
        try:
            while self._election.is_leader() and not self._stopped:
                if not thread.is_alive():
                    raise RuntimeError("the watch of leases has failed")
                self._work()
                self._wait(self._pause())
        except LeadershipLost:
            pass
        finally:
            watcher.stop()
            thread.join()
        if not self._stopped:
            log.warning("this replica does not lead any more", holder=self._election.holder)

    def _work(self) -> None:
        now = time.monotonic()
        if now >= self._next_sweep:
            self._sweep()
        for key in self._due(now):
            self._finish(*key)

    def _pause(self) -> float:
        with self._changed:
            times = [self._next_sweep, *(each.at for each in self._deleted.values())]
        return min(max(min(times) - time.monotonic(), 0.0), _LOOK)

    # -- leases that are being deleted

    def _observe(self, change: Change, document: Document) -> None:
        metadata = document["metadata"]
        key = metadata["namespace"], metadata["name"]
        if change == "CHANGED" and "deletionTimestamp" in metadata:
            if FINALIZER in (metadata.get("finalizers") or ()):
                self._want(key)
        elif change == "GONE":
            with self._changed:
                self._deleted.pop(key, None)

    def _want(self, key: tuple[str, str]) -> None:
        with self._changed:
            self._deleted[key] = Due(0.0, 0)
            self._changed.notify_all()

    def _due(self, now: float) -> list[tuple[str, str]]:
        with self._changed:
            return [key for key, due in self._deleted.items() if due.at <= now]

    def _finish(self, namespace: str, name: str) -> None:
        """Finishes a lease, or waits for its next change if pods hold it."""
        self.heartbeat = time.monotonic()
        if self._stopped:
            return
        with self._changed:
            due = self._deleted.pop((namespace, name), Due(0.0, 0))
        try:
            self._cleaner.finish(namespace, name)
            return
        except Overtaken:
            self._metrics.observe_step(steps.FINISH_LEASE, OVERTAKEN)
        except (CNIError, UnreadableObject) as e:
            self._failed(steps.FINISH_LEASE, f"VMLease {namespace}/{name}", e)
        pause = min(_FIRST_PAUSE * 2**due.attempts, _LONGEST_PAUSE)
        with self._changed:
            # Not over a change that was reported meanwhile.
            again = Due(time.monotonic() + pause, min(due.attempts + 1, 16))
            self._deleted.setdefault((namespace, name), again)

    # -- the sweep

    def _sweep(self) -> None:
        begun = time.monotonic()
        self._next_sweep = begun + self._interval
        try:
            taken = survey.take(self._api)
        except CNIError as e:
            self._metrics.observe_incomplete()
            log.failure("sweep not complete: nothing is done", error=e.msg)
            return
        made = plan(taken, self._memory, self._limits, now=time.monotonic(), clock=int(time.time()))
        self._memory, self.last_plan = made.memory, made
        seconds = time.monotonic() - begun
        self._metrics.observe_plan(made, seconds)
        self._next_sweep = max(self._next_sweep, begun + seconds * _SPARED)
        self._say_doubts(made.doubts)
        was_overtaken = self._run(made.steps)
        self._again = self._again + 1 if was_overtaken else 0
        if 0 < self._again <= _MOST_AGAIN:
            self._next_sweep = min(self._next_sweep, time.monotonic() + _AGAIN)

    def _run(self, planned: Iterable[CleanupStep]) -> bool:
        """Does the steps; whether one of them was overtaken."""
        was_overtaken = False
        for step in planned:
            self.heartbeat = time.monotonic()
            if self._stopped:
                break
            if step.action == steps.FINISH_LEASE and step.lease is not None:
                with self._changed:
                    self._deleted.setdefault((step.lease.key.namespace, step.lease.name), Due(0.0, 0))
                continue
            try:
                self._cleaner.run(step)
            except Overtaken as e:
                was_overtaken = True
                self._metrics.observe_step(step.action, OVERTAKEN)
                log.debug("step overtaken", action=step.action, object=step.subject, by=str(e))
            except (CNIError, UnreadableObject) as e:
                self._failed(step.action, step.subject, e)
                if isinstance(e, ApiError) and not e.status:
                    break  # no answer: nor will the others have one
        return was_overtaken

    # -- what is said

    def _report(self, done: Done) -> None:
        text, reason = _WORDS[done.action]
        self._metrics.observe_step(done.action, DONE)
        fields = {"object": done.subject, "network": done.network, "addresses": ", ".join(done.addresses)}
        if done.holder:
            fields["holder"] = done.holder
        log.info(text, **fields, reason=done.reason)
        if reason:
            addresses = ", ".join(done.addresses)
            about = f"network {done.network}" + (f", {addresses}" if addresses else "")
            said = f"{text} ({about}): {done.reason}"
            for involved in (InvolvedObject.of(done.document), *_vm(done)):
                self._events.put(KubernetesEvent(involved, reason, said))

    def _failed(self, action: str, subject: str, error: CNIError | UnreadableObject) -> None:
        self._metrics.observe_step(action, FAILED)
        text = error.msg if isinstance(error, CNIError) else str(error)
        log.failure("step failed", action=action, object=subject, error=text)

    def _say_doubts(self, doubts: Iterable[Doubt]) -> None:
        now = frozenset(doubts)
        new = sorted(now - self._doubts)
        self._doubts = now
        for each in new[:_MOST_DOUBTS]:
            log.warning("left alone", object=each.subject, reason=each.reason)
        if len(new) > _MOST_DOUBTS:
            log.warning("more objects are left alone", number=len(new) - _MOST_DOUBTS)


def _vm(done: Done) -> Iterable[InvolvedObject]:
    """The VM whose addresses were released: who looks for them looks there."""
    spec: Mapping[str, str] = done.document.get("spec") or {}
    if done.action != steps.FINISH_LEASE or not done.addresses or not spec.get("vmUID"):
        return
    metadata = done.document["metadata"]
    owners = metadata.get("ownerReferences") or ()
    kind = next((each["kind"] for each in owners if each.get("uid") == spec["vmUID"]), VIRTUAL_MACHINES.kind)
    yield InvolvedObject(
        VIRTUAL_MACHINES.api_version, kind, metadata["namespace"], spec["vm"], spec["vmUID"]
    )


def _report_watch(problem: str) -> None:
    if problem:
        log.warning("leases are not watched: deleted ones wait for the sweep", error=problem)
