"""The caller of a forwarded call, by the descriptors that came with it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Final

from cnvnet.call_context import Exec
from cnvnet.kernel.paths import open_in

# Seconds. A program that has not ended by then is stuck. The launcher, which waits for 120 seconds, is still
# there to report that.
_SECONDS: Final = 100.0
_Stat = Callable[[str], os.stat_result]
_NSENTER: Final = "/usr/bin/nsenter"


class AgentView:
    """What the agent itself sees: its network and mount namespace and its `/`."""

    def __init__(self) -> None:
        self.network = os.stat("/proc/self/ns/net")
        self.mounts = os.stat("/proc/self/ns/mnt")
        self.root = os.stat("/")
        self.nsenter = shutil.which("nsenter") or _NSENTER


class RemoteCaller:
    """A Caller (cnvnet.call_context). `descriptors` stay their owner's, and open as long as this is used.

    `on_exec` is called when a program is about to be started, and so waited for.
    """

    on_exec: Callable[[], None] | None = None

    def __init__(self, agent_view: AgentView, netns_path: str, descriptors: Mapping[str, int]) -> None:
        self._agent_view = agent_view
        self._netns_path = netns_path
        self._netns = descriptors.get("netns")
        self._mounts = descriptors["mnt"]
        self._root = descriptors["root"]
        self._own = os.fstat(descriptors["self"])
        self.same_view = os.path.samestat(os.fstat(self._mounts), agent_view.mounts) and os.path.samestat(
            os.fstat(self._root), agent_view.root
        )

    def shares_netns(self) -> bool:
        """Whether the caller is in the agent's network namespace."""
        return os.path.samestat(self._own, self._agent_view.network)

    def open(self, path: str, flags: int) -> int:
        """Open a path as the caller sees it; its namespace is the descriptor that the launcher has sent.

        OSError.
        """
        if path != self._netns_path:
            return self._open(path, flags)
        if self._netns is not None:
            return os.dup(self._netns)
        # What the launcher could not send is no namespace, and the error may say what it is instead.
        fd = self._open(path, flags)
        if os.fstat(fd).st_dev == self._own.st_dev:
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "no such namespace when the call was made", path)
        return fd

    def stat(self, path: str) -> os.stat_result:
        """What the caller would find at a path. OSError."""
        if path == self._netns_path and self._netns is not None:
            return os.fstat(self._netns)
        if path != self._netns_path and self.same_view:
            return os.stat(path)
        fd = self.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def program(self, path: str) -> Exec:
        """How the agent starts a program of the caller's: with nsenter, if it sees other mounts."""
        if self.on_exec is not None:
            self.on_exec()
        if self.same_view:
            return Exec(path, [path], _SECONDS)
        # By their names here: the program would inherit what nsenter does.
        own = f"/proc/{os.getpid()}/fd"
        options = (f"--mount={own}/{self._mounts}", f"--root={own}/{self._root}")
        nsenter = self._agent_view.nsenter
        return Exec(nsenter, [nsenter, *options, "--", path], _SECONDS)

    def shares(self, folder: str) -> bool:
        """Whether a folder is the same for caller and agent, or would be once it is made."""
        folder = os.path.abspath(folder)
        while not self.same_view:
            theirs, ours = _identity(self.stat, folder), _identity(os.stat, folder)
            if theirs or ours or folder in ("/", ""):
                return theirs == ours
            folder = os.path.dirname(folder)
        return True

    def same_rundir(self, folder: str, at: str) -> bool:
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
        status = stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
