"""Whose CNI call the current thread runs: what its paths mean, where diagnostics go, who serves its guest.

An executable runs one call, its own: diagnostics go to its stderr, paths are what it sees itself, and the
agent is asked over its socket. A worker of the agent runs calls of many callers, each with a stderr, a root
folder and mounts of its own (Multus in its chroot, or everything on the node, when the agent is in a
container that shows nothing of it), and is the agent. Code below `plugins` and `ipam` is the same in both,
and asks this module.

Namespaces, programs and files that a call names are reached through it. Records and leases are not: all
callers that share them have them at the same path. Nothing is ever printed to stdout, which belongs to
`cnvnet.launch.executable`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, copy_context
from typing import Final, NamedTuple, Protocol, TypeVar, cast

T = TypeVar("T")

# The network namespace of the calling thread. /proc/self would be that of the main thread.
OWN_NETNS = "/proc/thread-self/ns/net"
OWN_MOUNTS = "/proc/thread-self/ns/mnt"
# Where programs are searched for when no PATH says where: a runtime may give a plugin none.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


# Seconds for requests to other machines that take back what a call has done.
_TAKING_BACK: Final = 1.5


class Exec(NamedTuple):
    """How a program of the caller's is started."""

    # The file that is executed, and its arguments, argv[0] included.
    path: str
    argv: list[str]
    # The program is killed after so many seconds; None: never.
    seconds: float | None = None


class Caller(Protocol):
    """The process that made the call. `open` and `stat` are os's own, and raise OSError."""

    def open(self, path: str, flags: int) -> int:
        """Open a path as the caller sees it: a descriptor. OSError."""
        ...

    def stat(self, path: str) -> os.stat_result:
        """What the caller would find at a path. OSError."""
        ...

    def program(self, path: str) -> Exec:
        """How a program of the caller's is started."""
        ...


class Lines(list[str]):
    """The diagnostics of a call, how many unknown keys its configuration has, and which VM it is for."""

    unknown_keys = 0
    # "namespace/name", "" where it is none or not known.
    vm = ""


# Does a request `{"guest": ...}` or `{"status": true}` of docs/agent-protocol.md; raises CNIError.
Service = Callable[[dict[str, object]], object]
# A block inside which this thread does nothing but wait, and hinders no other call.
Pause = Callable[[], AbstractContextManager[None]]


class _Context(NamedTuple):
    # None: this process is the caller.
    caller: Caller | None = None
    # None: this process is not the agent.
    service: Service | None = None
    # None: this thread hinders no other one.
    pause: Pause | None = None
    # None: lines are printed to stderr.
    lines: Lines | None = None
    # When requests to other machines have to have ended, by time.monotonic(); None: no call says when.
    end: float | None = None


_OWN_CALL: Final = _Context()
_context: ContextVar[_Context] = ContextVar("context", default=_OWN_CALL)


@contextmanager
def on_behalf_of(
    caller: Caller, service: Service | None = None, pause: Pause | None = None
) -> Generator[None]:
    """Inside the block this thread runs a call of this caller; in the agent, with `service` and `pause`.

    A worker of the agent that asked over the socket would wait for another worker, which may wait for the
    same.
    """
    token = _context.set(_context.get()._replace(caller=caller, service=service, pause=pause))
    try:
        yield
    finally:
        _context.reset(token)


def agent_service() -> Service | None:
    """What does requests to the agent in this thread, where the agent itself runs the call."""
    return _context.get().service


@contextmanager
def waiting() -> Generator[None]:
    """Inside the block this thread waits for another machine, and in the agent other calls run meanwhile."""
    pause = _context.get().pause
    if pause is None:
        yield
    else:
        with pause():
            yield


def started(action: Callable[[], T]) -> Callable[[], T] | None:
    """Begin an action that waits for another machine, beside this thread; None outside of the agent.

    What is returned waits for its end, and returns or raises what it did. For an executable, which has no
    second connection yet, one action after the other is quicker.
    """
    context = _context.get()
    if context.pause is None:
        return None
    import threading

    ended: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        # The lock that this thread would leave is not its own.
        _context.set(context._replace(pause=None))
        try:
            ended.append((action(), None))
        except BaseException as e:  # noqa: BLE001 -- it is raised where the action's value is asked for
            ended.append((None, e))

    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None  # there are too many

    def result() -> T:
        with waiting():
            thread.join()
        ((value, error),) = ended
        if error is not None:
            raise error
        return cast("T", value)

    return result


@contextmanager
def ending_at(end: float) -> Generator[None]:
    """Inside the block requests to other machines end before `end`, by time.monotonic(), answered or not."""
    token = _context.set(_context.get()._replace(end=end))
    try:
        yield
    finally:
        _context.reset(token)


def taking_back() -> AbstractContextManager[None]:
    """A block that takes back what a call has done, with time of its own for requests."""
    return ending_at(time.monotonic() + _TAKING_BACK)


def request_limit() -> float | None:
    """When requests to other machines have to have ended, by time.monotonic(); None: no call says when."""
    return _context.get().end


def open_path(path: str, flags: int) -> int:
    """os.open, as the caller sees the path."""
    caller = _context.get().caller
    return caller.open(path, flags) if caller is not None else os.open(path, flags)


def stat(path: str) -> os.stat_result:
    """os.stat, as the caller sees the path."""
    caller = _context.get().caller
    return caller.stat(path) if caller is not None else os.stat(path)


def program(path: str) -> Exec:
    """What to execute for the program at the caller's `path`."""
    caller = _context.get().caller
    return caller.program(path) if caller is not None else Exec(path, [path])


@contextmanager
def captured() -> Generator[Lines]:
    """The diagnostics of this thread inside the block, which are not printed."""
    lines = Lines()
    token = _context.set(_context.get()._replace(lines=lines))
    try:
        yield lines
    finally:
        _context.reset(token)


def log(text: str) -> None:
    """One line for the operator, its line breaks flattened. Never raises: no call depends on it."""
    line = " ".join(text.split("\n"))
    lines = _context.get().lines
    if lines is not None:
        lines.append(line)
        return
    try:
        # Not print(), which writes to stdout when there is no stderr.
        sys.stderr.write(f"{line}\n")
    except (OSError, ValueError, AttributeError):
        pass  # stderr is closed, full or was never there


def log_unknown_keys(text: str, count: int) -> None:
    """The line about unknown keys of a configuration, which are counted as well."""
    log(text)
    lines = _context.get().lines
    if lines is not None:
        lines.unknown_keys += count


def note_vm(name: str) -> None:
    """The VM that the call is for, as "namespace/name": where the call itself does not say it."""
    lines = _context.get().lines
    if lines is not None:
        lines.vm = name
