"""What is kept and logged of the packet loop's news."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cnvnet.agent.guests.events import GuestEvents
from cnvnet.attachment.record import ADDED, Key, Record
from cnvnet.guest.events import Event
from cnvnet.resident import log

SETTINGS = {"guest_mac": "m1", "v4": {"address": "10.0.2.2/24"}, "v6": {"address": "fd10::2/120"}}
RECORD = Record(
    Key("masquerade", "net", "c1", "net1"),
    "/x",
    1,
    "boot",
    ADDED,
    {},
    {"ifname": "tap0", "settings": SETTINGS},
)
ACK = Event("dhcp4", "ack", "m1")


def made(record: Record | None = RECORD) -> GuestEvents:
    records = {"a.json": record}
    return GuestEvents(records.get, lambda _: {"vm": "default/vm-a"})


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_the_first_ack_of_each_family_is_news(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")
    events = made()
    events.served("a.json")
    for event in (Event("dhcp4", "offer", "m1"), ACK, ACK, Event("dhcp6", "reply", "m1"), ACK):
        events.observe("a.json", event)
    lines = said(capsys)
    assert [line["ip"] for line in lines] == ["10.0.2.2", "fd10::2"]
    assert {**lines[0], "msg": "guest configured", "level": "info", "vm": "default/vm-a"} == lines[0]
    assert 0 <= lines[0]["after"] < 30


def test_another_mac_is_a_warning_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")
    events = made()
    for _ in range(50):
        events.observe("a.json", Event("dhcp4", "other_client", "m2"))
    (line,) = said(capsys)
    assert (line["level"], line["mac"], line["expected"]) == ("warning", "m2", "m1")


def test_each_event_is_a_line_of_the_debug_log(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("debug", "json")
    made().observe("a.json", Event("ra", "advertisement", "m1", missed=3))
    (line,) = said(capsys)
    assert (line["level"], line["service"], line["event"], line["missed"]) == (
        "debug",
        "ra",
        "advertisement",
        3,
    )


def test_the_last_twenty_are_kept_and_go_with_the_guest() -> None:
    events = made()
    for number in range(50):
        events.observe("a.json", Event("dhcp4", "offer", str(number)))
    assert [event["mac"] for event in events.last("a.json")] == [str(number) for number in range(30, 50)]
    events.forget("a.json")
    assert events.last("a.json") == []


def test_nothing_is_kept_of_a_guest_that_is_none() -> None:
    events = made()
    events.observe("b.json", ACK)
    assert events.last("b.json") == []


@pytest.mark.parametrize("guest", [None, {}, {"settings": 3}, {"settings": {"v4": []}}])
def test_a_strange_record_is_no_trouble(guest: Any) -> None:
    events = made(RECORD._replace(guest=guest))
    events.observe("a.json", ACK)
    assert len(events.last("a.json")) == 1
