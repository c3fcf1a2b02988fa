"""What a guest has asked for and got, for operators: at most a few events, whatever the guest sends."""

from __future__ import annotations

from typing import Final, NamedTuple

# Services whose frames are reported. A guest sends ARP and ND all the time.
REPORTED: Final = ("dhcp4", "dhcp6", "ra")
# Events: a client at boot sends a dozen frames, one without an answer or a flooding one sends them for ever.
BURST: Final = 20
PER_SECOND: Final = 0.5


class Event(NamedTuple):
    """One frame of a guest."""

    # The service that it was for, one of REPORTED.
    service: str
    # The counter that went up: "offer", "nak", "malformed", ...
    event: str
    # The sender's MAC address.
    mac: str
    # How many events before it were counted only.
    missed: int = 0


class Reporter:
    """One guest's events until they are taken: BURST at once, then PER_SECOND; the others are counted."""

    __slots__ = ("_filled", "_missed", "_pending", "_tokens")

    def __init__(self) -> None:
        self._pending: list[Event] = []
        self._missed = 0
        self._tokens = float(BURST)
        self._filled = 0.0

    def note(self, now: float, service: str, event: str, mac: str) -> None:
        """`now` is that of a monotonic clock, in seconds; `service` is one of REPORTED."""
        self._tokens = min(BURST, self._tokens + (now - self._filled) * PER_SECOND)
        self._filled = now
        if self._tokens < 1:
            self._missed += 1
            return
        self._tokens -= 1
        self._pending.append(Event(service, event, mac, self._missed))
        self._missed = 0

    def take(self) -> list[Event]:
        """The events since the last time."""
        if not self._pending:
            return []
        events, self._pending = self._pending, []
        return events

    def lose(self, events: list[Event]) -> None:
        """Counts events that could not be reported."""
        self._missed += sum(1 + event.missed for event in events)
