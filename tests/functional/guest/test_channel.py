"""The packet loop's control channel, against an agent that says all kinds of things."""

from __future__ import annotations

import select
import signal
import socket
from pathlib import Path

import pytest

from cnvnet.guest import settings_json
from tests.functional.guest.running_loop import Lab, Loop
from tests.functional.guest.test_services import ask4, is_udp
from tests.unit.guest.guests import MASQUERADE
from tests.unit.guest.scapy_packets import discover4

SETTINGS = settings_json.encode(MASQUERADE)


def refused(loop: Loop, message: dict[str, object], *fds: int) -> str:
    answer = loop.ask({"serve": "vm1", "settings": SETTINGS, **message}, *fds)
    assert answer["refused"] == "vm1"
    reason: str = answer["reason"]
    return reason


@pytest.mark.parametrize(
    "message",
    [
        b"\0",
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"1e999",
        b'"serve"',
        b"{}",
        b"[" * 100000,
        b'{"v": 1}',
        b'{"v": 2, "counters": true}',
        b'{"v": true, "counters": true}',
        b'{"v": 1, "counters": 1}',
        b'{"v": 1, "drop": null}',
        b'{"v": 1, "drop": {}}',
        b'{"v": 1, "drop": ""}',
        b'{"v": 1, "serve": 7, "settings": {}}',
        b'{"v": 1, "serve": "' + b"x" * 300 + b'", "settings": {}}',
        b'{"v": 1, "drop": "\\ud800' + b"x" * 150000 + b'"}',
    ],
    ids=lambda message: message[:24].decode(errors="replace"),
)
def test_a_message_that_means_nothing_is_answered_and_forgotten(lab: Lab, message: bytes) -> None:
    loop = lab.loop()
    answer = loop.ask(message)
    assert list(answer) == ["error"]
    assert 0 < len(answer["error"]) < 200
    assert loop.totals()["guests"] == 0


def test_no_descriptor_stays_behind_a_message_that_brought_one(lab: Lab) -> None:
    loop = lab.loop()
    loop.totals()
    before = sorted(loop.descriptors())
    with socket.socket(), open("/dev/null") as null:
        for _ in range(3):
            assert "error" in loop.ask(b"{", null.fileno(), null.fileno())
            assert loop.ask({"counters": True}, null.fileno())["guests"] == 0
            assert loop.ask({"drop": "vm1"}, null.fileno()) == {"dropped": "vm1"}
            assert "2 descriptors" in refused(loop, {}, null.fileno(), null.fileno())
            # More than it makes room for: the kernel cuts them off.
            loop.ask({"counters": True}, *[null.fileno()] * 30)
    assert sorted(loop.descriptors()) == before


def test_what_cannot_be_served_is_refused_with_a_reason(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    assert refused(loop, {}) == "0 descriptors came along, not one"
    with open("/dev/null") as null, socket.socket() as tcp, guest.socket(MASQUERADE) as tap:
        before = len(loop.descriptors())
        assert "socket" in refused(loop, {}, null.fileno())
        assert refused(loop, {}, tcp.fileno()) == "the descriptor is no packet socket"
        assert refused(loop, {"settings": []}, tap.fileno()) == "settings: required"
        for change, reason in (
            ({"mtu": 7}, "mtu 7: not between 576 and 65535"),
            ({"server_mac": ""}, "server_mac '': not a MAC address"),
            ({"v4": {"address": "10.0.2.2/24"}}, "v4"),
            ({"v6": 6}, "v6"),
            ({"search": 5}, "search"),
            ({"nameservers": [{"a": "b" * 5000}]}, "nameservers"),
        ):
            refusal = refused(loop, {"settings": {**SETTINGS, **change}}, tap.fileno())
            assert refusal.startswith(reason)
            assert len(refusal) <= 400
        assert len(loop.descriptors()) == before
    assert loop.totals()["guests"] == 0


def test_a_guest_that_is_served_once_more_gets_the_latest_settings(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, MASQUERADE)
    before = len(loop.descriptors())
    assert ask4(guest, "discover").options[12] == b"vm1"
    loop.serve("vm1", guest, MASQUERADE._replace(hostname="renamed"))
    assert ask4(guest, "discover").options[12] == b"renamed"
    with guest.socket(MASQUERADE) as tap:
        refused(loop, {"settings": {**SETTINGS, "mtu": 0}}, tap.fileno())
    # One answer to each question, and still the last good one.
    assert ask4(guest, "discover").options[12] == b"renamed"
    assert [frame for frame in guest.heard() if is_udp(frame)] == []
    assert len(loop.descriptors()) == before
    assert loop.totals()["guests"] == 1


def test_a_dropped_guest_is_not_answered_and_the_others_are(lab: Lab) -> None:
    loop, guest, other = lab.loop(), lab.guest(), lab.guest()
    loop.serve("vm1", guest, MASQUERADE)
    loop.serve("vm2", other, MASQUERADE)
    assert loop.ask({"drop": "vm1"}) == {"dropped": "vm1"}
    assert loop.ask({"drop": "vm1"}) == {"dropped": "vm1"}
    guest.send(discover4())
    assert ask4(other, "discover").kind == 2
    totals = loop.totals()
    assert (totals["guests"], totals["counters"]["dhcp4", "offer"]) == (1, 1)
    assert not [frame for frame in guest.heard() if is_udp(frame)]


def test_it_ends_with_the_channel_and_says_nothing(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, MASQUERADE)
    loop.end.close()
    _, stderr = loop.process.communicate(timeout=20)
    assert (loop.process.returncode, stderr) == (0, "")


def test_it_does_what_was_asked_before_the_channel_ended(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, MASQUERADE)
    for _ in range(20):
        loop.tell({"counters": True})
    loop.end.close()  # with answers in it that were not read
    assert loop.process.wait(20) == 0


def test_sigterm_ends_it_and_ctrl_c_does_not(lab: Lab) -> None:
    loop = lab.loop()
    loop.totals()
    loop.process.send_signal(signal.SIGINT)
    assert loop.totals()["guests"] == 0
    loop.process.terminate()
    _, stderr = loop.process.communicate(timeout=20)
    assert (loop.process.returncode, stderr) == (-signal.SIGTERM, "")


def test_an_agent_that_does_not_listen_holds_up_no_guest(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, MASQUERADE)
    loop.end.settimeout(0)
    asked = 0
    while True:
        try:
            loop.tell({"counters": True})
        except BlockingIOError:
            # Both directions are full when there is no room again after a moment.
            if not select.select([], [loop.end], [], 0.5)[1]:
                break
        else:
            asked += 1
    assert asked > 10
    assert ask4(guest, "discover").kind == 2
    before = loop.cpu_seconds()
    select.select([], [], [], 1)
    assert loop.cpu_seconds() - before < 0.5, "it does not spin while it cannot answer"
    loop.end.settimeout(20)
    answers = [loop.hear() for _ in range(asked)]
    assert all(answer["guests"] == 1 for answer in answers)
    assert loop.counted("dhcp4", "offer") == 1


def test_it_needs_a_channel(tmp_path: Path) -> None:
    import subprocess
    import sys

    from tests.functional.guest.running_loop import ROOT

    for arguments in ([], ["x"], ["-1"], ["0"], ["999"]):
        command = [sys.executable, "-m", "cnvnet.guest.packet_loop", *arguments]
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("cnvnet.guest.packet_loop FD: ")
        assert done.stderr.count("\n") == 1
