"""Which guests are served: what the records say, made so.

A record that says "added", has a guest and is of this boot is a guest to be served. Its tap is opened in its
namespace, and the socket is handed to the packet loop, which is the only one that keeps it: an open socket
keeps a namespace alive.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cnvnet import attachments
from cnvnet.agent import log
from cnvnet.agent.loop_process import LoopError, Lost, PacketLoop
from cnvnet.agent.pod_dns import PodDns
from cnvnet.attachments import ADDED, Record
from cnvnet.cni.errors import INVALID_CONFIG, NOT_AVAILABLE, CNIError
from cnvnet.guest import services, settings_json
from cnvnet.guest.settings import Settings
from cnvnet.guest.tap_socket import open_tap
from cnvnet.kernel import netns
from cnvnet.kernel.boot import boot_id

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,200}\.json")
# Between attempts to serve a guest that should be served and cannot be. Seconds.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
# How long a request waits for a packet loop that is being started.
_LOOP_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 3.0


class NotServed(CNIError):
    """A guest is not served; the text says why. Code 50."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(NOT_AVAILABLE, f"{name}: {reason}")
        self.reason = reason


@dataclass(slots=True)
class _Guest:
    """One that should be served. `problem` is why it is not; `without_dns`: its pod's is not known yet."""

    name: str
    record: Record
    served: bool = False
    problem: str = ""
    pause: float = _FIRST_PAUSE
    again: float = 0.0
    without_dns: bool = False


class Guests:
    """All guests of one RUNDIR. Several threads call it; it does one thing at a time."""

    def __init__(self, rundir: str, loop: PacketLoop, dns: PodDns) -> None:
        self._rundir = rundir
        self._loop = loop
        self._dns = dns
        self._guests: dict[str, _Guest] = {}
        self._lock = threading.RLock()

    def serve(self, name: str) -> None:
        """A plugin's ADD: the guest is served on return. Raises CNIError."""
        _check_name(name)
        deadline = time.monotonic() + _LOOP_SECONDS
        while True:
            self._loop.wait(deadline - time.monotonic())
            asked = self._loop.pid
            with self._lock:
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
        self._loop.wait(_LOOP_SECONDS)
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
            self._drop(name, "its attachment is being deleted")

    def load(self, names: Iterable[str]) -> None:
        """All records at once, when the agent starts: a guest that renews meanwhile shall get the same
        as before, so what pods have in their resolv.conf is looked for first.
        """
        with self._lock:
            for name in names:
                try:
                    guest = self._adopt(name)
                    _ensure_there(guest.record)
                    self._settings(guest)
                except Exception as e:  # noqa: BLE001 -- a record may hold anything: see _serve
                    log.debug("not served", record=name, reason=_reason(e))
        self._dns.await_look(_LOOK_SECONDS)
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
        """The packet loop had to let go of these."""
        with self._lock:
            for name, reason in losses:
                guest = self._guests.get(name)
                if guest is not None and guest.served:
                    guest.served = False
                    self._trouble(guest, reason)

    def look_after(self, now: float) -> None:
        """Lets go of namespaces whose paths have gone, and tries again what has not worked."""
        with self._lock:
            for guest in self._guests.values():
                if guest.served and not _is_there(guest.record):
                    self._loop.drop(guest.name)
                    self._dns.forget(guest.record.netns_inode)
                    guest.served = False
                    self._trouble(guest, _gone(guest.record))
                elif not guest.served and now >= guest.again:
                    self._serve(guest)

    def have_dns(self, inodes: Iterable[int]) -> None:
        """The resolv.conf of these pods is known now."""
        found = set(inodes)
        with self._lock:
            for guest in self._guests.values():
                if guest.without_dns and guest.record.netns_inode in found:
                    self._serve(guest)

    def served(self) -> int:
        """How many guests are served."""
        return sum(guest.served for guest in list(self._guests.values()))

    def waiting(self) -> int:
        """How many should be and are not."""
        return len(self._guests) - self.served()

    def _adopt(self, name: str) -> _Guest:
        """The guest of the record as it is now; the same object as long as the record is the same.

        CNIError: nobody is to be served by it.
        """
        record = attachments.read(self._rundir, name)
        reason = _reason_against(record)
        if record is None or reason:
            raise NotServed(name, reason)
        guest = self._guests.get(name)
        if guest is None:
            self._disown(record.netns_inode)
        if guest is None or guest.record != record:
            guest = self._guests[name] = _Guest(name, record, served=guest is not None and guest.served)
            guest.problem = "it has not been tried yet"
            if guest.served:
                self._loop.drop(name)  # what it was told is not true any more
                guest.served = False
        return guest

    def _disown(self, inode: int) -> None:
        """A namespace gets the number of one that has just gone, whose pod is another."""
        if any(
            other.record.netns_inode == inode and not _is_there(other.record)
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
        except Exception as e:  # noqa: BLE001 -- a record may hold anything, and is nobody else's trouble
            if guest.served:
                self._loop.drop(guest.name)
                guest.served = False
            self._trouble(guest, _reason(e))
            return
        if not guest.served:
            log.info("guest served", record=guest.name, netns=guest.record.netns_path, **_who(guest.record))
        guest.served, guest.problem, guest.pause = True, "", _FIRST_PAUSE

    def _settings(self, guest: _Guest) -> Settings:
        """What the guest is to be told: where nobody says anything about DNS, its pod's word counts."""
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
        if guest.served:
            self._loop.drop(name)
            log.info("guest not served any more", record=name, reason=reason)
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
            return open_tap(ifname, prepared)


def _reason_against(record: Record | None) -> str:
    """Why nobody is to be served by this record, "" if somebody is."""
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
    return {"container": record.key.container_id, "ifname": record.key.ifname}


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise CNIError(INVALID_CONFIG, f"record {name[:80]!r}: not the name of a record's file")


def _ensure_there(record: Record) -> None:
    if not os.path.exists(record.netns_path):
        # What has gone and what is out of sight look the same.
        remedy = "an agent in a container needs the node's /proc and /run/netns"
        raise CNIError(NOT_AVAILABLE, f"the agent sees no namespace at {record.netns_path} ({remedy})")
    if not _is_there(record):
        raise CNIError(NOT_AVAILABLE, _gone(record))


def _is_there(record: Record) -> bool:
    """Whether the namespace at the record's path is still the same."""
    try:
        return os.stat(record.netns_path).st_ino == record.netns_inode
    except (OSError, ValueError):
        return False


def _gone(record: Record) -> str:
    return f"the namespace that was at {record.netns_path} has gone"
