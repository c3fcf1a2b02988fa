"""Which guests are served: what the records say, made so.

A record that says "added", has a guest and is of this boot is a guest to be served. Its tap is opened in its
namespace, and the socket is handed to the packet loop, which is the only one that keeps it: an open socket
keeps a namespace alive.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cnvnet.agent.guests.events import GuestEvents
from cnvnet.agent.guests.packet_loop_process import LoopError, Lost, PacketLoopProcess
from cnvnet.agent.guests.pod_dns import PodDns
from cnvnet.attachment import files, sandbox
from cnvnet.attachment.record import ADDED, Record, file_name
from cnvnet.cni.errors import INVALID_CONFIG, NOT_AVAILABLE, CNIError
from cnvnet.guest import services, settings_json
from cnvnet.guest.channel import TAP_GONE
from cnvnet.guest.settings import Settings
from cnvnet.guest.tap_socket import open_tap
from cnvnet.kernel import netns
from cnvnet.kernel.boot import boot_id
from cnvnet.resident import log

# The name of a record's file comes with a request and becomes part of a path: no separator, no other folder.
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,200}\.json")
# Between attempts to serve a guest that should be served and cannot be. Seconds.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
# How long a request waits, in seconds, for a packet loop that is being started, and the agent's start for
# the first search of /proc for resolv.confs.
LOOP_SECONDS: Final = 5.0
_DNS_SECONDS: Final = 3.0
_DELETED: Final = "its attachment is being deleted"


class NotServed(CNIError):
    """A guest is not served; the text says why. Code 50."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(NOT_AVAILABLE, f"{name}: {reason}")
        self.reason = reason


@dataclass(slots=True)
class _Guest:
    """One that should be served."""

    # The record's file.
    name: str
    record: Record
    served: bool = False
    # Why it is not served.
    problem: str = ""
    # Seconds until serving is tried again after the next failure, and when that is, by time.monotonic().
    pause: float = _FIRST_PAUSE
    again: float = 0.0
    # Its settings have no DNS, as the pod's resolv.conf is not known yet.
    without_dns: bool = False


