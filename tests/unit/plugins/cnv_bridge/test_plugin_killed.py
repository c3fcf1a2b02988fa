"""cnv-bridge on a kernel that refuses a change, or kills the plugin before it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.kernel.netns import LostNamespace
from tests.unit.plugins.cnv_bridge.fake_node import FULL, POD, World, killed_add, outer
from tests.unit.plugins.killing_kernel import KillingKernel


def steps_of_add(folder: Path) -> int:
    world = World(folder, **FULL)
    world.add()
    return world.kernel.steps


def refusal(world: World) -> str:
    """What an ADD says that fails, "" for one that does not."""
    try:
        world.add()
    except (CNIError, OSError) as e:
        return str(e)
    return ""


def test_whichever_step_fails_nothing_of_the_attachment_stays(tmp_path: Path) -> None:
    total = steps_of_add(tmp_path / "count")
    failed = 0
    for step in range(1, total + 1):
        world = World(tmp_path / str(step), **FULL)
        world.kernel.fail_at(step, errno.ENOMEM)
        problem = refusal(world)
        if problem:
            failed += 1
            assert "cannot allocate memory" in problem
            world.assert_nothing_of_an_attachment()
            world.add()
        # A sysctl that may be missing may fail as well.
        assert world.pod_links == ["lo", "eth0"]
        assert [record["state"] for record in world.records] == ["added"]
    assert failed > total / 2


@pytest.mark.parametrize("nth", [1, 2, 3], ids=["before-all", "before-guards", "after-all"])
def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: Any, nth: int) -> None:
    world = World(tmp_path, **FULL)
    calls: list[object] = []

    def full_disk(_fd: int) -> None:
        calls.append(_fd)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    # One record is fsync of the file and of the folder.
    nth = 2 * nth - 1
    with pytest.raises(CNIError, match="no space left on device") as caught:
        world.add()
    assert caught.value.code == 5
    world.assert_nothing_of_an_attachment()
    assert len(calls) == nth


def test_whichever_step_is_the_last_of_a_killed_add_the_next_one_repairs(tmp_path: Path) -> None:
    total = steps_of_add(tmp_path / "count")
    for step in range(1, total + 1):
        world = killed_add(tmp_path / str(step), step)
        result = world.add()
        world.check(result)
        assert world.ports.count(outer(result).name) == 1
        assert len(world.ports) == 2  # ours and that of the VLAN's gateway
        assert len(world.records) == 1
        world.delete()
        world.assert_nothing_of_an_attachment()


def test_whichever_step_is_the_last_of_a_killed_add_del_cleans_up(tmp_path: Path) -> None:
    total = steps_of_add(tmp_path / "count")
    for step in range(1, total + 1):
        world = killed_add(tmp_path / str(step), step)
        # The runtime may have removed the sandbox first.
        world.delete(netns="" if step % 2 else POD)
        world.assert_nothing_of_an_attachment()


def test_whichever_step_is_the_last_of_a_killed_del_the_next_one_finishes(tmp_path: Path) -> None:
    counted = World(tmp_path / "count", **FULL)
    counted.add()
    before = counted.kernel.steps
    counted.delete()
    for step in range(1, counted.kernel.steps - before + 1):
        kernel = KillingKernel()
        world = World(tmp_path / str(step), kernel, **FULL)
        world.add()
        kernel.kill_at = kernel.steps + step
        with pytest.raises(LostNamespace):
            world.delete()
        assert [record["state"] for record in world.records] == ["deleting"]
        if step % 2:
            world.delete()
            world.assert_nothing_of_an_attachment()
        else:
            world.add()
            assert world.pod_links == ["lo", "eth0"]


def test_a_failed_undo_is_reported_and_keeps_the_record(
    full: World, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def refuse(_stack: object, _ifindex: int) -> None:
        raise CNIError(999, "no deleting today")

    with monkeypatch.context() as patched:
        patched.setattr("cnvnet.plugins.cnv_bridge.add.delete_link", refuse)
        patched.setattr("cnvnet.plugins.cnv_bridge.port._PORT_SECONDS", 0)
        patched.setattr("tests.fakes.namespace.FakeLink.operstate", "DOWN")
        with pytest.raises(CNIError, match="bridge port in error state: down"):
            full.add()
    assert "no deleting today" in capsys.readouterr().err
    assert [record["state"] for record in full.records] == ["adding"]
    assert full.ipam.holders == set()
    full.delete()
    full.assert_nothing_of_an_attachment()
