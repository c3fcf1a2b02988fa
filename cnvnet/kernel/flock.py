"""A file lock with a deadline."""

from __future__ import annotations

import errno
import fcntl
import time
from typing import Final

# Seconds before the second attempt; later pauses grow up to `longest_pause`.
_FIRST_PAUSE: Final = 0.0005
_LONGEST_PAUSE: Final = 0.05


def acquire(fd: int, wait_seconds: float, *, longest_pause: float = _LONGEST_PAUSE) -> None:
    """flock(2), exclusively, of an open file. Raises TimeoutError after `wait_seconds`, OSError otherwise.

    It polls, because only a signal could end a blocking flock, and a thread cannot receive one.
    `longest_pause` is in seconds: the more often a lock changes hands, the shorter it should be.
    """
    deadline = time.monotonic() + wait_seconds
    pause = _FIRST_PAUSE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                raise
        if time.monotonic() >= deadline:
            raise TimeoutError(
                errno.ETIMEDOUT, f"locked by another process for more than {wait_seconds:.0f} s"
            )
        time.sleep(pause)
        pause = min(pause * 1.5, longest_pause)


def try_acquire(fd: int) -> None:
    """Like `acquire`, without waiting: BlockingIOError when another process has the lock."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
