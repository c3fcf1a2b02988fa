"""Which replica acts: the holder of a Lease (coordination.k8s.io), by the rules of Kubernetes' controllers.

No node's clock is trusted. A Lease has expired when it has not changed for its whole duration, by the
clock of the replica that watches it; its holder stops acting before, when it could not renew it for a while.
"""

from __future__ import annotations

import random
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from cnvnet.cni.errors import CNIError
from cnvnet.kube.api import Api, Conflict, Document, NotFound, deadline
from cnvnet.kube.resources import COORDINATION_LEASES

NAME: Final = "cnvnet-controller"


class Timing(NamedTuple):
    """Seconds, as client-go has them."""

    # After which another replica takes a Lease that does not change.
    duration: float = 15.0
    # After which the holder stops acting when it could not renew it: the rest is for its last request.
    renewal: float = 10.0
    # Between two attempts.
    retry: float = 2.0


class LeadershipLost(Exception):
    """Another replica acts, or may."""


class Seat(NamedTuple):
    """The Lease: where it is, and what this replica calls itself."""

    namespace: str
    identity: str
    name: str = NAME


# What client-go takes by default.
CLIENT_GO: Final = Timing()


def own_identity() -> str:
    """A name that no other process has, and that tells an operator which pod or host it is."""
    return f"{socket.gethostname()}_{uuid.uuid4()}"


def uptime() -> float:
    """Seconds that go on while the machine is suspended, as others' do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Election:
    """`run` takes part until `stop`. Any thread asks `ensure` before each write."""

    def __init__(
        self,
        api: Api,
        seat: Seat,
        changed: Callable[[], None],
        timing: Timing = CLIENT_GO,
    ) -> None:
        """`changed` is called when this replica has begun or ceased to lead, or what it sees has changed."""
        self._api = api
        self._seat = seat
        self._changed = changed
        self._timing = timing
        self._stopped = threading.Event()
        # The Lease as it was last seen to change, and when.
        self._seen: Document = {}
        self._seen_at = 0.0
        # Until when this replica leads.
        self._until = 0.0
        self._problem = "the election has not begun"
        self._leads = False

    @property
    def holder(self) -> str:
        """The identity of the replica that leads, as far as this one has seen."""
        return str(self._seen.get("spec", {}).get("holderIdentity") or "")

    @property
    def problem(self) -> str:
        """Why the Lease cannot be read or written, "" if it can."""
        return self._problem

    def is_leader(self) -> bool:
        """Whether this replica acts."""
        return uptime() < self._until

    def ensure(self) -> float:
        """The seconds that a write which begins now may take. LeadershipLost: none must begin."""
        left = self._until - uptime()
        if left <= 0:
            raise LeadershipLost("another replica acts, or may")
        return left + self._timing.duration - self._timing.renewal

    def run(self) -> None:
        """Takes part until `stop`, then gives the Lease back."""
        while not self._stopped.is_set():
            self.attempt()
            # Replicas that began together do not ask together.
            self._stopped.wait(self._timing.retry * random.uniform(0.8, 1.2))
        self._give_back()

    def stop(self) -> None:
        """Lets `run` end."""
        self._stopped.set()

    def attempt(self) -> None:
        """Renews the Lease, or takes it if no replica holds it."""
        problem = ""
        try:
            with deadline(self._timing.renewal / 2):
                self._attempt()
        except Conflict:
            self._seen = {}  # another replica was faster: what it wrote is read next time
        except CNIError as e:
            problem = e.msg
            if isinstance(e, NotFound):
                problem += f" (is there a namespace {self._seat.namespace}? --namespace)"
        self._report(problem)

    def _attempt(self) -> None:
        begun = uptime()
        if self.is_leader() and self.holder == self._seat.identity:
            try:
                self._take(begun)
                return
            except (Conflict, NotFound):
                pass  # it is read
        try:
            self._observe(self._api.get(COORDINATION_LEASES, self._seat.name, self._seat.namespace))
        except NotFound:
            spec = self._spec(begun=True, transitions=0)
            document = {"metadata": {"name": self._seat.name}, "spec": spec}
            self._observe(self._api.create(COORDINATION_LEASES, document, self._seat.namespace))
            self._until = begun + self._timing.renewal
            return
        if self.holder not in ("", self._seat.identity):
            self._until = 0.0
            if uptime() < self._seen_at + self._timing.duration:
                return
        self._take(begun)

    def _take(self, begun: float) -> None:
        """Writes the Lease as it was seen last: Conflict if another replica has written it since."""
        transitions = int(self._seen["spec"].get("leaseTransitions") or 0)
        is_new = self.holder != self._seat.identity
        patch: Document = {
            "metadata": {"resourceVersion": self._seen["metadata"]["resourceVersion"]},
            "spec": self._spec(begun=is_new, transitions=transitions + is_new),
        }
        self._observe(self._api.patch(COORDINATION_LEASES, self._seat.name, patch, self._seat.namespace))
        self._until = begun + self._timing.renewal

    def _observe(self, document: Document) -> None:
        if document["metadata"]["resourceVersion"] != self._seen.get("metadata", {}).get("resourceVersion"):
            self._seen = document
            self._seen_at = uptime()

    def _spec(self, *, begun: bool, transitions: int) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": self._seat.identity,
            "leaseDurationSeconds": max(round(self._timing.duration), 1),
            "renewTime": now,
            "leaseTransitions": transitions,
            **({"acquireTime": now} if begun else {}),
        }

    def _give_back(self) -> None:
        leads, self._until = self.is_leader(), 0.0
        if not leads or self.holder != self._seat.identity:
            return
        spec = self._spec(begun=False, transitions=int(self._seen["spec"].get("leaseTransitions") or 0))
        patch: Document = {
            "metadata": {"resourceVersion": self._seen["metadata"]["resourceVersion"]},
            "spec": {**spec, "holderIdentity": "", "leaseDurationSeconds": 1},
        }
        try:
            with deadline(self._timing.retry):
                self._api.patch(COORDINATION_LEASES, self._seat.name, patch, self._seat.namespace)
        except CNIError:
            pass  # it expires

    def _report(self, problem: str) -> None:
        leads = self.is_leader()
        if (leads, problem) != (self._leads, self._problem):
            self._leads, self._problem = leads, problem
            self._changed()
