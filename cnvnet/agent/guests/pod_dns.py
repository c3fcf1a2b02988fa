"""The resolv.conf of a pod, found by its network namespace: no call of a runtime's says where it is.

At ADD a sandbox has no process. Later it has some, and each of them has the pod's resolv.conf, so they are
looked for until there is one. The tenant owns them: nothing that it can put there may harm the agent.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Final

from cnvnet.guest import resolvconf
from cnvnet.guest.resolvconf import ResolvConf
from cnvnet.kernel import regular_file
from cnvnet.resident import log

# Seconds between two searches of /proc.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0


class PodDns:
    """What is known, and a thread that looks for what is not. `on_found` is called in it."""

    def __init__(self, on_found: Callable[[], None]) -> None:
        self._on_found = on_found
        self._known: dict[int, ResolvConf] = {}
        self._wanted: set[int] = set()
        # Namespaces for which /proc was not searched yet.
        self._new: set[int] = set()
        self._fresh: list[int] = []
        self._pause = _FIRST_PAUSE
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="pod-dns", daemon=True)

    def start(self) -> None:
        """Start the thread that finds resolv.conf files."""
        self._thread.start()

    def get(self, inode: int) -> ResolvConf | None:
        """That of the pod with this network namespace; None: it is being looked for from now on."""
        with self._change:
            known = self._known.get(inode)
            if known is None and inode not in self._wanted:
                self._wanted.add(inode)
                self._new.add(inode)
                self._pause = _FIRST_PAUSE
                self._change.notify_all()
            return known

    def await_look(self, seconds: float) -> None:
        """Returns when everything that is wanted has been looked for once."""
        with self._change:
            self._change.wait_for(lambda: not self._new, seconds)

    def forget(self, inode: int) -> None:
        """The namespace has gone: its inode may be another's soon."""
        with self._change:
            self._known.pop(inode, None)
            self._wanted.discard(inode)
            self._new.discard(inode)

    def take_found(self) -> list[int]:
        """The namespaces whose pods have become known since the last call."""
        with self._change:
            inodes, self._fresh = self._fresh, []
        return inodes

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: bool(self._wanted))
                wanted = frozenset(self._wanted)
            if self._take(wanted, look(wanted)):
                self._on_found()
            with self._change:
                # New namespaces are searched for at once, the others less and less often.
                self._change.wait_for(lambda: bool(self._new), self._pause)
                self._pause = min(self._pause * 1.5, _LONGEST_PAUSE)

    def _take(self, wanted: frozenset[int], confs: dict[int, ResolvConf]) -> bool:
        """Whether any of what was found is still wanted."""
        with self._change:
            self._new -= wanted
            news = {inode: conf for inode, conf in confs.items() if inode in self._wanted}
            self._known |= news
            self._wanted -= news.keys()
            self._fresh += news
            self._change.notify_all()
        if news:
            log.debug("found a resolv.conf", namespaces=sorted(news))
        return bool(news)


def look(wanted: Collection[int]) -> dict[int, ResolvConf]:
    """The resolv.conf of each of these network namespaces (inodes) in which a process has one."""
    confs: dict[int, ResolvConf] = {}
    own = {_inode("/proc/self/ns/mnt"), _inode("/proc/1/ns/mnt")}
    for process in _processes():
        netns = _inode(f"{process}/ns/net")
        if netns not in wanted or netns in confs:
            continue
        # A tool of the node's that is in the pod's network for a moment sees the node's file.
        if _inode(f"{process}/ns/mnt") in own:
            continue
        text = read(f"{process}/root")
        if text is not None:
            confs[netns] = resolvconf.parse(text)
        if len(confs) == len(wanted):
            break
    return confs


def read(root: str) -> str | None:
    """etc/resolv.conf below a root that belongs to a tenant; None if it has no ordinary one.

    No symbolic link is followed: it would lead to a file of the node's.
    """
    try:
        top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None  # the process has gone
    try:
        etc = os.open("etc", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    except OSError:
        return None
    finally:
        os.close(top)
    try:
        place = os.open("resolv.conf", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=etc)
    except OSError:
        return None
    finally:
        os.close(etc)
    try:
        return regular_file.read(place).decode(errors="replace")
    except OSError:
        return None
    finally:
        os.close(place)


def _processes() -> Iterator[str]:
    """Their folders, the oldest first as long as process ids have not begun again: a sandbox's own."""
    numbers = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
    return (f"/proc/{number}" for number in numbers)


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0
