"""One guest's session, with a socket pair in the tap's place."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Iterator
from typing import cast

import pytest

from cnvnet.cni.errors import InvalidConfig
from cnvnet.guest import services, settings_json, tap_socket
from cnvnet.guest.session import BURST, FRAMES_PER_SECOND, TURN, GuestSession
from tests.unit.guest.guests import MASQUERADE
from tests.unit.guest.scapy_packets import Seen4, discover4
from tests.unit.guest.test_services import SOUND

SETTINGS = settings_json.encode(MASQUERADE)
SENDABLE = 100


class Wire:
    """A guest served through `tap`, and what was counted."""

    def __init__(self, tap: socket.socket, client: socket.socket) -> None:
        self.client = client
        self.guest = GuestSession("vm1", tap, SETTINGS)
        self.counted = Counter[tuple[str, str]]()
        self.errors: list[str] = []

    def count(self, service: str, event: str, error: str) -> None:
        self.counted[service, event] += 1
        if error:
            self.errors.append(error)

    def turn(self, now: float) -> bool:
        return self.guest.take_turn(now, self.count)

    def send(self, frames: int) -> None:
        for _ in range(frames):
            self.client.send(discover4())

    def heard(self) -> int:
        """How many answers there are; they are read."""
        found = 0
        while True:
            try:
                self.client.recv(9000)
            except BlockingIOError:
                return found
            found += 1


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    def write(tap: socket.socket, frame: bytes) -> None:
        tap.send(frame)

    monkeypatch.setattr(tap_socket, "write", write)  # there is no link to look at
    # Not SOCK_DGRAM, of which a socket pair holds ten.
    tap, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with tap, client:
        tap.setblocking(False)
        client.setblocking(False)
        yield Wire(tap, client)


def test_a_frame_is_answered_and_counted(wire: Wire) -> None:
    wire.send(1)
    assert wire.turn(100.0)
    assert Seen4(wire.client.recv(9000)).bootp.yiaddr == "10.0.2.2"
    assert wire.counted == {("dhcp4", "offer"): 1}
    assert wire.turn(100.0)
    assert wire.heard() == 0


def test_a_turn_is_a_few_frames(wire: Wire) -> None:
    wire.send(TURN + 3)
    assert wire.turn(100.0)
    assert wire.heard() == TURN
    assert wire.turn(100.0)
    assert wire.heard() == 3


def test_a_guest_that_has_sent_too_much_waits_and_then_has_its_share(wire: Wire) -> None:
    now, answered = 1000.0, 0
    wire.send(SENDABLE)
    while wire.turn(now):
        answered += wire.heard()
    answered += wire.heard()
    assert answered == BURST
    assert not wire.turn(now)
    assert not wire.turn(now + 0.25)
    assert wire.heard() == FRAMES_PER_SECOND // 4
    assert not wire.turn(now + 0.25)
    # However long it was quiet, what it has saved up is one burst.
    wire.send(SENDABLE)
    answered = 0
    while wire.turn(now + 10000):
        answered += wire.heard()
    assert answered + wire.heard() == BURST


def test_what_came_in_at_the_socket_before_is_answered_by_the_new_one(wire: Wire) -> None:
    tap, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with tap, client:
        tap.setblocking(False)
        for _ in range(TURN + 3):
            client.send(discover4())
        wire.guest.take_over(tap, wire.count)
        assert wire.heard() == TURN + 3
        # Not for ever, should it send as fast as we answer.
        for _ in range(SENDABLE):
            client.send(discover4())
        wire.guest.take_over(tap, wire.count)
        assert wire.heard() == BURST
    # It cost the guest nothing of its share.
    wire.send(BURST)
    while wire.turn(1000.0):
        pass
    assert wire.heard() == BURST


def test_a_mistake_in_a_codec_costs_one_frame(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> services.FrameAnswer:
        raise RuntimeError("oh")

    with monkeypatch.context() as patch:
        patch.setattr(services, "answer", fail)
        for frame in SOUND.values():
            wire.client.send(frame)
        assert wire.turn(1.0)
    assert wire.counted == {("arp", "failed"): 1, ("dhcp4", "failed"): 1, ("ipv6", "failed"): 3}
    assert wire.errors == ["RuntimeError: oh"] * 5
    wire.send(1)
    assert wire.turn(1.0)
    assert wire.heard() == 1


def test_an_answer_that_finds_no_room_is_counted_and_forgotten(wire: Wire) -> None:
    wire.guest.tap.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for now in range(20):
        wire.send(1)
        assert wire.turn(float(now))
    unsent = wire.counted["dhcp4", "unsent"]
    assert unsent > 0
    assert wire.heard() == 20 - unsent


class DeadTap:
    """A tap that is down says so once, to the first caller."""

    def send(self, _: bytes) -> int:
        raise OSError(errno.ENETDOWN, "Network is down")


def test_a_tap_that_turns_out_to_be_down_is_the_callers_error(wire: Wire) -> None:
    wire.guest.tap = cast("socket.socket", DeadTap())
    with pytest.raises(OSError, match="down"):
        wire.guest.announce(wire.count)
    assert wire.counted == {("ra", "announcement"): 1, ("ra", "unsent"): 1}


def test_an_advertisement_goes_out_unasked_where_there_is_ipv6(wire: Wire) -> None:
    wire.guest.announce(wire.count)
    assert wire.heard() == 1
    only4 = GuestSession("vm1", wire.guest.tap, settings_json.encode(MASQUERADE._replace(v6=None)))
    only4.announce(wire.count)
    assert wire.heard() == 0
    assert wire.counted == {("ra", "announcement"): 1}


def test_settings_that_cannot_be_served_say_which_key_is_wrong(wire: Wire) -> None:
    with pytest.raises(InvalidConfig, match="mtu 7"):
        GuestSession("vm1", wire.guest.tap, {**SETTINGS, "mtu": 7})
