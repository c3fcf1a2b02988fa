"""The thread that reconciles the served guests with the records, their namespaces and the packet loop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final

from cnvnet.agent.guests.packet_loop_process import PacketLoopProcess
from cnvnet.agent.guests.pod_dns import PodDns
from cnvnet.agent.guests.serving import ServedGuests
from cnvnet.agent.own_files import OwnFiles
from cnvnet.agent.supervisor import Supervisor
from cnvnet.attachment import files
from cnvnet.attachment.record import FileVersion
from cnvnet.kernel.netns import LostNamespace
from cnvnet.resident import log

# Between two looks at records and namespaces: a guest whose DEL never came is served for so long at most.
_SECONDS: Final = 1.0
# A thread whose last round ended so many seconds ago hangs.
_HANGS: Final = 30.0
# Seconds between two checks of the agent's own files, and two readings of the packet loop's counters: a loop
# that dies takes with it what it has counted since the last one.
_COUNT: Final = 10.0
# Nanoseconds, far more than a tick of the kernel's clock (at most 10 ms). A change within the tick of the
# last scan does not show in the folder's time: a folder that has changed so recently is scanned once more.
_SETTLED: Final = 2_000_000_000


class RecordChanges:
    """Which files in the folder of the records have changed since the last call."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._modified = 0
        self._scanned = 0
        self._versions: dict[str, FileVersion] = {}

    def changed(self) -> list[str]:
        """The names of files that have come, changed or gone; all of them at first."""
        try:
            modified = os.stat(self._folder).st_mtime_ns
        except OSError:
            modified = 0  # no folder: no records
        if modified == self._modified and modified + _SETTLED < self._scanned:
            return []
        self._modified, self._scanned = modified, time.time_ns()
        before, self._versions = self._versions, self._scan()
        names = {**before, **self._versions}
        return [name for name in names if before.get(name) != self._versions.get(name)]

    def _scan(self) -> dict[str, FileVersion]:
        try:
            return files.versions(self._folder)
        except OSError:
            return {}  # it cannot be listed now: the next look shows


class GuestReconciler:
    """Reconciles once a second, and as soon as it is notified."""

    def __init__(
        self,
        rundir: str,
        guests: ServedGuests,
        loop: PacketLoopProcess,
        dns: PodDns,
        supervisor: Supervisor,
        own_files: OwnFiles,
    ) -> None:
        self._folder = files.folder(rundir)
        self._records = RecordChanges(self._folder)
        self._guests = guests
        self._loop = loop
        self._dns = dns
        self._supervisor = supervisor
        self._own_files = own_files
        self._wake = threading.Event()
        self._loaded = threading.Event()
        self._stopping = False
        self._round = self._counted = time.monotonic()
        self._thread = self._new_thread()

    def start(self) -> None:
        """On return, serving was tried for every guest that the records have."""
        self._thread.start()
        self._loaded.wait()

    def stop(self) -> None:
        """End the thread, and wait for its round."""
        self._stopping = True
        self._wake.set()
        self._thread.join(_HANGS)

    def notify(self) -> None:
        """Lets the next round begin at once: the packet loop or a resolv.conf has changed."""
        self._wake.set()

    def is_alive(self) -> bool:
        """Whether the thread runs and its last round began not too long ago."""
        return self._thread.is_alive() and time.monotonic() - self._round < _HANGS

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="guests", daemon=True)

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
            # The new thread reads all records again, as this one may have missed some.
            self._records = RecordChanges(self._folder)
            self._thread = self._new_thread()
            self._supervisor.respawn(e, self._thread)

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:  # noqa: BLE001 -- one odd record must not keep the agent from serving all others
            log.crash("internal error of the guests' thread")

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
        self._guests.reconcile(time.monotonic())
        if time.monotonic() - self._counted > _COUNT:
            self._counted = time.monotonic()
            self._loop.totals()
            self._own_files.check()
        known = self._dns.take_found()
        if known:
            self._guests.have_dns(known)
