"""The socket that the agent listens on: its own, or the one that systemd has opened for it."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final, NamedTuple

# systemd's sd_listen_fds(3)
_FIRST_PASSED: Final = 3
_BACKLOG: Final = 128
# An agent that ends holds the lock until it is gone.
_LOCK_SECONDS: Final = 5.0


class Listener(NamedTuple):
    """A listening AF_UNIX stream socket, whose file at `path` has this `inode`, and is ours to remove if it
    is our `own`.
    """

    socket: socket.socket
    path: str
    inode: int
    own: bool

    def is_found(self) -> bool:
        """Whether callers still come to this socket: its folder may have been removed, or another agent, or
        systemd, may have put its own in the place of ours.
        """
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False

    def hide(self) -> None:
        """Whoever comes now finds nobody rather than no answer."""
        if self.own and self.is_found():
            os.unlink(self.path)


class Unusable(Exception):
    """There is no socket to listen on; the text says why."""


def lock(rundir: str) -> int:
    """A descriptor that makes us the one agent of this RUNDIR until it is closed. Raises Unusable."""
    path = os.path.join(rundir, "agent.lock")
    deadline = time.monotonic() + _LOCK_SECONDS
    try:
        os.makedirs(rundir, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise Unusable(f"{path}: {e.strerror}") from e
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if not isinstance(e, BlockingIOError) or time.monotonic() >= deadline:
                os.close(fd)
                raise Unusable(f"{path}: another agent serves {rundir}") from e
            time.sleep(0.05)
        else:
            return fd


def activated(environ: MutableMapping[str, str]) -> Listener | None:
    """The socket that a socket unit has passed to this process, if one has and it can still be found.

    Raises Unusable.
    """
    number, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not number:
        return None
    if number != "1":
        raise Unusable(f"LISTEN_FDS is {number}: the socket unit should have one ListenStream")
    passed = socket.socket(fileno=_FIRST_PASSED)
    passed.set_inheritable(False)
    kind = (passed.family, passed.type, passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if kind != (socket.AF_UNIX, socket.SOCK_STREAM, 1):
        raise Unusable("the socket unit's socket is no listening AF_UNIX stream")
    passed.setblocking(False)
    path: str = passed.getsockname()
    if not _somebody_listens(path):
        # systemd does not notice that somebody has removed it.
        passed.close()
        return None
    return Listener(passed, path, os.stat(path).st_ino, own=False)


def _somebody_listens(path: str) -> bool:
    """For the holder of the lock: there is no other agent that it could be."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
        try:
            caller.connect(path)
        except BlockingIOError:
            pass  # so many have called already that the queue is full
        except OSError:
            return False
    return True


def bound(path: str) -> Listener:
    """A socket of our own at `path`, mode 0600. What a dead agent has left there is replaced.

    For the holder of the lock. Raises Unusable.
    """
    fresh = f"{path}.new"
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.lexists(fresh):
            os.unlink(fresh)
        # Under another name until nobody else can open it and everybody who may is heard.
        made.bind(fresh)
        os.chmod(fresh, 0o600)
        made.listen(_BACKLOG)
        inode = os.stat(fresh).st_ino
        os.rename(fresh, path)
    except OSError as e:
        made.close()
        raise Unusable(f"{path}: {e.strerror or e}") from e
    made.setblocking(False)
    return Listener(made, path, inode, own=True)
