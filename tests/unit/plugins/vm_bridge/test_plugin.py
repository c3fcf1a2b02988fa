"""The plugin on a kernel in memory: what each command does, whatever happened before it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.kernel.nft.tables import NftError
from tests.fakes.kernel import FakeKernel
from tests.unit.plugins.fake_pod import kill_adds, kill_deletes, refuse_adds
from tests.unit.plugins.killing_kernel import KillingKernel
from tests.unit.plugins.vm_bridge.vm_bridge_fake_pod import World

DUMMIES = pytest.mark.parametrize("dummies", [True, False], ids=["dummy", "no dummy"])


@DUMMIES
def test_del_leaves_the_pod_as_it_was(tmp_path: Path, dummies: bool) -> None:
    world = World(tmp_path, FakeKernel(dummies=dummies))
    before = world.snapshot()
    world.add()
    assert sorted(world.links) == ["eth0", "eth0-nic", "k6t-eth0", "lo", "tap0"]
    placeholder_link = world.pod.by_name("eth0")
    assert placeholder_link is not None
    assert (placeholder_link.kind, placeholder_link.up) == ("dummy" if dummies else "bridge", False)
    world.check()
    world.delete()
    assert world.snapshot() == before
    world.delete()
    assert world.snapshot() == before


def test_where_the_kernel_cannot_all_frames_pass_the_bridge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path)
    before = world.snapshot()
    run = world.nft.run

    def without_netdev(text: str) -> str:
        if "netdev" in text:
            raise NftError(errno.EINVAL, "nft: Could not process rule: Operation not supported")
        return run(text)

    monkeypatch.setattr(world.nft, "run", without_netdev)
    world.add()
    assert "tap0: all frames pass the bridge: table netdev cnv_wire_tap0: nft: " in capsys.readouterr().err
    world.check()
    world.delete()
    assert world.snapshot() == before


@pytest.mark.parametrize("chain", ["from_guest", "from_lan"])
def test_check_finds_what_passes_the_bridge_by_as_add_made_it(tmp_path: Path, chain: str) -> None:
    world = World(tmp_path)
    world.add()
    world.nft.tables["netdev", "cnv_wire_tap0"].chains[chain].clear()
    with pytest.raises(CNIError, match=f'^table netdev cnv_wire_tap0, chain {chain}: the rule "TCP"') as e:
        world.check()
    assert e.value.code == 100


def test_a_table_that_was_left_over_is_replaced(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.nft.run('table netdev cnv_wire_tap0 {\n\tchain from_lan {\n\t\taccept comment "old"\n\t}\n}\n')
    world.add()
    assert world.nft.rules("netdev", "cnv_wire_tap0", "from_lan")[0].comment == "TCP"
    world.check()


def test_an_add_refused_at_any_step_leaves_the_pod_as_it_was(tmp_path: Path) -> None:
    assert refuse_adds(lambda step: World(tmp_path / str(step))) > 20


@DUMMIES
@pytest.mark.parametrize("then", ["delete", "add", "gc"])
def test_a_kill_at_any_step_is_repaired_by_the_next_call(tmp_path: Path, then: str, dummies: bool) -> None:
    assert kill_adds(lambda step: World(tmp_path / str(step), KillingKernel(dummies=dummies)), then) > 20


@pytest.mark.parametrize("required", [True, False])
def test_a_gateway_that_never_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], required: bool
) -> None:
    monkeypatch.setattr("cnvnet.plugins.vm_bridge.add._SECONDS", 0)
    keys: dict[str, Any] = {}
    if required:
        # No agent is asked.
        monkeypatch.setattr("cnvnet.launch.guest_client.ensure_agent", Mock())
        keys = {"guestServices": {}}
    world = World(tmp_path, FakeKernel(), **keys)
    world.pod.reachable.clear()
    before = world.snapshot()
    if required:
        with pytest.raises(CNIError, match="the gateway fd99::1 does not answer") as refused:
            world.add()
        assert refused.value.code == TRY_AGAIN_LATER
        assert world.snapshot() == before
        return
    world.add()
    assert "the guest gets no IPv6 default route" in capsys.readouterr().err
    (record,) = world.records
    assert record["guest"]["settings"]["v6"]["default_route"] is False


def test_a_del_killed_at_any_step_is_finished_by_the_next(tmp_path: Path) -> None:
    assert kill_deletes(lambda step: World(tmp_path / str(step), KillingKernel())) > 10