class ServedGuests:
    """All guests of one RUNDIR. Several threads call it; it does one thing at a time."""

    def __init__(self, rundir: str, loop: PacketLoopProcess, dns: PodDns) -> None:
        self._rundir = rundir
        self._loop = loop
        self._dns = dns
        self._guests: dict[str, _Guest] = {}
        self.events = GuestEvents(self._record_of, _who)
        # Records whose DEL is at work: a scan of the folder meanwhile finds them as they were.
        self._forgotten: dict[str, Record] = {}
        self._lock = threading.RLock()

    def serve(self, name: str) -> None:
        """A plugin's ADD: the guest is served on return. Raises CNIError."""
        _check_name(name)
        deadline = time.monotonic() + LOOP_SECONDS
        while True:
            self._loop.wait(deadline - time.monotonic())
            asked = self._loop.pid
            with self._lock:
                self._forgotten.pop(name, None)
                guest = self._adopt(name)
                self._serve(guest)
                if guest.served:
                    return
                problem = guest.problem
            # One that has died with the request is being replaced.
            if (self._loop.is_alive() and self._loop.pid == asked) or time.monotonic() >= deadline:
                raise NotServed(name, problem)

    def check(self, name: str) -> None:
        """Raises CNIError 50 when the guest is not served now."""
        _check_name(name)
        self._loop.wait(LOOP_SECONDS)
        with self._lock:
            guest = self._guests.get(name)
            if guest is None:
                raise NotServed(name, "the guest is not served: no such record, or it has no guest")
            if not guest.served:
                raise NotServed(name, f"the guest is not served: {guest.problem}")

    def forget(self, name: str) -> None:
        """The guest's socket is closed on return; it is not served again before its record changes."""
        _check_name(name)
        with self._lock:
            guest = self._guests.get(name)
            if guest is not None:
                self._forgotten[name] = guest.record
            self._drop(name, _DELETED)

    def load(self, names: Iterable[str]) -> None:
        """Serves by all records at once, when the agent starts.

        A guest that renews meanwhile must get the same as before, so the resolv.conf of each pod is read
        first.
        """
        with self._lock:
            for name in names:
                try:
                    guest = self._adopt(name)
                    _ensure_there(guest.record)
                    self._settings(guest)
                except Exception as e:  # noqa: BLE001 -- a record may hold anything: see _serve
                    log.debug("not served", record=name, reason=_reason(e))
        self._dns.await_look(_DNS_SECONDS)
        self.serve_all()

    def refresh(self, name: str) -> None:
        """A record has come, changed or gone."""
        with self._lock:
            before = self._guests.get(name)
            try:
                guest = self._adopt(name)
            except CNIError as e:
                self._drop(name, e.reason if isinstance(e, NotServed) else e.msg)
                return
            if not (guest is before and guest.served):
                self._serve(guest)

    def serve_all(self) -> None:
        """To a packet loop that is new."""
        with self._lock:
            for guest in self._guests.values():
                guest.served = False
            for guest in self._guests.values():
                self._serve(guest)

    def lost(self, losses: Iterable[Lost]) -> None:
        """The packet loop has stopped serving these."""
        with self._lock:
            for name, reason in losses:
                guest = self._guests.get(name)
                if guest is not None and guest.served:
                    guest.served = False
                    self._trouble(guest, _no_tap(guest.record) if reason == TAP_GONE else reason)

    def reconcile(self, now: float) -> None:
        """Stops serving in namespaces whose paths have gone, and tries again what has not worked."""
        with self._lock:
            for guest in self._guests.values():
                if guest.served and not sandbox.is_there(guest.record):
                    self._loop.drop(guest.name)
                    self._dns.forget(guest.record.netns_inode)
                    guest.served = False
                    self._trouble(guest, _gone(guest.record))
                elif not guest.served and now >= guest.again:
                    self._serve(guest)

    def have_dns(self, inodes: Iterable[int]) -> None:
        """The resolv.conf of these pods is known now."""
        known = set(inodes)
        with self._lock:
            for guest in self._guests.values():
                if guest.without_dns and guest.record.netns_inode in known:
                    self._serve(guest)

    def served(self) -> int:
        """How many guests are served."""
        return sum(guest.served for guest in list(self._guests.values()))

    def waiting(self) -> int:
        """How many should be and are not."""
        return len(self._guests) - self.served()

    def _record_of(self, name: str) -> Record | None:
        # Without the lock: its holder may be waiting for the thread that asks.
        guest = self._guests.get(name)
        return guest.record if guest is not None else None

    def last_events(self, name: str) -> list[dict[str, object]]:
        """What the guest of this record has asked for lately. CNIError 50: there is no such guest."""
        _check_name(name)
        if name not in self._guests:
            raise NotServed(name, "no guest of this record is to be served")
        return self.events.last(name)

    def counts(self) -> Counter[tuple[str, str]]:
        """How many are "served" or "waiting" in each network."""
        guests = list(self._guests.values())
        return Counter(("served" if each.served else "waiting", each.record.key.network) for each in guests)

    def problems(self) -> list[str]:
        """Each guest that should be served and is not, with the reason."""
        return [
            f"guest of {_described(guest.record)} is not served: {guest.problem}"
            for guest in list(self._guests.values())
            if not guest.served
        ]

    def _adopt(self, name: str) -> _Guest:
        """The guest of the record as it is now; the same object as long as the record is the same.

        CNIError: no guest is to be served by it.
        """
        record = files.read(self._rundir, name)
        reason = _reason_against(record)
        if self._forgotten.get(name) == record:
            reason = reason or _DELETED
        else:
            self._forgotten.pop(name, None)
        if record is None or reason:
            raise NotServed(name, reason)
        guest = self._guests.get(name)
        if guest is None:
            self._disown(record.netns_inode)
        if guest is None or guest.record != record:
            guest = self._guests[name] = _Guest(name, record, served=guest is not None and guest.served)
            guest.problem = "it has not been tried yet"
            if guest.served:
                self._loop.drop(name)  # its settings have changed
                guest.served = False
        return guest

    def _disown(self, inode: int) -> None:
        """A namespace gets the number of one that has just gone, whose pod is another."""
        if any(
            other.record.netns_inode == inode and not sandbox.is_there(other.record)
            for other in self._guests.values()
        ):
            self._dns.forget(inode)

    def _serve(self, guest: _Guest) -> None:
        """Serves it anew with what is known now, or remembers why that cannot be."""
        try:
            _ensure_there(guest.record)
            settings = self._settings(guest)
            with _open(guest.record, settings) as tap:
                self._loop.serve(guest.name, settings_json.encode(settings), tap)
        except Exception as e:  # noqa: BLE001 -- a record may hold anything, and must not keep others from being served
            if guest.served:
                self._loop.drop(guest.name)
                guest.served = False
            self._trouble(guest, _reason(e))
            return
        if not guest.served:
            log.info("guest served", record=guest.name, netns=guest.record.netns_path, **_who(guest.record))
            self.events.served(guest.name)
        guest.served, guest.problem, guest.pause = True, "", _FIRST_PAUSE

    def _settings(self, guest: _Guest) -> Settings:
        """The guest's settings: DNS is the pod's where the record has none."""
        settings = settings_json.parse((guest.record.guest or {}).get("settings") or {})
        has_addresses = settings.v4 is not None or settings.v6 is not None
        if (settings.nameservers and settings.search) or not has_addresses:
            return settings
        conf = self._dns.get(guest.record.netns_inode)
        guest.without_dns = conf is None
        if conf is None:
            return settings
        return settings._replace(
            nameservers=settings.nameservers or conf.nameservers, search=settings.search or conf.search
        )

    def _drop(self, name: str, reason: str) -> None:
        guest = self._guests.pop(name, None)
        if guest is None:
            return
        self.events.forget(name)
        if guest.served:
            self._loop.drop(name)
            log.info("guest no longer served", record=name, reason=reason, **_who(guest.record))
        if all(other.record.netns_inode != guest.record.netns_inode for other in self._guests.values()):
            self._dns.forget(guest.record.netns_inode)

    def _trouble(self, guest: _Guest, problem: str) -> None:
        if problem != guest.problem:
            log.warning("guest cannot be served", record=guest.name, reason=problem, **_who(guest.record))
        guest.problem = problem
        guest.again = time.monotonic() + guest.pause
        guest.pause = min(guest.pause * 2, _LONGEST_PAUSE)


