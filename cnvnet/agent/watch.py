"""The thread that sees to it that what is served is what should be: records, namespaces, the packet loop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from cnvnet import attachments
from cnvnet.agent import log
from cnvnet.agent.foreman import Foreman
from cnvnet.agent.guests import Guests
from cnvnet.agent.loop_process import PacketLoop
from cnvnet.agent.pod_dns import PodDns
from cnvnet.kernel.netns import LostNamespace

_SECONDS: Final = 1.0
# One that has not come round for so long hangs.
_HANGS: Final = 30.0
# Between looks at the packet loop's counters: what it has counted since the last one goes with it.
_COUNT: Final = 10.0
# Changes within the clock tick of a look would not show in the folder's time: it is looked at once more.
_SETTLED: Final = 2_000_000_000  # ns


class Stamp(NamedTuple):
    """A file's identity: a record is never changed but replaced."""

    inode: int
    modified: int
    size: int


class Records:
    """The folder of the records, and which of its files have changed since the last look."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._modified = 0
        self._looked = 0
        self._stamps: dict[str, Stamp] = {}

    def changed(self) -> list[str]:
        """The names of files that have come, changed or gone; all of them at first."""
        try:
            modified = os.stat(self._folder).st_mtime_ns
        except OSError:
            modified = 0  # no folder: no records
        if modified == self._modified and modified + _SETTLED < self._looked:
            return []
        self._modified, self._looked = modified, time.time_ns()
        before, self._stamps = self._stamps, _stamps(self._folder)
        names = {**before, **self._stamps}
        return [name for name in names if before.get(name) != self._stamps.get(name)]


class Watch:
    """Once a second, or as soon as it is woken."""

    def __init__(self, rundir: str, guests: Guests, loop: PacketLoop, dns: PodDns, foreman: Foreman) -> None:
        self._folder = attachments.folder(rundir)
        self._records = Records(self._folder)
        self._guests = guests
        self._loop = loop
        self._dns = dns
        self._foreman = foreman
        self._wake = threading.Event()
        self._loaded = threading.Event()
        self._stopping = False
        self._round = self._counted = time.monotonic()
        self._thread = self._other()

    def start(self) -> None:
        """On return every guest that there is has been tried."""
        self._thread.start()
        self._loaded.wait()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(_HANGS)

    def wake(self) -> None:
        """Somebody has something for the next round."""
        self._wake.set()

    def is_alive(self) -> bool:
        return self._thread.is_alive() and time.monotonic() - self._round < _HANGS

    def _other(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="watch", daemon=True)

    def _run(self) -> None:
        try:
            if not self._loaded.is_set():
                self._attempt(self._load)
                self._loaded.set()
            while not self._stopping:
                self._wake.wait(_SECONDS)
                self._wake.clear()
                self._attempt(self._go_round)
                self._round = time.monotonic()
        except LostNamespace as e:
            # What this one has not got round to is to be looked at all the same.
            self._records = Records(self._folder)
            self._thread = self._other()
            self._foreman.replace(e, self._thread)

    def _attempt(self, deed: Callable[[], None]) -> None:
        try:
            deed()
        except Exception:  # noqa: BLE001 -- one odd record must not keep all others from being looked after
            log.crash("internal error of the watch")

    def _load(self) -> None:
        self._loop.keep_alive()
        self._guests.load(self._records.changed())

    def _go_round(self) -> None:
        if self._stopping:
            return
        if self._loop.keep_alive():
            self._guests.serve_all()
        self._guests.lost(self._loop.take_lost())
        for name in self._records.changed():
            self._guests.refresh(name)
        self._guests.look_after(time.monotonic())
        if time.monotonic() - self._counted > _COUNT:
            self._counted = time.monotonic()
            self._loop.totals()
        found = self._dns.take_found()
        if found:
            self._guests.have_dns(found)


def _stamps(folder: str) -> dict[str, Stamp]:
    found: dict[str, Stamp] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    seen = entry.stat(follow_symlinks=False)
                    found[entry.name] = Stamp(seen.st_ino, seen.st_mtime_ns, seen.st_size)
    except OSError:
        pass  # no folder yet, or a file that went just now: the next look shows
    return found
