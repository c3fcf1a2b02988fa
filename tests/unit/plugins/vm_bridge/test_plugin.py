"""The plugin on a kernel in memory: what each command does, whatever happened before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.kernel.fake import FakeKernel
from cnvnet.kernel.netns import LostNamespace
from tests.unit.plugins.vm_bridge.world import MortalKernel, World

DUMMIES = pytest.mark.parametrize("dummies", [True, False], ids=["dummy", "no dummy"])


@DUMMIES
def test_del_leaves_the_pod_as_it_was(tmp_path: Path, dummies: bool) -> None:
    world = World(tmp_path, FakeKernel(dummies=dummies))
    before = world.snapshot()
    world.add()
    assert sorted(world.links) == ["eth0", "eth0-nic", "k6t-eth0", "lo", "tap0"]
    stand_in = world.pod.by_name("eth0")
    assert stand_in is not None
    assert (stand_in.kind, stand_in.up) == ("dummy" if dummies else "bridge", False)
    world.check()
    world.delete()
    assert world.snapshot() == before
    world.delete()
    assert world.snapshot() == before


def test_an_add_refused_at_any_step_leaves_the_pod_as_it_was(tmp_path: Path) -> None:
    steps = 0
    while True:
        world = World(tmp_path / str(steps))
        before = world.snapshot()
        world.kernel.fail_at(steps + 1)
        try:
            world.add()
        except (CNIError, OSError):
            assert world.snapshot() == before, f"step {steps + 1}"
        else:
            # What is not required may be refused; then the ADD goes on.
            if world.kernel.steps <= steps:
                break
            world.delete()
            assert world.snapshot() == before, f"step {steps + 1}"
        steps += 1
    assert steps > 20


@DUMMIES
@pytest.mark.parametrize("then", ["delete", "add", "gc"])
def test_a_kill_at_any_step_is_repaired_by_the_next_call(tmp_path: Path, then: str, dummies: bool) -> None:
    steps = 0
    while True:
        kernel = MortalKernel(dummies=dummies)
        world = World(tmp_path / str(steps), kernel)
        before = world.snapshot()
        kernel.deadly = kernel.steps + steps + 1
        try:
            world.add()
        except LostNamespace:
            if then == "add":
                world.add()
                world.check()
            if then == "gc":
                world.gc()
            else:
                world.delete()
            assert world.snapshot() == before, f"step {steps + 1}"
        else:
            break
        steps += 1
    assert steps > 20


def test_a_del_killed_at_any_step_is_finished_by_the_next(tmp_path: Path) -> None:
    steps = 0
    while True:
        kernel = MortalKernel()
        world = World(tmp_path / str(steps), kernel)
        before = world.snapshot()
        world.add()
        kernel.deadly = kernel.steps + steps + 1
        try:
            world.delete()
        except LostNamespace:
            world.delete()
            assert world.snapshot() == before, f"step {steps + 1}"
        else:
            break
        steps += 1
    assert steps > 10
