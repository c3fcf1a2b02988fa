"""The caller of a forwarded call, by the descriptors that came with it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Final

from cnvnet.caller import Program
from cnvnet.kernel.paths import open_in

# A program that has not ended by then is stuck. The launcher, which waits for 120 seconds, is still there to
# be told so.
_SECONDS: Final = 100.0
_Stat = Callable[[str], os.stat_result]
_NSENTER: Final = "/usr/bin/nsenter"


class Home:
    """What the agent itself sees: its network and mount namespace and its `/`."""

    def __init__(self) -> None:
        self.network = os.stat("/proc/self/ns/net")
        self.mounts = os.stat("/proc/self/ns/mnt")
        self.root = os.stat("/")
        self.nsenter = shutil.which("nsenter") or _NSENTER


class Remote:
    """A Caller (cnvnet.caller). `descriptors` stay their owner's, and open as long as this is used.

    `before_program` is called when a program is about to be started, and so waited for.
    """

    before_program: Callable[[], None] | None = None

    def __init__(self, home: Home, netns_path: str, descriptors: Mapping[str, int]) -> None:
        self._home = home
        self._netns_path = netns_path
        self._netns = descriptors.get("netns")
        self._mounts = descriptors["mnt"]
        self._root = descriptors["root"]
        self._own = os.fstat(descriptors["self"])
        self.same_view = os.path.samestat(os.fstat(self._mounts), home.mounts) and os.path.samestat(
            os.fstat(self._root), home.root
        )

    def is_neighbour(self) -> bool:
        """Whether the caller is in the agent's network namespace."""
        return os.path.samestat(self._own, self._home.network)

    def open(self, path: str, flags: int) -> int:
        if path != self._netns_path:
            return self._open(path, flags)
        if self._netns is not None:
            return os.dup(self._netns)
        # Whatever the launcher could not send is no namespace, and we may say what it is instead.
        fd = self._open(path, flags)
        if os.fstat(fd).st_dev == self._own.st_dev:
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "no such namespace when the call was made", path)
        return fd

    def stat(self, path: str) -> os.stat_result:
        if path == self._netns_path and self._netns is not None:
            return os.fstat(self._netns)
        if path != self._netns_path and self.same_view:
            return os.stat(path)
        fd = self.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def program(self, path: str) -> Program:
        if self.before_program is not None:
            self.before_program()
        if self.same_view:
            return Program(path, [path], _SECONDS)
        # By their names here: the program would inherit what nsenter does.
        here = f"/proc/{os.getpid()}/fd"
        there = (f"--mount={here}/{self._mounts}", f"--root={here}/{self._root}")
        nsenter = self._home.nsenter
        return Program(nsenter, [nsenter, *there, "--", path], _SECONDS)

    def shares(self, folder: str) -> bool:
        """Whether a folder is the same for caller and agent, or would be once it is made."""
        while not self.same_view:
            theirs, ours = _identity(self.stat, folder), _identity(os.stat, folder)
            if theirs or ours or folder in ("/", ""):
                return theirs == ours
            folder = os.path.dirname(folder)
        return True

    def finds(self, folder: str, at: str) -> bool:
        """Whether what the caller calls `folder` is our folder `at`."""
        if self.same_view and folder == at:
            return True
        theirs = _identity(self.stat, folder)
        return theirs is not None and theirs == _identity(os.stat, at)

    def _open(self, path: str, flags: int) -> int:
        if self.same_view:
            return os.open(path, flags)
        return open_in(self._root, path, flags)


def _identity(stat: _Stat, path: str) -> tuple[int, int] | None:
    try:
        found = stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
