"""What the instrument is asked, and what becomes of what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.datapath import ways
from tests.bench.datapath.ways import FROM_GUEST, TO_GUEST, Slices, Tap, Way
from tests.bench.systems import Failed

ONE = Way("one", "c1", "g1", ("10.1.0.1", "fd01::1"), ("10.1.0.2", "fd01::2"))
OTHER = Way("other", "c2", "", ONE.client_address, ONE.guest_address, Tap("p2", "tap0", b"\x02\xff"))


def instrument(folder: Path, *lines: str, status: int = 0) -> Path:
    """A program that writes its arguments down and says these lines."""
    program = folder / "instrument"
    said = "\n".join(lines)
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >{folder}/asked\ncat <<!\n{said}\n!\nexit {status}\n'
    )
    program.chmod(0o755)
    return program


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().split()


def test_rounds_in_which_packets_were_late_count_for_no_way(tmp_path: Path) -> None:
    program = instrument(tmp_path, "0 0 10 1000 0", "0 1 10 900 5", "1 0 10 2000 0", "1 1 20 1000 0")
    found = ways.measure(program, [ONE, OTHER], ways.UDP, Slices(2, 5))
    assert found == {"one": [200.0], "other": [50.0]}


def test_packets_that_are_always_late_are_an_error(tmp_path: Path) -> None:
    program = instrument(tmp_path, "0 0 10 1000 9")
    with pytest.raises(Failed, match="too busy"):
        ways.measure(program, [ONE], ways.UDP, Slices(1, 5))


def test_an_error_names_the_ways(tmp_path: Path) -> None:
    program = instrument(tmp_path, status=1)
    with pytest.raises(Failed, match="0 is one, 1 is other"):
        ways.measure(program, [ONE, OTHER], ways.UDP, Slices(1, 5))


def test_to_the_guest_the_client_sends(tmp_path: Path) -> None:
    program = instrument(tmp_path, "0 0 1 1 0")
    ways.measure(program, [ONE], ways.UDP, Slices(3, 40), direction=TO_GUEST, version=6)
    expected = f"{ways.UDP} 3 40 18 0 /run/netns/c1 /run/netns/g1 fd01::2 5001 -"
    assert asked(tmp_path) == expected.split()


def test_from_a_tap_its_frame_is_sent(tmp_path: Path) -> None:
    program = instrument(tmp_path, "0 0 1 1 0")
    ways.measure(program, [OTHER], ways.OUT_OF_TAP, Slices(1, 5), direction=FROM_GUEST)
    expected = f"{ways.OUT_OF_TAP} 1 5 18 0 /run/netns/p2:tap0 /run/netns/c2 10.1.0.1 5001 02ff"
    assert asked(tmp_path) == expected.split()


def test_a_datagram_has_a_right_header_checksum() -> None:
    frame = ways.datagram(
        source_mac="02:00:00:00:00:01", mac="02:00:00:00:00:02", source="10.0.2.2", destination="10.1.0.1"
    )
    header = frame[14:34]
    total = sum(int.from_bytes(header[at : at + 2]) for at in range(0, 20, 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    assert frame[:12] == bytes.fromhex("020000000002020000000001")
