"""Network namespaces: open one, compare two, be inside one for a moment.

Everything here concerns the calling thread, never the process: other threads stay where they are.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from _thread import get_ident
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Final, NamedTuple

from cnvnet import caller

# Not /proc/self, which shows the namespace of the main thread.
OWN_PATH: Final = "/proc/thread-self/ns/net"
_CLONE_NEWNET: Final = 0x40000000
_NS_GET_NSTYPE: Final = 0xB703  # include/uapi/linux/nsfs.h, _IO(0xb7, 3)

_inside: set[int] = set()


class Netns(NamedTuple):
    """An open network namespace. `inode` identifies it; `path` is what the caller named it by."""

    path: str
    fd: int
    inode: int


class NotANamespace(OSError):
    """The path is there and is not a network namespace."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(errno.EINVAL, f"{path} is {what}")
        self.path = path

    def __str__(self) -> str:
        return str(self.strerror)


class LostNamespace(BaseException):
    """The thread is stuck in a foreign namespace: whatever it did next would happen in the wrong place.

    Not an Exception, so that no clean-up code goes on by mistake: a standalone program ends with it, and a
    worker of the agent dies by it and is replaced.
    """


@contextmanager
def opened(path: str) -> Generator[Netns]:
    """The network namespace at `path`, open until the end of the block.

    Raises FileNotFoundError when there is nothing, NotANamespace when it is something else, OSError
    otherwise.
    """
    fd = _open(path)
    try:
        yield _checked(path, fd)
    finally:
        os.close(fd)


def lock(netns: Netns, wait_seconds: float) -> None:
    """Nobody else who asks has this namespace for himself from now on, as long as it is open here.

    Raises TimeoutError. The lock is on the namespace and not on a file of ours, which nobody would remove.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(netns.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"{netns.path}: others have been at work in it for too long"
                ) from None
        time.sleep(0.01)


def own_inode() -> int:
    """The inode of the calling thread's own network namespace."""
    return _own().st_ino


@contextmanager
def entered(netns: Netns) -> Generator[None]:
    """The calling thread is inside `netns` until the end of the block, which must not enter another.

    For a few system calls at a time: no callbacks, no yields to other code. Raises OSError when the
    namespace cannot be entered, and LostNamespace (a BaseException) when the way back is barred.
    """
    thread = get_ident()
    if thread in _inside:
        raise RuntimeError(f"{netns.path}: this thread is inside another namespace already")
    home = os.open(OWN_PATH, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(netns.fd)
        _inside.add(thread)
        try:
            yield
        finally:
            _inside.discard(thread)
            _return(home, netns.path)
    finally:
        os.close(home)


def _return(home: int, abroad: str) -> None:
    try:
        _setns(home)
    except OSError:
        try:
            _setns(home)  # the kernel may have been short of memory for a moment
        except OSError as e:
            raise LostNamespace(f"cannot leave {abroad}: {e.strerror}") from e


def _own() -> os.stat_result:
    try:
        return os.stat(OWN_PATH)
    except FileNotFoundError as e:
        # Not to be taken for a pod's namespace that is gone.
        raise OSError(errno.EIO, f"{OWN_PATH} is missing: /proc is not mounted") from e


@cache
def _device() -> int:
    return _own().st_dev


def _open(path: str) -> int:
    try:
        # Tenants may choose the path: a FIFO must not block us and a terminal must not become ours.
        return caller.open_path(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except NotADirectoryError as e:
        raise FileNotFoundError(errno.ENOENT, "no such namespace", path) from e
    except OSError as e:
        if e.errno in (errno.ENXIO, errno.ENODEV):
            raise NotANamespace(path, "a socket or a device") from e
        raise


def _checked(path: str, fd: int) -> Netns:
    found = os.fstat(fd)
    # All namespaces live on one nsfs mount of the kernel's own: this is fstatfs's NSFS_MAGIC test without
    # ctypes, and it comes before the ioctl, whose number may mean something else to another kind of file.
    if found.st_dev != _device():
        raise NotANamespace(path, "not a namespace")
    if fcntl.ioctl(fd, _NS_GET_NSTYPE) != _CLONE_NEWNET:
        raise NotANamespace(path, "a namespace of another kind than network")
    return Netns(path, fd, found.st_ino)


def _setns(fd: int) -> None:
    number = _setns_function()(fd, _CLONE_NEWNET)
    if number:
        raise OSError(number, f"setns: {os.strerror(number).lower()}")


@cache
def _setns_function() -> Callable[[int, int], int]:
    """setns(2), which returns its errno; made once, for that takes longer than the call."""
    import ctypes  # 1.7 ms; Python 3.11 has no os.setns

    # PyDLL keeps the interpreter lock: no other thread runs Python between the call and its errno.
    setns = ctypes.PyDLL(None, use_errno=True).setns

    def call(fd: int, kind: int) -> int:
        return ctypes.get_errno() if setns(fd, kind) != 0 else 0

    return call
