"""Network namespaces: open one, compare two, be inside one for a moment.

Everything here concerns the calling thread, never the process: other threads stay where they are.
"""

from __future__ import annotations

import errno
import fcntl
import os
from _thread import get_ident
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Final, NamedTuple

from cnvnet import call_context
from cnvnet.call_context import OWN_NETNS
from cnvnet.kernel import flock
from cnvnet.kernel.syscalls import setns

# include/uapi/linux/sched.h; setns() with it refuses a descriptor of any other kind of namespace.
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
    """The thread cannot leave another namespace: its next system call would act in the wrong place.

    Not an Exception, so that no clean-up code goes on by mistake: it ends a standalone program, or a worker
    thread of the agent, which starts another one.
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
    """Locks this namespace against other calls of ours until it is closed here.

    Raises TimeoutError. The flock is on the namespace's own inode: a lock file would stay behind when the
    pod is gone.
    """
    try:
        flock.acquire(netns.fd, wait_seconds)
    except TimeoutError as e:
        reason = f"{netns.path}: others have been at work in it for too long"
        raise TimeoutError(errno.ETIMEDOUT, reason) from e


def own_inode() -> int:
    """The inode of the calling thread's own network namespace."""
    return _own().st_ino


@contextmanager
def entered(netns: Netns) -> Generator[None]:
    """The calling thread is inside `netns` until the end of the block, which must not enter another.

    For a few system calls at a time: no callbacks, no yields to other code. Raises OSError when the
    namespace cannot be entered, and LostNamespace (a BaseException) when the thread cannot return.
    """
    thread = get_ident()
    if thread in _inside:
        raise RuntimeError(f"{netns.path}: this thread is inside another namespace already")
    own = os.open(OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(netns.fd, _CLONE_NEWNET)
        _inside.add(thread)
        try:
            yield
        finally:
            _inside.discard(thread)
            _return(own, netns.path)
    finally:
        os.close(own)


def _return(own: int, foreign: str) -> None:
    try:
        setns(own, _CLONE_NEWNET)
    except OSError:
        try:
            setns(own, _CLONE_NEWNET)  # the kernel may have been short of memory for a moment
        except OSError as e:
            raise LostNamespace(f"cannot leave {foreign}: {e.strerror}") from e


def _own() -> os.stat_result:
    try:
        return os.stat(OWN_NETNS)
    except FileNotFoundError as e:
        # FileNotFoundError would look as if the pod's namespace were gone.
        raise OSError(errno.EIO, f"{OWN_NETNS} is missing: /proc is not mounted") from e


@cache
def _device() -> int:
    return _own().st_dev


def _open(path: str) -> int:
    try:
        # A tenant may choose the path: a FIFO must not block, nor a terminal become the controlling one.
        return call_context.open_path(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except NotADirectoryError as e:
        raise FileNotFoundError(errno.ENOENT, "no such namespace", path) from e
    except OSError as e:
        if e.errno in (errno.ENXIO, errno.ENODEV):
            raise NotANamespace(path, "a socket or a device") from e
        raise


def _checked(path: str, fd: int) -> Netns:
    status = os.fstat(fd)
    # All namespaces live on one nsfs mount of the kernel's own: this is fstatfs's NSFS_MAGIC test without
    # ctypes, and it comes before the ioctl, whose number may mean something else to another kind of file.
    if status.st_dev != _device():
        raise NotANamespace(path, "not a namespace")
    if fcntl.ioctl(fd, _NS_GET_NSTYPE) != _CLONE_NEWNET:
        raise NotANamespace(path, "a namespace of another kind than network")
    return Netns(path, fd, status.st_ino)
