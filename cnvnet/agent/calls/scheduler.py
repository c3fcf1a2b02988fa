"""Which of the calls that have come may run now: pure bookkeeping, under one lock.

Calls of one attachment run one after the other, in the order they came. A network, whose addresses may
come from a slow program, gets a part of the slots only, so that calls of other networks find one free. A few
slots are for DELs alone: those of a network whose ADDs wait for an API that says nothing need not wait with
them.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final, Generic, NamedTuple, TypeVar

# Calls that run concurrently; a worker that is stuck keeps its slot. So many because most of them wait for a
# program: the run lock (cnvnet.agent.calls.run_lock) serialises those that work.
MAX_RUNNING: Final = 64
# Slots that every network may use, however busy the others are: its quota.
MAX_OF_NETWORK: Final = 6
# As long as fewer calls run than this, a network may use more slots than its quota.
MAX_SHARED: Final = 24
# Slots for DELs, besides those for all calls: a DEL waits for the API no longer than 1.5 s.
MAX_DELETES: Final = 8
# The queue's limits: calls, and bytes of their configurations. A call beyond them is answered "try
# again later". Each of them has five open descriptors.
_CALLS: Final = 4096
_BYTES: Final = 64 * 1024 * 1024
# Bytes. Of configurations larger than _LARGE, those that run together have at most so many: decoding one
# takes eight times its size in memory.
_LARGE: Final = 64 * 1024
_LARGE_BYTES: Final = 8 * 1024 * 1024

J = TypeVar("J")


class CallKey(NamedTuple):
    """What a call is about."""

    network: str
    # Container id and interface; None: about no attachment.
    attachment: tuple[str, str] | None
    # Bytes of its configuration.
    size: int
    is_delete: bool = False


class QueueFull(Exception):
    """Too many calls are waiting already."""


class CallScheduler(Generic[J]):
    """Several threads call it. At every moment every call that may run does.

    A slot that becomes free admits at most one call, which `finish` hands to the thread that had the slot.
    Of calls with large configurations, and where a DEL waited for its ADD, it may admit several, one with
    each call that ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A dict is a queue whose entries can leave in any order.
        self._waiting: dict[int, tuple[CallKey, J]] = {}
        self._bytes = 0
        self._number = 0
        self._running = 0
        self._large = 0
        self._of_network: Counter[str] = Counter()
        self._busy: set[tuple[str, tuple[str, str]]] = set()
        # Those of them whose DELs have a slot for DELs.
        self._deletes: set[tuple[str, tuple[str, str]]] = set()

    def try_start(self, key: CallKey, job: J) -> bool:
        """Whether the job may run at once, which ends with `finish`; else it waits. Raises QueueFull."""
        with self._lock:
            # A call of the same attachment that waits came first.
            if self._is_free(key) and not self._is_awaited(key):
                self._take(key)
                return True
            if len(self._waiting) >= _CALLS or self._bytes + key.size > _BYTES:
                raise QueueFull
            self._waiting[self._number] = key, job
            self._number += 1
            self._bytes += key.size
            return False

    def finish(self, key: CallKey) -> tuple[CallKey, J] | None:
        """A job is over; returns the one that this thread is to run now."""
        with self._lock:
            self._remove(key)
            return self._next()

    def abandon(self, key: CallKey) -> None:
        """A job is over, and another thread will ask for the next one."""
        with self._lock:
            self._remove(key)

    def next(self) -> tuple[CallKey, J] | None:
        """The job that this thread is to run now, in the slot of a thread that is lost."""
        with self._lock:
            return self._next()

    def drain(self) -> list[J]:
        """Empties the queue; returns the jobs that waited."""
        with self._lock:
            jobs = [job for _, job in self._waiting.values()]
            self._waiting.clear()
            self._bytes = 0
            return jobs

    def running(self) -> int:
        """How many calls have a slot."""
        return self._running + len(self._deletes)

    def waiting(self) -> int:
        """How many calls are queued."""
        return len(self._waiting)

    def _remove(self, key: CallKey) -> None:
        self._large -= _large(key)
        if key.attachment is not None:
            attachment = key.network, key.attachment
            self._busy.discard(attachment)
            if attachment in self._deletes:
                self._deletes.discard(attachment)
                return
        self._running -= 1
        self._of_network[key.network] -= 1
        if not self._of_network[key.network]:
            del self._of_network[key.network]

    def _next(self) -> tuple[CallKey, J] | None:
        deletes = (number for number, (each, _) in self._waiting.items() if each.is_delete)
        first = next((each for each in deletes if self._is_free(self._waiting[each][0])), None)
        if first is not None:
            return self._admit(first)
        for number, (candidate, _) in self._waiting.items():
            if self._is_free(candidate):
                # Prefer a call within its network's own quota: it could also run later, in a shared slot.
                if self._is_within_quota(candidate):
                    return self._admit(number)
                first = number if first is None else first
        return None if first is None else self._admit(first)

    def _admit(self, number: int) -> tuple[CallKey, J]:
        key, job = self._waiting.pop(number)
        self._bytes -= key.size
        self._take(key)
        return key, job

    def _is_free(self, key: CallKey) -> bool:
        large = _large(key)
        return (
            (self._has_slot(key) or self._has_slot_for_deletes(key))
            and (not large or not self._large or self._large + large <= _LARGE_BYTES)
            and (key.attachment is None or (key.network, key.attachment) not in self._busy)
        )

    def _has_slot(self, key: CallKey) -> bool:
        return self._running < MAX_RUNNING and (self._running < MAX_SHARED or self._is_within_quota(key))

    def _has_slot_for_deletes(self, key: CallKey) -> bool:
        return key.is_delete and key.attachment is not None and len(self._deletes) < MAX_DELETES

    def _is_within_quota(self, key: CallKey) -> bool:
        return self._of_network[key.network] < MAX_OF_NETWORK

    def _is_awaited(self, key: CallKey) -> bool:
        return key.attachment is not None and any(
            waiting.attachment == key.attachment and waiting.network == key.network
            for waiting, _ in self._waiting.values()
        )

    def _take(self, key: CallKey) -> None:
        self._large += _large(key)
        if key.attachment is not None:
            self._busy.add((key.network, key.attachment))
            if not self._has_slot(key):
                self._deletes.add((key.network, key.attachment))
                return
        self._running += 1
        self._of_network[key.network] += 1


def _large(key: CallKey) -> int:
    """The bytes of a large configuration."""
    return key.size if key.size > _LARGE else 0
