"""Which of the calls that have come may run now: pure bookkeeping, under one lock.

Calls of one attachment run one after the other, in the order they came. A network, whose addresses may
come from a slow program, gets a part of the places only, so that others find one free.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final, Generic, NamedTuple, TypeVar

# Calls that run at the same time; a worker that is stuck keeps its place. Those that work do so one behind
# the other (cnvnet.agent.lane): the places are for those that wait for a program. A network has so many for
# itself, and more while there is room for those of others.
PLACES: Final = 64
PLACES_OF_NETWORK: Final = 6
PLACES_FOR_ANY: Final = 24
# What may wait: calls, and bytes of their configurations.
_CALLS: Final = 4096
_BYTES: Final = 64 * 1024 * 1024
# Bytes of the larger configurations of those that run, each of which takes eight times as much memory.
_LARGE: Final = 64 * 1024
_LARGE_BYTES: Final = 8 * 1024 * 1024

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
    most one call in, which `done` hands to the thread that had the place. Of calls with large configurations
    it may let several in, one with each call that ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A dict is a queue from which anybody can leave.
        self._waiting: dict[int, tuple[Subject, J]] = {}
        self._bytes = 0
        self._number = 0
        self._running = 0
        self._large = 0
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
        self._large -= _large(subject)
        self._of_network[subject.network] -= 1
        if not self._of_network[subject.network]:
            del self._of_network[subject.network]
        if subject.attachment is not None:
            self._busy.discard((subject.network, subject.attachment))

    def _next(self) -> tuple[Subject, J] | None:
        first: int | None = None
        for number, (candidate, _) in self._waiting.items():
            if self._is_free(candidate):
                # Whoever has a right to it comes first: after another one he would still be free to run.
                if self._has_right(candidate):
                    return self._let_in(number)
                first = number if first is None else first
        return None if first is None else self._let_in(first)

    def _let_in(self, number: int) -> tuple[Subject, J]:
        subject, job = self._waiting.pop(number)
        self._bytes -= subject.size
        self._take(subject)
        return subject, job

    def _is_free(self, subject: Subject) -> bool:
        large = _large(subject)
        return (
            self._running < PLACES
            and (self._running < PLACES_FOR_ANY or self._has_right(subject))
            and (not large or not self._large or self._large + large <= _LARGE_BYTES)
            and (subject.attachment is None or (subject.network, subject.attachment) not in self._busy)
        )

    def _has_right(self, subject: Subject) -> bool:
        return self._of_network[subject.network] < PLACES_OF_NETWORK

    def _is_awaited(self, subject: Subject) -> bool:
        return subject.attachment is not None and any(
            waiting.attachment == subject.attachment and waiting.network == subject.network
            for waiting, _ in self._waiting.values()
        )

    def _take(self, subject: Subject) -> None:
        self._running += 1
        self._large += _large(subject)
        self._of_network[subject.network] += 1
        if subject.attachment is not None:
            self._busy.add((subject.network, subject.attachment))


def _large(subject: Subject) -> int:
    """The bytes of a large configuration."""
    return subject.size if subject.size > _LARGE else 0
