"""vm-bridge killed before each of its changes: whatever is called next, the pod is as it was in the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.functional.crash import strace
from tests.functional.crash.strace import CONSTANT, Moment
from tests.functional.vm_bridge.test_calls import records
from tests.functional.vm_bridge.vm_bridge_pod import CONFIG, Lab, difference, settle, snapshot
from tests.harness import Outcome

# There are many moments, and other tests beside this one.
pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]
# Every moment is tried with the plugin on a kernel in memory; here are enough of each kind of change.
EVERY = 5


def call(lab: Lab, command: str, within: tuple[str, ...] = ()) -> Outcome:
    config = json.dumps(CONFIG)
    return lab.node.cni(
        "vm-bridge", command, config, lab.pod, container_id="c1", within=within, env=CONSTANT, timeout=120
    )


def furnish(lab: Lab) -> None:
    lab.network()
    lab.pod.run("ip", "route", "add", "10.7.0.0/16", "via", "10.1.0.1", "metric", "50")
    neighbour = ("10.1.0.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0", "nud", "permanent")
    lab.pod.run("ip", "neigh", "add", *neighbour)
    # The gateway known, nothing of a run depends on when it answers.
    known = ("fd99::1", "lladdr", "0a:00:00:00:00:01", "dev", "eth0", "nud", "permanent")
    lab.pod.run("ip", "neigh", "add", *known)
    settle(lab)


def moments(lab: Lab, command: str, log: Path) -> list[Moment]:
    if command == "ADD":
        # The first of all makes the folders as well.
        call(lab, "ADD").ok()
        call(lab, "DEL").ok()
    call(lab, command, strace.watching(log)).ok()
    found = strace.moments(log, lab.node.folder)
    assert len(found) > 15, found
    return found


def states(lab: Lab) -> list[str]:
    return [json.loads(path.read_text())["state"] for path in records(lab.node) if path.stat().st_size]


@pytest.mark.parametrize(("following", "first"), [("DEL", 0), ("ADD", 1)])
def test_an_add_killed_at_any_moment_is_repaired(
    lab: Lab, tmp_path: Path, following: str, first: int
) -> None:
    furnish(lab)
    before = snapshot(lab.pod)
    found = moments(lab, "ADD", tmp_path / "log")
    call(lab, "DEL").ok()
    for moment in found[first::EVERY]:
        assert call(lab, "ADD", strace.killing(moment)).code != 0, moment
        if following == "ADD":
            complete = states(lab) == ["added"]
            again = call(lab, "ADD")
            # One that has done everything but say so is complete: a second ADD is one too many.
            assert again.code == complete, (moment, again)
            call(lab, "CHECK").ok()
        call(lab, "DEL").ok()
        assert difference(lab.pod, before) == "", moment
        assert records(lab.node) == [], moment


def test_a_del_killed_at_any_moment_is_finished_by_the_next(lab: Lab, tmp_path: Path) -> None:
    furnish(lab)
    before = snapshot(lab.pod)
    call(lab, "ADD").ok()
    for moment in moments(lab, "DEL", tmp_path / "log")[::EVERY]:
        call(lab, "ADD").ok()
        call(lab, "DEL", strace.killing(moment))
        call(lab, "DEL").ok()
        assert difference(lab.pod, before) == "", moment
        assert records(lab.node) == [], moment
