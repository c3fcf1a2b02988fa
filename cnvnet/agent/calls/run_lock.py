"""The lock that serialises the calls of the agent while they work."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

# How long a call waits for the lock, in seconds: a call takes 0.002 to 0.004.
_PATIENCE: Final = 0.1


class HeldLock:
    """The run lock as one call has it. The call's own thread uses it."""

    def __init__(self, run_lock: RunLock) -> None:
        self._run_lock = run_lock
        # The lock that is held; an overtaken call keeps one that no other call waits for.
        self._held = run_lock.acquire()

    def release(self) -> None:
        """Releases the lock for good; it may be called again."""
        held, self._held = self._held, None
        if held is not None:
            held.release()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Inside the block other calls have the lock. One that was released for good stays so."""
        was_held = self._held is not None
        self.release()
        try:
            yield
        finally:
            if was_held:
                self._held = self._run_lock.acquire()


class RunLock:
    """Serialises calls. Several threads use it.

    Threads that work concurrently are slower than serialised ones: Python's interpreter lock (GIL) lets one
    run at a time, and they take it from each other at every system call; the kernel changes links one at a
    time anyway. A call releases the lock before it waits for a program, is without it while it waits for
    another machine, and one that keeps it for longer than 0.1 s, as it waits for something else, is
    overtaken.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def held(self) -> Generator[HeldLock]:
        """Holds the lock, unless the block releases it before its end."""
        hold = HeldLock(self)
        try:
            yield hold
        finally:
            hold.release()

    def acquire(self) -> threading.Lock | None:
        """Waits for the lock, but not for a call that is stuck. None: this call works beside another one."""
        lock = self._lock
        if lock.acquire(timeout=_PATIENCE):
            return lock
        # The holder is stuck: leave it the old lock and let later calls use a new one.
        lock = self._lock = threading.Lock()
        return lock if lock.acquire(blocking=False) else None
