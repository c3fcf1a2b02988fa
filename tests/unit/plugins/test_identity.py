"""Both bindings with a Kubernetes API at hand: the guest's name, and the role of the pod at its ADD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.kube.resources import INSTANCES
from cnvnet.plugins.masquerade import plugin as masquerade
from cnvnet.plugins.vm_bridge import plugin as vm_bridge
from cnvnet.vm.directory import Directory
from tests.fakes.api_server import ApiServer
from tests.fakes.launchers import NAMESPACE, Launchers, cni_args
from tests.unit.plugins.fake_pod import BindingWorld
from tests.unit.plugins.masquerade.masquerade_fake_pod import World as Masqueraded
from tests.unit.plugins.vm_bridge.vm_bridge_fake_pod import World as Bridged

PORTS: dict[str, Any] = {"ports": [{"port": 80}]}


def with_api(world: BindingWorld, directory: Directory) -> BindingWorld:
    load = masquerade.load if isinstance(world, Masqueraded) else vm_bridge.load
    world.plugin = load({"CNVNET_RUNDIR": str(world.rundir)}, world.kernel, lambda: directory)
    return world


def test_the_guest_is_called_as_kubevirt_calls_it(
    tmp_path: Path, directory: Directory, launchers: Launchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do_nothing(*_: object) -> None:
        """No agent serves this guest."""

    monkeypatch.setattr("cnvnet.launch.guest_client.ensure_agent", do_nothing)
    monkeypatch.setattr("cnvnet.launch.guest_client.serve", do_nothing)
    pod = launchers.start("dotted.vm.name")
    for kind in (Masqueraded, Bridged):
        world = with_api(kind(tmp_path / kind.network, guestServices={}), directory)
        world.add(args=cni_args(pod))
        (record,) = world.records
        assert record["guest"]["settings"]["hostname"] == "my-host"
        assert (record["vm"]["name"], record["vm"]["role"]) == ("dotted.vm.name", "active")


def test_a_check_goes_by_the_role_at_the_add(
    tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    launchers.start("vm-a")
    target = launchers.migrate("vm-a")
    world = with_api(Masqueraded(tmp_path, **PORTS), directory)
    world.add(args=cni_args(target))
    (record,) = world.records
    assert record["vm"]["role"] == "target"
    # The migration has succeeded: the pod of the call is no target any more.
    status = {"status": {"nodeName": "node2"}}
    server.objects.patch(INSTANCES, NAMESPACE, "vm-a", status)
    world.check(args=cni_args(target))


def test_a_target_has_the_rules_of_one(tmp_path: Path, directory: Directory, launchers: Launchers) -> None:
    pods = {"active": launchers.start("vm-a"), "target": launchers.migrate("vm-a")}
    for role, pod in pods.items():
        world = with_api(Masqueraded(tmp_path / role, **PORTS), directory)
        world.add(args=cni_args(pod))
        explicit = Masqueraded(tmp_path / f"explicit-{role}", **PORTS)
        explicit.add(args=f"VM_NAME=vm-a;VM_ROLE={role}")
        contents = [each.records[0]["undo"]["contents"] for each in (world, explicit)]
        assert contents[0] == contents[1] != {}


def test_an_explicit_role_is_recorded_too(tmp_path: Path) -> None:
    world = Masqueraded(tmp_path, **PORTS)
    world.add(args="VM_NAME=vm1;VM_ROLE=target")
    assert world.records[0]["vm"] == {"namespace": "default", "name": "vm1", "role": "target"}
    world.check(args="VM_NAME=vm1")


def test_no_api_means_no_vm(tmp_path: Path, launchers: Launchers, server: ApiServer) -> None:
    world = Masqueraded(tmp_path)
    world.plugin = masquerade.load({"CNVNET_RUNDIR": str(world.rundir)}, world.kernel, lambda: None)
    world.add(args=cni_args(launchers.start("vm-a")))
    assert "vm" not in world.records[0]
    assert server.count() == 0


@pytest.mark.parametrize("kind", [Masqueraded, Bridged])
def test_an_api_that_does_not_answer_leaves_the_pod_alone(
    tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer, kind: type[BindingWorld]
) -> None:
    world = with_api(kind(tmp_path), directory)
    pod, before = launchers.start("vm-a"), world.snapshot()
    server.stop()
    with pytest.raises(CNIError) as caught:
        world.add(args=cni_args(pod))
    assert caught.value.code == 11
    assert world.snapshot() == before
