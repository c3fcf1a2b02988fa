"""The socket that the agent listens on: its own, or the one that systemd has opened for it."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final, NamedTuple

from cnvnet.kernel import flock, private_folder

# systemd's sd_listen_fds(3)
_FIRST_PASSED: Final = 3
_BACKLOG: Final = 128


class Listener(NamedTuple):
    """A listening AF_UNIX stream socket."""

    socket: socket.socket
    # Its file, and the file's inode.
    path: str
    inode: int
    # Whether the agent has made it, and removes it.
    own: bool

    def is_found(self) -> bool:
        """Whether callers still come to this socket.

        Its folder may have been removed, or another agent, or systemd, may have put its own in its place.
        """
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False

    def hide(self) -> None:
        """Unlinks the socket: new callers find no agent, rather than one that does not answer."""
        if self.own and self.is_found():
            os.unlink(self.path)


class Unusable(Exception):
    """There is no socket to listen on; the text says why."""


class Locked(Exception):
    """Another agent holds the lock of this RUNDIR."""


def lock(rundir: str) -> int:
    """A descriptor that makes this process the one agent of RUNDIR until it is closed.

    Raises Locked and Unusable.
    """
    path = os.path.join(rundir, "agent.lock")
    try:
        private_folder.ensure(rundir)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as e:
        raise Unusable(f"{path}: {e.strerror}") from e
    try:
        flock.try_acquire(fd)
    except OSError as e:
        os.close(fd)
        if isinstance(e, BlockingIOError):
            raise Locked(f"{path}: another agent serves {rundir}") from e
        raise Unusable(f"{path}: {e.strerror}") from e
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
    if not _is_listened_at(path):
        # systemd does not notice that the socket's file was removed.
        passed.close()
        return None
    return Listener(passed, path, os.stat(path).st_ino, own=False)


def _is_listened_at(path: str) -> bool:
    """Whether connecting succeeds. For the holder of the lock: then it is no other agent that listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
        try:
            caller.connect(path)
        except BlockingIOError:
            pass  # its queue is full
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
        # Under another name until its mode is 0600 and it accepts connections.
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
