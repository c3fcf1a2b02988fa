"""A guest's events, however many it makes of them."""

from __future__ import annotations

from cnvnet.guest.events import BURST, Event, Reporter


def test_events_are_reported_in_order_and_once() -> None:
    reporter = Reporter()
    reporter.note(100.0, "dhcp4", "offer", "02:00:00:00:00:01")
    reporter.note(100.1, "dhcp4", "ack", "02:00:00:00:00:01")
    assert [event.event for event in reporter.take()] == ["offer", "ack"]
    assert reporter.take() == []


def test_a_flood_is_counted_and_not_reported() -> None:
    reporter = Reporter()
    for _ in range(100_000):
        reporter.note(100.0, "dhcp4", "malformed", "m")
    assert len(reporter.take()) == BURST
    reporter.note(102.0, "dhcp4", "offer", "m")
    assert reporter.take() == [Event("dhcp4", "offer", "m", missed=100_000 - BURST)]


def test_what_found_no_room_is_counted() -> None:
    reporter = Reporter()
    for _ in range(3):
        reporter.note(100.0, "ra", "advertisement", "m")
    first, *rest = reporter.take()
    assert first.missed == 0
    reporter.lose(rest)
    reporter.note(100.0, "ra", "advertisement", "m")
    assert [event.missed for event in reporter.take()] == [2]
