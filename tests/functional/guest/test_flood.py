"""One guest sends as fast as it can. Another one's lease, and the node, do not notice."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from cnvnet.guest import tap_socket
from tests.functional.guest.running_loop import Guest, Lab
from tests.functional.guest.test_services import ask4
from tests.unit.guest.guests import MASQUERADE
from tests.unit.guest.scapy_packets import discover4


class Flood(threading.Thread):
    """Frames into a tap without a pause; what the loop answers is left unread."""

    def __init__(self, tap: int, frame: bytes) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self._tap, self._frame, self._enough = tap, frame, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._enough.is_set():
            for _ in range(100):
                os.write(self._tap, self._frame)
            self.sent += 100
            time.sleep(0.001)  # the other threads of this test want to run, too

    def end(self) -> None:
        self._enough.set()
        self.join()


@contextmanager
def flooding(*guests: Guest, frame: bytes) -> Generator[list[Flood]]:
    floods = [Flood(guest.fd, frame) for guest in guests]
    try:
        yield floods
    finally:
        for flood in floods:
            flood.end()


def test_a_flood_costs_the_node_little_and_another_guest_nothing(lab: Lab) -> None:
    loop, bad, good = lab.loop(), lab.guest(), lab.guest()
    loop.serve("bad", bad, MASQUERADE)
    loop.serve("good", good, MASQUERADE)
    with flooding(bad, frame=discover4()) as (flood,):
        loop.until(lambda: loop.totals()["throttled"] > 0)
        begun, used = time.monotonic(), loop.cpu_seconds()
        for _ in range(10):
            assert ask4(good, "discover").kind == 2
            time.sleep(0.2)
        share = (loop.cpu_seconds() - used) / (time.monotonic() - begun)
    assert share < 0.5, f"{share:.0%} of a CPU"
    totals = loop.totals()
    answered = totals["counters"]["dhcp4", "offer"]
    assert flood.sent > 10 * answered
    assert totals["dropped"] > 0
    assert totals["dropped"] + answered <= flood.sent + 10


def test_a_guest_that_calms_down_is_served_again(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, MASQUERADE)
    with flooding(guest, frame=discover4()):
        loop.until(lambda: loop.totals()["throttled"] > 0)
    # What is in the socket is worked off first, at the pace of a guest that has had its share.
    loop.until(lambda: not guest.heard())
    assert ask4(guest, "discover", xid=0x3903F326).kind == 2


def test_a_burst_as_at_boot_is_answered_whole(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, MASQUERADE)
    for _ in range(20):
        guest.send(discover4())
    loop.until(lambda: loop.counted("dhcp4", "offer") == 20)
    totals = loop.totals()
    assert (totals["throttled"], totals["dropped"]) == (0, 0)


def test_what_no_service_answers_does_not_reach_the_loop_at_all(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, MASQUERADE)
    ordinary = discover4()[:36] + b"\x00\x50" + discover4()[38:]
    with flooding(guest, frame=ordinary):
        time.sleep(1)
    assert ask4(guest, "discover").kind == 2
    totals = loop.totals()
    assert totals["counters"].keys() == {("dhcp4", "offer"), ("ra", "announcement")}
    assert (totals["throttled"], totals["dropped"]) == (0, 0)


def test_no_other_taps_frame_slips_in_while_a_socket_is_made(lab: Lab) -> None:
    loud = lab.guest()
    quiet = lab.guest(loud.sandbox, "tap1")
    with flooding(loud, frame=discover4()):
        for _ in range(100):
            with quiet.socket(MASQUERADE) as tap, pytest.raises(BlockingIOError):
                tap_socket.read(tap)


def test_two_floods_share_what_there_is(lab: Lab) -> None:
    loop = lab.loop()
    bad = [lab.guest() for _ in range(3)]
    good = lab.guest()
    for n, guest in enumerate([*bad, good]):
        loop.serve(f"vm{n}", guest, MASQUERADE)
    with flooding(*bad, frame=discover4()):
        loop.until(lambda: loop.totals()["throttled"] > 2)
        assert ask4(good, "discover").kind == 2
        assert loop.ask({"drop": "vm0"}) == {"dropped": "vm0"}
        assert ask4(good, "discover").kind == 2
