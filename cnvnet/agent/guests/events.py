"""What guests have asked for and got: the last events of each, and lines of the log.

The packet loop reports each frame for DHCP, DHCPv6 and router advertisements, at a bounded rate (see
cnvnet.guest.events). Called by the thread that listens to it, so nothing here waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from cnvnet.attachment.record import Record
from cnvnet.cni.document import as_object
from cnvnet.guest.events import Event
from cnvnet.resident import log

# Events that are kept of each guest.
_KEPT: Final = 20
# Seconds between two warnings about one guest.
_QUIET: Final = 600.0
# By which a client has what it needs, by the family whose address it is.
_CONFIGURED: Final = {
    ("dhcp4", "ack"): "v4",
    ("dhcp6", "reply"): "v6",
    ("dhcp6", "rapid_reply"): "v6",
}


class ReportedEvent(NamedTuple):
    """An event, and when it came, in seconds since 1970."""

    at: float
    event: Event


class GuestEvents:
    """Keeps what guests have asked for.

    `record_of` gives the record of a guest that should be served, None for any other name; `whose` is what
    the log says about it.
    """

    def __init__(
        self, record_of: Callable[[str], Record | None], whose: Callable[[Record], dict[str, str]]
    ) -> None:
        self._record_of = record_of
        self._whose = whose
        self._lock = threading.Lock()
        self._kept: dict[str, deque[ReportedEvent]] = {}
        self._since: dict[str, float] = {}
        self._configured: set[tuple[str, str]] = set()
        self._warned: dict[str, float] = {}

    def served(self, name: str) -> None:
        """The guest is served from now on."""
        with self._lock:
            self._since.setdefault(name, time.monotonic())

    def forget(self, name: str) -> None:
        """There is no such guest any more."""
        with self._lock:
            self._kept.pop(name, None)
            self._since.pop(name, None)
            self._warned.pop(name, None)
            self._configured -= {(name, family) for family in _CONFIGURED.values()}

    def observe(self, name: str, event: Event) -> None:
        """The packet loop reports a frame."""
        record = self._record_of(name)
        if record is None:
            return
        with self._lock:
            self._kept.setdefault(name, deque(maxlen=_KEPT)).append(ReportedEvent(time.time(), event))
            news = self._news(name, event)
        whose = self._whose(record)
        log.debug("guest event", **event._asdict(), **whose)
        if news == "configured":
            since = self._since.get(name, time.monotonic())
            ip = _address(record, _CONFIGURED[event.service, event.event])
            seconds = round(time.monotonic() - since, 1)
            log.info("guest configured", ip=ip, mac=event.mac, service=event.service, after=seconds, **whose)
        elif news == "warning":
            log.warning(
                "guest asks with another MAC and is not answered",
                mac=event.mac,
                expected=_guest_mac(record),
                service=event.service,
                **whose,
            )

    def last(self, name: str) -> list[dict[str, object]]:
        """The last events of a guest, the oldest first, as JSON: `at` in seconds since 1970."""
        with self._lock:
            kept = list(self._kept.get(name, ()))
        return [{"at": round(reported.at, 3), **reported.event._asdict()} for reported in kept]

    def _news(self, name: str, event: Event) -> str:
        """The kind of line for the operator, "" for none."""
        family = _CONFIGURED.get((event.service, event.event), "")
        if family and (name, family) not in self._configured:
            self._configured.add((name, family))
            return "configured"
        now = time.monotonic()
        if event.event == "other_client" and now - self._warned.get(name, -_QUIET) >= _QUIET:
            self._warned[name] = now
            return "warning"
        return ""


def _address(record: Record, family: str) -> str:
    """The guest's address of a family as its record has it, without the prefix length."""
    address = as_object(_settings(record).get(family)).get("address")
    return address.partition("/")[0] if isinstance(address, str) else ""


def _guest_mac(record: Record) -> str:
    return str(_settings(record).get("guest_mac") or "")


def _settings(record: Record) -> Mapping[str, Any]:
    return as_object((record.guest or {}).get("settings"))
