"""masquerade killed before each of its changes: whatever is called next, the pod is as it was in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functional.crash import strace
from tests.functional.crash.strace import CONSTANT, Moment
from tests.functional.masquerade.masquerade_pod import Lab, Pod, a_lab
from tests.functional.masquerade.test_calls import snapshot
from tests.harness import Outcome

# There are many moments, and other tests beside this one.
pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]
CONFIG = {"cniVersion": "1.1.0", "name": "masq", "type": "masquerade", "ports": [{"port": 80}]}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with a_lab(tmp_path / "lab") as made:
        yield made


def call(lab: Lab, pod: Pod, command: str, within: tuple[str, ...] = ()) -> Outcome:
    return lab.node.cni(
        "masquerade",
        command,
        json.dumps(CONFIG),
        pod,
        container_id="c1",
        ifname="net1",
        within=within,
        env=CONSTANT,
        timeout=120,
    )


def moments(lab: Lab, pod: Pod, command: str, log: Path) -> list[Moment]:
    if command == "ADD":
        # The first of all makes the folders as well.
        call(lab, pod, "ADD").ok()
        call(lab, pod, "DEL").ok()
    call(lab, pod, command, strace.watching(log)).ok()
    found = strace.moments(log, lab.node.folder)
    assert len(found) > 15, found
    return found


def records(lab: Lab) -> list[Path]:
    return list((lab.node.rundir / "attachments").iterdir())


def states(lab: Lab) -> list[str]:
    return [json.loads(path.read_text())["state"] for path in records(lab) if path.stat().st_size]


# Each moment with each of them is tried with the plugin on a kernel in memory; here they are dealt out.
@pytest.mark.parametrize(("following", "first"), [("DEL", 0), ("ADD", 1)])
def test_an_add_killed_at_any_moment_is_repaired(
    lab: Lab, tmp_path: Path, following: str, first: int
) -> None:
    pod = lab.pod()
    before = snapshot(pod)
    found = moments(lab, pod, "ADD", tmp_path / "log")
    call(lab, pod, "DEL").ok()
    for moment in found[first::2]:
        assert call(lab, pod, "ADD", strace.killing(moment)).code != 0, moment
        if following == "ADD":
            complete = states(lab) == ["added"]
            again = call(lab, pod, "ADD")
            # One that has done everything but say so is complete: a second ADD is one too many.
            assert again.code == complete, (moment, again)
            call(lab, pod, "CHECK").ok()
        call(lab, pod, "DEL").ok()
        assert snapshot(pod) == before, moment
        assert records(lab) == [], moment


def test_a_del_killed_at_any_moment_is_finished_by_the_next(lab: Lab, tmp_path: Path) -> None:
    pod = lab.pod()
    before = snapshot(pod)
    call(lab, pod, "ADD").ok()
    for moment in moments(lab, pod, "DEL", tmp_path / "log"):
        call(lab, pod, "ADD").ok()
        call(lab, pod, "DEL", strace.killing(moment))
        call(lab, pod, "DEL").ok()
        assert snapshot(pod) == before, moment
        assert records(lab) == [], moment
