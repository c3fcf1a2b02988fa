"""What the controller counts, for Prometheus."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from cnvnet.controller import steps
from cnvnet.controller.sweep import Plan

# Seconds of a sweep: from an empty cluster to one of 100,000 VMs.
_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

DONE: Final = "done"
OVERTAKEN: Final = "overtaken"
FAILED: Final = "failed"
RESULTS: Final = (DONE, OVERTAKEN, FAILED)


class ControllerMetrics:
    """All of them, in a registry of their own."""

    def __init__(self, is_leader: Callable[[], bool]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it
        self.registry = CollectorRegistry()
        leader = Gauge(
            "cnvnet_controller_leader", "1 where this replica is the one that acts.", registry=self.registry
        )
        leader.set_function(is_leader)
        self._sweeps = Counter(
            "cnvnet_controller_sweeps",
            "Sweeps by result: done, or incomplete (the API did not list everything: nothing was done).",
            ["result"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "cnvnet_controller_sweep_duration_seconds",
            "Seconds of a sweep, without its steps.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._last = Gauge(
            "cnvnet_controller_last_sweep_timestamp_seconds",
            "When the last complete sweep ended; 0: this replica has made none.",
            registry=self.registry,
        )
        self._steps = Counter(
            "cnvnet_controller_steps",
            "Steps by action and result: done, overtaken (something had changed: planned anew), failed.",
            ["action", "result"],
            registry=self.registry,
        )
        self._waiting = Gauge(
            "cnvnet_controller_waiting_steps",
            "Steps that will be done if nothing changes for the grace period.",
            ["action"],
            registry=self.registry,
        )
        self._doubtful = Gauge(
            "cnvnet_controller_doubtful_objects",
            "Leases, holders and reservations that are left alone since they cannot be understood.",
            registry=self.registry,
        )
        self._dropped = Counter(
            "cnvnet_controller_events_dropped",
            "Kubernetes events that were not written.",
            registry=self.registry,
        )
        for action in steps.ACTIONS:
            self._waiting.labels(action)
            for result in RESULTS:
                self._steps.labels(action, result)
        for complete in (True, False):
            self._sweeps.labels(_result(complete=complete))
        ProcessCollector(registry=self.registry)

    def observe_plan(self, plan: Plan, seconds: float) -> None:
        """A sweep was complete."""
        self._sweeps.labels(_result(complete=True)).inc()
        self._seconds.observe(seconds)
        self._last.set_to_current_time()
        waiting = Tally(each.step.action for each in plan.waiting)
        for action in steps.ACTIONS:
            self._waiting.labels(action).set(waiting[action])
        self._doubtful.set(len(plan.doubts))

    def observe_incomplete(self) -> None:
        """The API did not list everything."""
        self._sweeps.labels(_result(complete=False)).inc()

    def observe_step(self, action: str, result: str) -> None:
        """A step was tried."""
        self._steps.labels(action, result).inc()

    def observe_dropped(self) -> None:
        """An event was not written."""
        self._dropped.inc()


def _result(*, complete: bool) -> str:
    return "done" if complete else "incomplete"
