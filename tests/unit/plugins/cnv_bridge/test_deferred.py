"""DEL in a process that stays: the port is out of the way when it answers, and deleted by the reaper."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.cni.result import render
from cnvnet.kernel.deferred.retired import sweep
from cnvnet.kernel.links import RETIRED_GROUP
from cnvnet.kernel.netns import LostNamespace
from cnvnet.plugins.cnv_bridge import ipam
from tests.fakes.kernel import FakeKernel
from tests.unit.plugins.cnv_bridge.fake_node import FULL, POD, World, links_of, outer
from tests.unit.plugins.killing_kernel import KillingKernel


class SlowReaper:
    """Does nothing until the test says so."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self.notified = 0

    def notify(self) -> None:
        self.notified += 1

    def reap(self) -> None:
        with self._kernel.stack() as host:
            sweep(host)


def resident(folder: Path, kernel: FakeKernel | None = None, **keys: Any) -> tuple[World, SlowReaper]:
    world = World(folder, kernel, **keys)
    reaper = SlowReaper(world.kernel)
    world.kernel.reaper = reaper
    return world, reaper


def retired(world: World) -> int:
    return sum(link.group == RETIRED_GROUP for link in world.host.links.values())


def test_the_reaper_begins_when_the_call_has_done_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, reaper = resident(tmp_path, **FULL)
    world.add()
    seen: list[int] = []
    giving_back = ipam.release

    def give_back(*args: Any) -> None:
        seen.append(reaper.notified)
        giving_back(*args)

    monkeypatch.setattr("cnvnet.plugins.cnv_bridge.delete.release", give_back)
    world.delete()
    assert (seen, reaper.notified) == ([0], 1)


def test_the_port_is_out_of_the_way_and_deleted_later(tmp_path: Path) -> None:
    world, reaper = resident(tmp_path, **FULL)
    result = world.add()
    world.delete()
    assert (reaper.notified, retired(world)) == (1, 1)
    (left,) = (link for link in world.host.links.values() if link.name == outer(result).name)
    assert (left.up, left.master) == (False, None)
    assert "eth0" not in links_of(world.pod)
    with pytest.raises(CNIError, match="eth0 not found"):
        world.check(result)
    reaper.reap()
    world.assert_nothing_of_an_attachment()


def test_the_next_add_of_the_same_name_works_at_once(tmp_path: Path) -> None:
    world, reaper = resident(tmp_path, **FULL)
    for _ in range(3):
        world.add()
        world.delete()
    result = world.add()
    world.check(result)
    reaper.reap()
    world.check(result)
    assert len(world.ports) == 2  # ours and that of the VLAN's gateway


def test_a_second_del_finds_nothing_to_do(tmp_path: Path) -> None:
    world, reaper = resident(tmp_path, **FULL)
    world.add()
    world.delete()
    world.delete()
    assert reaper.notified == 1
    reaper.reap()
    world.assert_nothing_of_an_attachment()


def test_without_a_record_the_port_of_prev_result_is_retired_too(tmp_path: Path) -> None:
    world, reaper = resident(tmp_path, **FULL)
    result = world.add()
    for path in (world.rundir / "attachments").iterdir():
        path.unlink()
    world.delete(config={"prevResult": render(result, "1.1.0")})
    assert (reaper.notified, retired(world)) == (1, 1)
    reaper.reap()
    world.assert_nothing_of_an_attachment()


@pytest.mark.parametrize("netns", ["", "/run/netns/gone"], ids=["unnamed", "gone"])
def test_without_the_containers_end_the_port_is_deleted_at_once(tmp_path: Path, netns: str) -> None:
    world, reaper = resident(tmp_path, **FULL)
    world.add()
    world.delete(netns=netns)
    assert (reaper.notified, retired(world)) == (0, 0)
    world.assert_nothing_of_an_attachment()


def test_a_file_in_the_namespaces_place_keeps_nothing_from_being_deleted(tmp_path: Path) -> None:
    world, _ = resident(tmp_path, **FULL)
    world.add()
    world.kernel.add_file("/run/netns/file")
    world.delete(netns="/run/netns/file")
    world.assert_nothing_of_an_attachment()


def test_whichever_step_fails_del_or_the_next_one_leaves_nothing(tmp_path: Path) -> None:
    for step in range(1, steps_of_del(tmp_path / "count") + 1):
        world, reaper = resident(tmp_path / str(step), **FULL)
        world.add()
        world.kernel.fail_at(step, errno.ENOMEM)
        try:
            world.delete()
        except (CNIError, OSError):
            world.delete()
        if retired(world):
            reaper.reap()
        world.assert_nothing_of_an_attachment()


def test_whichever_step_is_the_last_of_a_killed_del_the_next_one_finishes(tmp_path: Path) -> None:
    for step in range(1, steps_of_del(tmp_path / "count") + 1):
        kernel = KillingKernel()
        world, reaper = resident(tmp_path / str(step), kernel, **FULL)
        world.add()
        kernel.kill_at = kernel.steps + step
        with pytest.raises(LostNamespace):
            world.delete()
        # By the next process, by one that ends with its call, or by the next ADD.
        reaper.reap()
        match step % 3:
            case 0:
                world.delete()
            case 1:
                world.kernel.reaper = None
                world.delete(netns=POD)
            case _:
                world.check(world.add())
                world.delete()
        reaper.reap()
        world.assert_nothing_of_an_attachment()


def steps_of_del(folder: Path) -> int:
    world, _ = resident(folder, **FULL)
    world.add()
    before = world.kernel.steps
    world.delete()
    return world.kernel.steps - before
