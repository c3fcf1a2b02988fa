"""What a guest does by its real tap, and what an operator hears of it from a real agent."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnvnet.guest.events import BURST, PER_SECOND
from tests.functional.agent.own_agent import RunningAgent, eventually, running_agent
from tests.functional.masquerade.masquerade_pod import PATIENCE
from tests.functional.vm_bridge.vm_bridge_pod import POD_MAC, Lab, a_lab
from tests.unit.guest.scapy_packets import discover4

pytestmark = pytest.mark.alone

WRONG = "02:00:00:00:00:ee"
WARNING = "guest asks with another MAC and is not answered"
# What is kept of each guest.
KEPT = 20
# What the agent and its packet loop may grow by, whatever a guest sends.
ROOM = 4 << 20


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A guest in its pod's place, whose MAC is known."""
    with a_lab(tmp_path) as made:
        made.network()
        yield made


@pytest.fixture
def agent(lab: Lab) -> Iterator[RunningAgent]:
    with running_agent(lab.node, "--log-level", "debug") as running:
        lab.pod.cni("ADD", guestServices={}).ok()
        lab.plug()
        assert eventually(lambda: running.serves() == 1)
        yield running


def events(lab: Lab, agent: RunningAgent) -> list[dict[str, Any]]:
    """The guest's last events."""
    (record,) = (lab.node.rundir / "attachments").glob("*.json")
    found: list[dict[str, Any]] = agent.ask(guest="events", record=record.name)["events"]
    return [event for event in found if event["service"] == "dhcp4"]


def logged(agent: RunningAgent, message: str) -> list[dict[str, Any]]:
    return [event for event in agent.events() if event["msg"] == message]


def is_offered(guest: socket.socket) -> bool:
    """Whether the guest's own question is answered."""
    guest.settimeout(PATIENCE)
    guest.send(discover4(mac=POD_MAC))
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        frame = guest.recv(70000)
        if frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[34:38] == b"\0\x43\0\x44":
            return True
    return False


def test_a_wrong_mac_is_warned_of_once_and_events(lab: Lab, agent: RunningAgent) -> None:
    guest = lab.packets(lab.guest, "eth0")
    for _ in range(3):
        guest.send(discover4(mac=WRONG))
    assert eventually(lambda: len(events(lab, agent)) == 3)
    assert {(event["event"], event["mac"]) for event in events(lab, agent)} == {("other_client", WRONG)}
    (warning,) = logged(agent, WARNING)
    assert warning["level"] == "warning"
    assert (warning["mac"], warning["expected"], warning["service"]) == (WRONG, POD_MAC, "dhcp4")
    assert (warning["container"], warning["network"]) == ("c1", "wire")
    assert agent.metrics()['cnvnet_guest_events_total{event="other_client",service="dhcp4"}'] == 3
    # With its own it is served as ever.
    assert is_offered(guest)
    assert eventually(lambda: events(lab, agent)[-1]["event"] == "offer")


def resident(agent: RunningAgent) -> int:
    """Bytes of the agent and its packet loop."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (agent.pid, agent.loop_pid)]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def flood(guest: socket.socket, seconds: float, first: int) -> int:
    """DHCPDISCOVERs without a pause, each of another client; the number of the next client."""
    head, tail = discover4(mac="00:00:00:00:00:00").split(bytes(6), 1)
    end = time.monotonic() + seconds
    number = first
    while time.monotonic() < end:
        for _ in range(50):
            number += 1
            mac = b"\x02\xf0" + number.to_bytes(4)
            # The frame's source and the client's address; the checksum is left off.
            frame = bytearray(head + mac + tail)
            frame[40:42] = b"\0\0"
            chaddr = 14 + 20 + 8 + 28
            frame[chaddr : chaddr + 6] = mac
            guest.send(frame)
    return number


def test_a_flood_of_events_takes_bounded_room(lab: Lab, agent: RunningAgent) -> None:
    guest = lab.packets(lab.guest, "eth0")
    begun = time.monotonic()
    number = flood(guest, 2, 0)  # what the first of anything takes
    before = resident(agent)
    sent = flood(guest, 6, number)
    assert sent > 1000
    grown = resident(agent) - before
    seconds = time.monotonic() - begun
    assert grown < ROOM, f"{grown} bytes more after {sent} frames"
    # The last few are kept, with how many were not, and the log has no more than its share.
    assert len(events(lab, agent)) <= KEPT
    counted = 'cnvnet_guest_events_total{event="other_client",service="dhcp4"}'
    assert agent.metrics()[counted] > BURST + PER_SECOND * seconds
    assert len(logged(agent, "guest event")) <= BURST + PER_SECOND * (time.monotonic() - begun) + 10
    assert len(logged(agent, WARNING)) == 1
    assert is_offered(guest)
