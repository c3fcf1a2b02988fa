"""cnv-bridge with a Kubernetes API at hand: the MAC of the port, and what the record keeps of the VM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnvnet.call_context import captured
from cnvnet.cni.errors import CNIError, InvalidConfig
from cnvnet.cni.result import Result
from cnvnet.kube.resources import INSTANCES
from cnvnet.vm import names
from cnvnet.vm.directory import Directory
from tests.fakes.api_server import ApiServer
from tests.fakes.launchers import NAMESPACE, Launchers, cni_args
from tests.unit.plugins.cnv_bridge.fake_node import World

LAN = names.hashed("lan")
SPEC = "02:00:00:00:00:0a"
MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path, directory: Directory) -> MakeWorld:
    def make(**keys: Any) -> World:
        world = World(tmp_path, **keys)
        world.use_api(lambda: directory)
        return world

    return make


def mac_of(result: Result) -> str:
    return next(each.mac for each in result.interfaces if each.sandbox)


def test_a_port_without_addresses_has_the_mac_of_the_vms_spec(
    make_world: MakeWorld, launchers: Launchers, server: ApiServer
) -> None:
    world = make_world(macspoofchk=True)
    result = world.add(args=cni_args(launchers.start("vm-a")), ifname=LAN)
    assert mac_of(result) == SPEC
    assert any(SPEC in element for element in world.elements)
    assert server.count() == 2


def test_multus_default_network_has_the_mac_of_the_vms_spec(
    make_world: MakeWorld, launchers: Launchers
) -> None:
    world = make_world(ipam={"type": "fake"})
    assert mac_of(world.add(args=cni_args(launchers.start("vm-primary-br")))) == "02:00:00:00:00:0d"


def test_a_port_of_a_migrations_target_has_the_mac_that_the_source_reports(
    make_world: MakeWorld, launchers: Launchers, server: ApiServer
) -> None:
    launchers.start("vm-a")
    target = launchers.migrate("vm-a")
    spec = server.objects.get(INSTANCES, NAMESPACE, "vm-a")["spec"]
    del spec["domain"]["devices"]["interfaces"][1]["macAddress"]
    reported = [{"name": "lan", "mac": "02:00:00:00:00:55", "infoSource": "domain, guest-agent"}]
    patch: dict[str, Any] = {"spec": spec, "status": {"interfaces": reported}}
    server.objects.patch(INSTANCES, NAMESPACE, "vm-a", patch)
    assert mac_of(make_world().add(args=cni_args(target), ifname=LAN)) == "02:00:00:00:00:55"


def test_masquerade_lets_the_pod_have_any_mac(
    make_world: MakeWorld, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    spec = server.objects.get(INSTANCES, NAMESPACE, "vm-a")["spec"]
    spec["domain"]["devices"]["interfaces"][0]["macAddress"] = "02:00:00:00:00:66"
    server.objects.patch(INSTANCES, NAMESPACE, "vm-a", {"spec": spec})
    assert mac_of(make_world().add(args=cni_args(pod))) != "02:00:00:00:00:66"


def test_the_address_managers_mac_beats_the_specs_where_the_call_asks_for_none(
    make_world: MakeWorld, launchers: Launchers
) -> None:
    world = make_world(ipam={"type": "fake"})
    world.ipam.mac = "0a:63:00:00:00:01"
    assert mac_of(world.add(args=cni_args(launchers.start("vm-a")), ifname=LAN)) == "0a:63:00:00:00:01"


def test_a_mac_of_the_call_that_is_not_the_specs_is_refused(
    make_world: MakeWorld, launchers: Launchers
) -> None:
    world = make_world()
    args = f"{cni_args(launchers.start('vm-a'))};MAC=02:00:00:00:00:99"
    with pytest.raises(InvalidConfig) as caught:
        world.add(args=args, ifname=LAN)
    assert caught.value.msg == (
        f"VirtualMachineInstance default/vm-a: macAddress of interface lan: {SPEC} contradicts "
        "02:00:00:00:00:99 (CNI_ARGS MAC)"
    )
    world.assert_nothing_of_an_attachment()


def test_an_annotation_gives_a_port_its_mac(make_world: MakeWorld, launchers: Launchers) -> None:
    world = make_world()
    pod = launchers.start("vm-twice", {"cnvnet.io/mac_address.x": "02:00:00:00:00:77"})
    assert mac_of(world.add(args=cni_args(pod), ifname=names.hashed("x"))) == "02:00:00:00:00:77"
    other = world.add(args=cni_args(pod), ifname=names.hashed("y"))
    assert mac_of(other) != "02:00:00:00:00:77"


def test_an_annotation_without_a_network_is_refused_for_a_second_port(
    make_world: MakeWorld, launchers: Launchers
) -> None:
    world = make_world()
    pod = launchers.start("vm-twice", {"cnvnet.io/mac_address": "02:00:00:00:00:77"})
    assert mac_of(world.add(args=cni_args(pod), ifname=names.hashed("x"))) == "02:00:00:00:00:77"
    with pytest.raises(InvalidConfig, match=r"write cnvnet\.io/mac_address\.NETWORK"):
        world.add(args=cni_args(pod), ifname=names.hashed("y"))


def test_a_migrations_target_says_which_annotation_it_ignores(
    make_world: MakeWorld, launchers: Launchers
) -> None:
    launchers.start("vm-a")
    target = launchers.migrate("vm-a", {"cnvnet.io/mac_address.lan": "02:00:00:00:00:77"})
    with captured() as lines:
        result = make_world().add(args=cni_args(target), ifname=LAN)
    assert mac_of(result) == SPEC
    assert [line.partition(":")[0] for line in lines] == ["annotation cnvnet.io/mac_address.lan"]


def test_the_record_keeps_vm_instance_and_role(make_world: MakeWorld, launchers: Launchers) -> None:
    world = make_world()
    launchers.start("vm-a")
    target = launchers.migrate("vm-a")
    world.add(args=cni_args(target), ifname=LAN)
    (record,) = world.records
    assert record["v"] == 1
    vmi_uid = record["vm"].pop("vmi_uid")
    assert len(vmi_uid) == 36
    assert record["vm"] == {
        "namespace": "default",
        "name": "vm-a",
        "uid": "6872abbb-50f2-46d8-a9ab-06adb435f608",
        "vmi": "vm-a",
        "pod_uid": target.uid,
        "role": "target",
        "migration": "d8977b59-3967-4e23-aa47-b890a9b1745f",
    }
    assert record["pod"]["uid"] == target.uid


def test_a_pod_that_is_not_to_run_the_vm_now_does_not_announce_its_addresses(
    make_world: MakeWorld, launchers: Launchers
) -> None:
    """A migration's target, and one that only makes storage come about."""
    world = make_world(ipam={"type": "fake"})
    source = launchers.start("vm-a")
    target = launchers.migrate("vm-a")
    temporary = launchers.start("vm-br", {"kubevirt.io/ephemeral-provisioning": "true"})
    announced = {}
    for pod in (source, target, temporary):
        world.add(args=cni_args(pod), ifname=LAN)
        announced[pod] = world.pod.sysctls[f"net/ipv4/conf/{LAN}/arp_notify"]
        world.delete(args=cni_args(pod), ifname=LAN)
    assert announced == {source: "1", target: "0", temporary: "0"}


