"""Which of the calls that have come may run now: pure bookkeeping, under one lock.

Calls of one attachment run one after the other, in the order they came. A network, whose addresses may
come from a slow program, gets some of the places only, so that others find one free.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final, Generic, NamedTuple, TypeVar

# Calls that run at the same time; a worker that is stuck keeps its place. Those that work do so one behind
# the other (cnvnet.agent.lane): the places are for the stuck ones, of ten networks at once.
PLACES: Final = 64
PLACES_OF_NETWORK: Final = 6
# What may wait: calls, and bytes of their configurations.
_CALLS: Final = 4096
_BYTES: Final = 64 * 1024 * 1024

J = TypeVar("J")


class Subject(NamedTuple):
    """What a call is about. `attachment` is container id and interface; None: about no attachment."""

    network: str
    attachment: tuple[str, str] | None
    size: int


class Full(Exception):
    """Too many calls are waiting already."""


class Turns(Generic[J]):
    """Several threads call it. At every moment all that may run does: each place that becomes free lets at
    most one call in, which `done` hands to the thread that had the place.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A dict is a queue from which anybody can leave.
        self._waiting: dict[int, tuple[Subject, J]] = {}
        self._bytes = 0
        self._number = 0
        self._running = 0
        self._of_network: Counter[str] = Counter()
        self._busy: set[tuple[str, tuple[str, str]]] = set()

    def begin(self, subject: Subject, job: J) -> bool:
        """Whether the job may run at once, which ends with `done`; otherwise it waits. Raises Full."""
        with self._lock:
            # Whoever waits for the same attachment came first.
            if self._is_free(subject) and not self._is_awaited(subject):
                self._take(subject)
                return True
            if len(self._waiting) >= _CALLS or self._bytes + subject.size > _BYTES:
                raise Full
            self._waiting[self._number] = subject, job
            self._number += 1
            self._bytes += subject.size
            return False

    def done(self, subject: Subject) -> tuple[Subject, J] | None:
        """A job is over; the one that this thread is to run now."""
        with self._lock:
            self._leave(subject)
            return self._next()

    def leave(self, subject: Subject) -> None:
        """A job is over, and another thread will ask for the next one."""
        with self._lock:
            self._leave(subject)

    def next(self) -> tuple[Subject, J] | None:
        """The one that this thread is to run now, in the place of one that has left."""
        with self._lock:
            return self._next()

    def clear(self) -> list[J]:
        """Those that wait, which do so no longer."""
        with self._lock:
            jobs = [job for _, job in self._waiting.values()]
            self._waiting.clear()
            self._bytes = 0
            return jobs

    def running(self) -> int:
        return self._running

    def waiting(self) -> int:
        return len(self._waiting)

    def _leave(self, subject: Subject) -> None:
        self._running -= 1
        self._of_network[subject.network] -= 1
        if not self._of_network[subject.network]:
            del self._of_network[subject.network]
        if subject.attachment is not None:
            self._busy.discard((subject.network, subject.attachment))

    def _next(self) -> tuple[Subject, J] | None:
        for number, (candidate, job) in self._waiting.items():
            if self._is_free(candidate):
                del self._waiting[number]
                self._bytes -= candidate.size
                self._take(candidate)
                return candidate, job
        return None

    def _is_free(self, subject: Subject) -> bool:
        return (
            self._running < PLACES
            and self._of_network[subject.network] < PLACES_OF_NETWORK
            and (subject.attachment is None or (subject.network, subject.attachment) not in self._busy)
        )

    def _is_awaited(self, subject: Subject) -> bool:
        return subject.attachment is not None and any(
            waiting.attachment == subject.attachment and waiting.network == subject.network
            for waiting, _ in self._waiting.values()
        )

    def _take(self, subject: Subject) -> None:
        self._running += 1
        self._of_network[subject.network] += 1
        if subject.attachment is not None:
            self._busy.add((subject.network, subject.attachment))
