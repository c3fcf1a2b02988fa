"""Calls that work, one behind the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

# Seconds for which a call lets another one go before it: many times what one takes.
_PATIENCE: Final = 0.1


class Lane:
    """Threads that all work are slower than one after the other: Python runs one at a time, and
    they take it from each other at every system call, and the kernel changes links one at a time anyway.

    Nobody waits for a call that waits itself: it leaves the lane, or is overtaken. For several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def passage(self) -> Generator[Callable[[], None]]:
        """What leaves the lane before the block ends, for good. Several times is once."""
        lock = self._lock
        entered = lock.acquire(timeout=_PATIENCE)
        if not entered:
            # Whoever has it keeps it, and no one else comes to wait for him.
            lock = self._lock = threading.Lock()
            entered = lock.acquire(blocking=False)

        def leave() -> None:
            nonlocal entered
            if entered:
                entered = False
                lock.release()

        try:
            yield leave
        finally:
            leave()
