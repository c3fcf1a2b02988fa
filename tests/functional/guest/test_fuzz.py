"""Frames that no sane guest sends, through the whole loop: it counts them, and goes on."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest

from cnvnet.guest import services, session
from cnvnet.guest.settings import Settings
from tests.functional.guest.running_loop import ROOT, Lab
from tests.functional.guest.test_services import ask4
from tests.unit.guest import scapy_packets
from tests.unit.guest.guests import POINT_TO_POINT
from tests.unit.guest.test_bpf import received
from tests.unit.guest.test_services import CORPUS, GUEST, GUEST_SETTINGS, SOUND, is_sound

# A tap takes no frame without an Ethernet header.
SHORTEST = 14
GUESTS = 20


def test_the_corpus_is_counted_by_the_loop_as_by_the_codecs(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, GUEST_SETTINGS)
    expected = Counter({("ra", "announcement"): 1})
    for name in CORPUS:
        _, frame = scapy_packets.fixture(f"fuzz/{name}.hex")
        if len(frame) < SHORTEST:
            continue
        guest.send(frame)
        arriving = received(GUEST, frame)
        if arriving is not None:
            answer = services.answer(GUEST, arriving)
            expected[answer.service, answer.event] += 1
        loop.until(lambda: loop.totals()["counters"] == expected)
    assert len(expected) > 10
    assert ask4(guest, "discover").kind == 2


def damaged(seed: int) -> Iterator[bytes]:
    """Sound frames with bytes changed, cut, put in; random ones; oversized ones. The same in every run."""
    chance = random.Random(seed)
    while True:
        frame = bytearray(chance.choice(list(SOUND.values())))
        for _ in range(chance.randrange(8)):
            frame[chance.randrange(12, len(frame))] = chance.randrange(256)
        what = chance.randrange(6)
        if what == 0:
            del frame[chance.randrange(SHORTEST, len(frame)) :]
        elif what == 1:
            at = chance.randrange(SHORTEST, len(frame))
            frame[at:at] = chance.randbytes(chance.randrange(60))
        elif what == 2:
            frame += chance.randbytes(chance.choice([1, 1400, 4000, 9000, 60000]))
        elif what == 3:
            frame[chance.choice([14, 42, 54, 62]) :] = chance.randbytes(chance.randrange(400))
        yield bytes(frame)


@pytest.mark.parametrize("settings", [GUEST_SETTINGS, POINT_TO_POINT], ids=["masquerade", "bridged"])
def test_it_survives_whatever_a_guest_makes_up(lab: Lab, settings: Settings) -> None:
    loop, sandbox, made_up = lab.loop(), lab.sandbox(), damaged(7)
    for n in range(GUESTS):
        guest = lab.guest(sandbox, f"tap{n}")
        loop.serve(f"vm{n}", guest, settings)
        for frame in islice(made_up, session.BURST - 4):
            guest.send(frame)
            # The second question is read when the frame has been.
            loop.totals()
            loop.totals()
        for answer in guest.heard():
            is_sound(answer)
        assert ask4(guest, "discover").kind == 2
    totals = loop.totals()
    assert (totals["guests"], totals["dropped"], totals["throttled"]) == (GUESTS, 0, 0)
    events = Counter[str]()
    for (_, event), n in totals["counters"].items():
        events[event] += n
    assert events["malformed"] > 10 * GUESTS
    assert events["offer"] > GUESTS
    assert "failed" not in events
    assert "unsent" not in events


BROKEN = """
import sys
from cnvnet.guest import dhcp4, packet_loop
def reply(offer, frame):
    raise ValueError("a mistake\\nof ours")
dhcp4.reply = reply
sys.exit(packet_loop.main())
"""


def test_a_mistake_in_a_codec_costs_one_frame_and_is_said_once(lab: Lab) -> None:
    loop, guest = lab.loop("-c", BROKEN), lab.guest()
    loop.serve("vm1", guest, GUEST_SETTINGS)
    for _ in range(5):
        guest.send(SOUND["dhcp4"])
    loop.until(lambda: loop.counted("dhcp4", "failed") == 5)
    assert scapy_packets.Ether(guest.ask(SOUND["arp"], lambda frame: frame[12:14] == b"\x08\x06"))
    loop.end.close()
    _, stderr = loop.process.communicate(timeout=20)
    assert stderr == "dhcp4: a frame could not be answered: ValueError: a mistake of ours (said once)\n"
    assert loop.process.returncode == 0


def test_it_loads_little() -> None:
    code = (
        "import sys; b = set(sys.modules); import cnvnet.guest.packet_loop; print(*sys.modules.keys() - b)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    heavy = {"argparse", "asyncio", "ctypes", "dataclasses", "inspect", "logging", "netaddr", "pyroute2"}
    assert not loaded & (heavy | {"subprocess", "threading", "random", "typing_extensions"})
