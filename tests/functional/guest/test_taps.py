"""Taps that go down, come up again, go away; loops that are killed."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack

import pytest

from cnvnet.guest import bpf, services, settings_json, tap_socket
from cnvnet.guest.session import TURN
from cnvnet.kernel import netns
from tests.functional.guest.running_loop import Guest, Lab, Loop
from tests.functional.guest.test_services import ask4, is_advertisement
from tests.functional.masquerade.masquerade_pod import PATIENCE
from tests.unit.guest.guests import MASQUERADE
from tests.unit.guest.scapy_packets import discover4

GONE = {"lost": "vm1", "reason": "the tap is gone"}


def is_idle(loop: Loop) -> bool:
    """Whether the loop sleeps, looked at for a while."""
    before = loop.cpu_seconds()
    time.sleep(1)
    return loop.cpu_seconds() - before < 0.3


def flood(guest: Guest, frames: int = 500) -> None:
    for _ in range(frames):
        guest.send(discover4())


def test_there_is_no_socket_for_a_tap_that_is_not_there(lab: Lab) -> None:
    sandbox = lab.sandbox()
    prepared = services.prepare(MASQUERADE)
    with (
        netns.opened(sandbox.netns) as inside,
        netns.entered(inside),
        pytest.raises(OSError, match="No such"),
    ):
        tap_socket.open_tap("tap0", prepared)


def test_what_came_before_the_filter_was_there_is_not_read(lab: Lab) -> None:
    guest = lab.guest()
    with guest.socket(MASQUERADE) as tap:
        guest.send(b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x08\x00" + bytes(60))
        guest.send(discover4())
        assert tap_socket.read(tap) == discover4()
        with pytest.raises(BlockingIOError):
            tap_socket.read(tap)


def test_a_tagged_frame_is_recognised_by_what_the_kernel_says_beside_it(lab: Lab) -> None:
    guest = lab.guest()
    with guest.socket(MASQUERADE) as tap:
        tap_socket.attach(tap, [bpf.ACCEPT])
        frame = discover4()
        guest.send(frame[:12] + b"\x81\x00\x00\x07" + frame[12:])
        guest.send(frame)
        assert [tap_socket.read(tap), tap_socket.read(tap)] == [b"", frame]


@pytest.fixture
def served(lab: Lab) -> tuple[Loop, Guest]:
    loop, guest = lab.loop(), lab.guest()
    assert loop.serve("vm1", guest, MASQUERADE) == {"served": "vm1"}
    assert ask4(guest, "discover").kind == 2
    return loop, guest


def test_a_tap_that_was_down_is_served_when_it_is_up_again(served: tuple[Loop, Guest]) -> None:
    loop, guest = served
    for _ in range(3):
        guest.link("down")
        guest.link("up")
        assert ask4(guest, "discover").kind == 2
    guest.link("down")
    time.sleep(0.3)
    assert is_idle(loop)
    guest.heard()
    guest.link("up")
    assert ask4(guest, "discover").kind == 2
    assert loop.totals()["guests"] == 1


def test_a_guest_that_asks_while_it_opens_its_tap_is_answered(lab: Lab) -> None:
    """The kernel has not set up the tap's queue yet then, which takes longer the more goes on elsewhere."""
    loop, pod, elsewhere = lab.loop(), lab.sandbox(), lab.sandbox()
    elsewhere.run("ip", "link", "add", "one0", "type", "veth", "peer", "name", "other0")
    flapping = "while :; do ip link set one0 up; ip link set one0 down; done"
    with elsewhere.popen("sh", "-c", flapping) as busy, ExitStack() as undo:
        undo.callback(busy.kill)  # before its end is waited for
        for tap in (f"tap{number}" for number in range(60)):
            # It is there before its guest is, as a plugin makes it.
            pod.run("ip", "tuntap", "add", tap, "mode", "tap")
            pod.run("ip", "link", "set", tap, "addrgenmode", "none", "up")
            with netns.opened(pod.netns) as inside, netns.entered(inside):
                made = tap_socket.open_tap(tap, services.prepare(MASQUERADE))
            with made:
                message = {"serve": tap, "settings": settings_json.encode(MASQUERADE)}
                assert loop.ask(message, made.fileno()) == {"served": tap}
            assert ask4(Guest(pod, tap, undo, up=False), "discover").kind == 2