def test_an_identity_in_the_call_of_a_pod_is_refused(make_world: MakeWorld, launchers: Launchers) -> None:
    world = make_world()
    with pytest.raises(InvalidConfig, match="a Kubernetes pod cannot say which VM it is"):
        world.add(args=f"{cni_args(launchers.start('vm-a'))};VM_NAME=other", ifname=LAN)
    world.assert_nothing_of_an_attachment()


def test_an_api_that_refuses_leaves_nothing(
    make_world: MakeWorld, launchers: Launchers, server: ApiServer
) -> None:
    world, pod = make_world(), launchers.start("vm-a")
    server.stop()
    with pytest.raises(CNIError) as caught:
        world.add(args=cni_args(pod), ifname=LAN)
    assert caught.value.code == 11
    world.assert_nothing_of_an_attachment()


def test_a_del_asks_no_api(make_world: MakeWorld, launchers: Launchers, server: ApiServer) -> None:
    world, pod = make_world(), launchers.start("vm-a")
    result = world.add(args=cni_args(pod), ifname=LAN)
    server.stop()
    world.check(result, args=cni_args(pod), ifname=LAN)
    world.delete(args=cni_args(pod), ifname=LAN)
    world.assert_nothing_of_an_attachment()


def test_outside_kubernetes_no_api_is_asked(make_world: MakeWorld, server: ApiServer) -> None:
    make_world().add()
    assert server.count() == 0