def _open(record: Record, settings: Settings) -> socket.socket:
    """The packet socket on the guest's tap. OSError, CNIError."""
    ifname = (record.guest or {}).get("ifname")
    if not isinstance(ifname, str) or not 0 < len(os.fsencode(ifname)) < 16:
        raise CNIError(INVALID_CONFIG, f"guest.ifname {ifname!r}: not the name of a link")
    prepared = services.prepare(settings)
    with netns.opened(record.netns_path) as inside:
        if inside.inode != record.netns_inode:
            raise CNIError(NOT_AVAILABLE, _gone(record))
        with netns.entered(inside):
            try:
                return open_tap(ifname, prepared)
            except OSError as e:
                if e.errno != errno.ENODEV:
                    raise
                raise CNIError(NOT_AVAILABLE, _no_tap(record)) from e


def _reason_against(record: Record | None) -> str:
    """Why no guest is to be served by this record, "" if one is."""
    if record is None:
        return "there is no such record"
    if record.state != ADDED:
        return f'its state is "{record.state}"'
    if record.guest is None:
        return "it has no guest to serve"
    if record.boot_id != boot_id():
        return "it is from before the node was booted"
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, CNIError):
        return error.msg
    known = isinstance(error, (OSError, LoopError))
    return str(error) if known else f"{type(error).__name__}: {error}"


def _who(record: Record) -> dict[str, str]:
    pod, vm = (str(each) if each is not None else "" for each in (record.pod, record.vm))
    known = {"network": record.key.network, "pod": pod, "vm": vm}
    known |= {"container": record.key.container_id, "ifname": record.key.ifname}
    return {name: value for name, value in known.items() if value}


def _described(record: Record) -> str:
    whose = f"pod {record.pod}" if record.pod is not None else f"container {record.key.container_id}"
    vm = f"VM {record.vm}, " if record.vm is not None else ""
    return f"{vm}{whose}, {record.key.ifname} in network {record.key.network} ({file_name(record.key)})"


def _no_tap(record: Record) -> str:
    return f"there is no tap {(record.guest or {}).get('ifname')} in the pod: it was deleted or renamed"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise CNIError(INVALID_CONFIG, f"record {name[:80]!r}: not the name of a record's file")


def _ensure_there(record: Record) -> None:
    if not os.path.exists(record.netns_path):
        # What has gone and what is out of sight look the same.
        remedy = "an agent in a container needs the node's /proc and /run/netns"
        raise CNIError(NOT_AVAILABLE, f"the agent sees no namespace at {record.netns_path} ({remedy})")
    if not sandbox.is_there(record):
        raise CNIError(NOT_AVAILABLE, _gone(record))


def _gone(record: Record) -> str:
    return f"the namespace that was at {record.netns_path} has gone"
