"""What the paths of a call mean: they are its caller's, who may have another root than we.

An executable sees what its caller sees. A worker of the agent acts for callers with a root and mounts of
their own, such as Multus' in its chroot, or is itself in a container that shows nothing of the node: only
this module knows. Namespaces, programs and files that a call names are reached through it; records and
leases are not, for they are at the same place for everybody who shares them.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol


class Program(NamedTuple):
    """How a program of the caller's is started.

    `path` and `argv` are what is executed. After `seconds` (None: never) it is killed.
    """

    path: str
    argv: list[str]
    seconds: float | None = None


class Caller(Protocol):
    """Who made the call that this thread is running. `open` and `stat` are os's own, and raise OSError."""

    def open(self, path: str, flags: int) -> int: ...
    def stat(self, path: str) -> os.stat_result: ...
    def program(self, path: str) -> Program: ...


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


@contextmanager
def acting_for(caller: Caller) -> Generator[None]:
    """Until the end of the block this thread's calls are this caller's."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def open_path(path: str, flags: int) -> int:
    """os.open, where the caller would. Fits `open` as its `opener`."""
    caller = _caller.get()
    return caller.open(path, flags) if caller is not None else os.open(path, flags)


def stat(path: str) -> os.stat_result:
    """os.stat, where the caller would."""
    caller = _caller.get()
    return caller.stat(path) if caller is not None else os.stat(path)


def program(path: str) -> Program:
    """What to execute for the program at the caller's `path`."""
    caller = _caller.get()
    return caller.program(path) if caller is not None else Program(path, [path])
