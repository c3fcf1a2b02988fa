"""Crafted frames through a guarded port: the table alone, and the port the installed executable makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.functional.datapath.frames import HONEST, LYING, MAC, STACKED, Case, tagged
from tests.functional.datapath.lab import ALL, Lab, bare_lab, frame_mac, installed_lab


def each(cases: Sequence[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(scope="module", params=["table", "executable"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    make = bare_lab if request.param == "table" else installed_lab
    with make(tmp_path_factory.mktemp("lab"), ALL) as made:
        yield made


@pytest.fixture(params=[None, 7, 0], ids=["untagged", "tagged", "priority-tagged"])
def vid(request: pytest.FixtureRequest) -> int | None:
    found: int | None = request.param
    return found


def frame(lab: Lab, case: Case, vid: int | None = None) -> bytes:
    built = bytes(case.build(lab.guest))
    return built if vid is None else tagged(built, vid)


@each(HONEST)
def test_honest_frames_pass(lab: Lab, case: Case, vid: int | None) -> None:
    assert lab.verdict(frame(lab, case, vid)) == "passed"


@each(LYING)
def test_lies_are_dropped_for_their_own_reason(lab: Lab, case: Case, vid: int | None) -> None:
    assert lab.verdict(frame(lab, case, vid)) == case.verdict


@each(STACKED)
def test_tags_below_the_first_are_dropped(lab: Lab, case: Case) -> None:
    assert lab.verdict(frame(lab, case)) == case.verdict


# The bridge takes such frames for itself, and would learn where they come from.
@pytest.mark.parametrize("destination", ["01:80:c2:00:00:00", "01:80:c2:00:00:0e", "01:80:c2:00:00:03"])
def test_the_bridge_learns_no_foreign_mac_from_frames_to_itself(lab: Lab, destination: str) -> None:
    lie = frame_mac(destination) + frame_mac(MAC) + b"\x88\xcc" + b"lldp" * 12
    assert not lab.passes(lie)
    assert not lab.passes(tagged(lie))
    known = lab.host.run("bridge", "fdb", "show", "br", "bridge0").stdout
    assert MAC not in known
    assert lab.guest.mac in known