def test_a_guest_hears_of_its_router_when_its_tap_comes_up(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest(up=False)
    assert loop.serve("vm1", guest, MASQUERADE) == {"served": "vm1"}
    assert loop.totals()["guests"] == 1
    assert is_idle(loop)
    guest.link("addrgenmode", "none", "up")
    assert is_advertisement(guest.hear(is_advertisement))
    assert ask4(guest, "discover").kind == 2


def test_a_tap_that_is_deleted_is_lost(served: tuple[Loop, Guest]) -> None:
    loop, guest = served
    before = len(loop.descriptors())
    guest.unplug()
    assert loop.hear() == GONE
    assert loop.totals()["guests"] == 0
    assert len(loop.descriptors()) == before - 1
    assert loop.ask({"drop": "vm1"}) == {"dropped": "vm1"}


def test_a_tap_that_is_deleted_after_it_went_down_is_lost(served: tuple[Loop, Guest]) -> None:
    loop, guest = served
    guest.link("down")
    time.sleep(0.3)
    guest.unplug()
    assert loop.hear() == GONE


def test_a_tap_that_is_deleted_before_it_was_ever_up_is_lost(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest(up=False)
    loop.serve("vm1", guest, MASQUERADE)
    guest.unplug()
    assert loop.hear() == GONE


def test_a_tap_that_is_gone_when_its_socket_arrives_is_lost(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    with guest.socket(MASQUERADE) as tap:
        guest.unplug()
        message = {"serve": "vm1", "settings": settings_json.encode(MASQUERADE)}
        assert loop.ask(message, tap.fileno()) == {"served": "vm1"}
    assert loop.hear() == GONE


def test_a_tap_that_is_deleted_while_its_guest_has_to_wait_is_lost(served: tuple[Loop, Guest]) -> None:
    loop, guest = served
    flood(guest)
    loop.until(lambda: loop.totals()["throttled"] > 0)
    guest.unplug()
    assert loop.hear() == GONE
    assert loop.totals()["guests"] == 0


def test_a_tap_that_moves_to_another_namespace_is_lost(lab: Lab) -> None:
    loop, guest, elsewhere = lab.loop(), lab.guest(), lab.sandbox()
    loop.serve("vm1", guest, MASQUERADE)
    guest.link("netns", elsewhere.netns.split("/")[2])
    assert loop.hear() == GONE


def test_a_tap_that_gets_another_name_stays_served(served: tuple[Loop, Guest]) -> None:
    loop, guest = served
    guest.link("down")
    guest.link("name", "tap7")
    guest.tap = "tap7"
    guest.link("up")
    assert ask4(guest, "discover").kind == 2
    assert loop.totals()["guests"] == 1


def test_what_a_guest_asked_before_it_is_served_anew_is_answered(served: tuple[Loop, Guest]) -> None:
    loop, guest = served
    before = loop.counted("dhcp4", "offer")
    loop.process.send_signal(signal.SIGSTOP)
    for _ in range(2 * TURN):
        guest.send(discover4())
    # It is opened too late to have any of them.
    with guest.socket(MASQUERADE) as tap:
        loop.tell({"serve": "vm1", "settings": settings_json.encode(MASQUERADE)}, tap.fileno())
    loop.process.send_signal(signal.SIGCONT)
    assert loop.hear() == {"served": "vm1"}
    assert loop.counted("dhcp4", "offer") == before + 2 * TURN


def test_a_tap_that_goes_while_its_guest_is_served_anew_is_lost(served: tuple[Loop, Guest]) -> None:
    loop, guest = served
    only4 = MASQUERADE._replace(v6=None)  # nothing is sent to it unasked
    loop.process.send_signal(signal.SIGSTOP)
    with guest.socket(only4) as tap:
        loop.tell({"serve": "vm1", "settings": settings_json.encode(only4)}, tap.fileno())
    guest.unplug()
    loop.process.send_signal(signal.SIGCONT)
    assert [loop.hear(), loop.hear()] == [{"served": "vm1"}, GONE]
    assert loop.totals()["guests"] == 0


def test_losing_one_guest_concerns_no_other(lab: Lab) -> None:
    loop, sandbox = lab.loop(), lab.sandbox()
    guests = [lab.guest(sandbox, f"tap{n}") for n in range(6)]
    for n, guest in enumerate(guests):
        loop.serve(f"vm{n}", guest, MASQUERADE)
    for guest in guests[::2]:
        guest.unplug()
    assert {loop.hear()["lost"] for _ in range(3)} == {"vm0", "vm2", "vm4"}
    for guest in guests[1::2]:
        assert ask4(guest, "discover").kind == 2
    assert loop.totals()["guests"] == 3


def packet_sockets(guest: Guest) -> int:
    return len(guest.sandbox.run("cat", "/proc/net/packet").stdout.splitlines()) - 1


def test_nothing_is_left_of_a_loop_that_was_killed_and_the_next_one_goes_on(lab: Lab) -> None:
    first, second, guest = lab.loop(), lab.loop(), lab.guest()
    first.serve("vm1", guest, MASQUERADE)
    assert packet_sockets(guest) == 1
    first.process.send_signal(signal.SIGKILL)
    first.process.wait(PATIENCE)
    assert first.end.recv(1000) == b""
    assert packet_sockets(guest) == 0
    # What the guest asks meanwhile is lost, and it asks again.
    guest.send(discover4())
    second.serve("vm1", guest, MASQUERADE)
    assert ask4(guest, "discover").kind == 2
    assert second.counted("dhcp4", "offer") == 1


def test_a_socket_keeps_its_namespace_until_it_is_dropped(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, MASQUERADE)
    assert packet_sockets(guest) == 1
    loop.ask({"drop": "vm1"})
    assert packet_sockets(guest) == 0
