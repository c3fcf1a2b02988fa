"""static-ip with a Kubernetes API at hand: whose lease it is, and what it asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import ADDED, Key, Record
from cnvnet.call_context import captured
from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import CNIError, InvalidConfig
from cnvnet.cni.request import Request, parse
from cnvnet.ipam.lease import Lease, LeaseKey
from cnvnet.ipam.static_ip.plugin import StaticIP
from cnvnet.ipam.store.ref import SQLITE, StoreRef
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kube.resources import INSTANCES
from cnvnet.vm import names
from cnvnet.vm.directory import Directory
from tests.fakes.api_server import ApiServer
from tests.fakes.launchers import NAMESPACE, Launchers, cni_args

LAN = names.hashed("lan")
IPAM: dict[str, Any] = {"type": "static-ip", "subnet": "10.1.0.0/24", "nodeLocal": True}


class Desk:
    """One node's static-ip."""

    def __init__(self, folder: Path, directory: Directory) -> None:
        self.folder = folder
        self.plugin = StaticIP(lookup=lambda: directory)

    def request(self, pod: PodRef, ifname: str = LAN, *, extra: str = "", **keys: Any) -> Request:
        env = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": pod.name[-20:],
            "CNI_NETNS": "/run/netns/nowhere",
            "CNI_IFNAME": ifname,
            "CNI_PATH": "/nowhere",
            "CNI_ARGS": cni_args(pod) + extra,
            "CNVNET_STATEDIR": str(self.folder),
            "CNVNET_RUNDIR": str(self.folder / "run"),
        }
        config = {"cniVersion": "1.1.0", "name": "vms", "type": "cnv-bridge", "ipam": IPAM, **keys}
        return parse(env, json.dumps(config).encode())

    def add(self, pod: PodRef, ifname: str = LAN, **more: Any) -> str:
        (ip,) = self.plugin.assign(self.request(pod, ifname, **more)).result.ips
        return str(ip.address.ip)

    def leases(self) -> dict[str, Lease]:
        store = Sqlite(str(self.folder))
        return {str(each.key): each for each in store.look(lambda ledger: list(ledger.leases()))}

    def attach(self, pod: PodRef, ifname: str, ipam_type: str = "static-ip") -> None:
        """The record that cnv-bridge keeps of another interface of the pod."""
        key = Key("cnv-bridge", "other", pod.name[-20:], ifname)
        record = Record(key, "/run/netns/nowhere", 1, "boot", ADDED, {"ipam_type": ipam_type})
        with AttachmentFiles(str(self.folder / "run")).locked(key) as slot:
            slot.write(record)


@pytest.fixture
def desk(tmp_path: Path, directory: Directory) -> Desk:
    return Desk(tmp_path, directory)


def refused(desk: Desk, pod: PodRef, ifname: str = LAN, **more: Any) -> str:
    with pytest.raises(InvalidConfig) as caught:
        desk.add(pod, ifname, **more)
    return caught.value.msg


def test_a_lease_is_the_vms_and_every_pod_of_it_finds_it(desk: Desk, launchers: Launchers) -> None:
    pod = launchers.start("vm-a")
    desk.add(pod)
    (lease,) = desk.leases().values()
    assert lease.key == LeaseKey("vms", "default", "vm-a", LAN)
    assert lease.vm_uid == "6872abbb-50f2-46d8-a9ab-06adb435f608"
    assert lease.mac == "02:00:00:00:00:0a"
    (holder,) = lease.holders
    assert (holder.pod, holder.pod_uid, holder.role) == (str(pod), pod.uid, "active")


def test_a_pod_that_is_no_vm_has_its_own_lease(desk: Desk, launchers: Launchers, server: ApiServer) -> None:
    pod = launchers.add_pod("web")
    with captured() as lines:
        desk.add(pod, "eth0", ipam={**IPAM, "release": "never"})
    (lease,) = desk.leases().values()
    assert (lease.key.is_vm, lease.holders[0].pod) == (False, "default/web")
    assert server.count() == 1
    # It is known to be none, so nothing is to be said of the policy.
    assert lines == []


def test_a_restarted_vm_has_its_address_again_where_the_policy_says_so(
    desk: Desk, launchers: Launchers
) -> None:
    pod = launchers.start("vm-a")
    kept: dict[str, Any] = {"ipam": {**IPAM, "release": "vm-deleted"}}
    first = desk.add(pod, **kept)
    desk.plugin.release(desk.request(pod, **kept))
    assert [each.state for each in desk.leases().values()] == ["stopped"]
    assert desk.add(pod, **kept) == first


def test_a_nodes_own_leases_end_with_the_pod_where_the_policy_is_left_open(
    desk: Desk, launchers: Launchers
) -> None:
    pod = launchers.start("vm-a")
    desk.add(pod)
    desk.plugin.release(desk.request(pod))
    assert desk.leases() == {}


def test_a_migrations_target_has_a_lease_of_its_node_where_leases_are_the_nodes(
    tmp_path: Path, directory: Directory, launchers: Launchers
) -> None:
    source, target = launchers.start("vm-a"), launchers.migrate("vm-a")
    one, two = Desk(tmp_path / "one", directory), Desk(tmp_path / "two", directory)
    one.add(source)
    assignment = two.plugin.assign(two.request(target))
    (lease,) = two.leases().values()
    assert (lease.key.vm, lease.holders[0].role, assignment.mac) == ("vm-a", "active", "02:00:00:00:00:0a")


def test_an_annotation_beats_what_the_call_asks_for(desk: Desk, launchers: Launchers) -> None:
    pod = launchers.start("vm-a", {"cnvnet.io/ip_address.lan": "10.1.0.50"})
    assert desk.add(pod, extra=";IP=10.1.0.60") == "10.1.0.50"
    assert [each.source for each in desk.leases().values()] == [
        "annotation cnvnet.io/ip_address.lan, CNI_ARGS IP"
    ]


def test_without_an_annotation_the_call_is_heard(desk: Desk, launchers: Launchers) -> None:
    assert desk.add(launchers.start("vm-a"), extra=";IP=10.1.0.60") == "10.1.0.60"


def test_an_annotation_without_a_network_is_the_first_ones(desk: Desk, launchers: Launchers) -> None:
    pod = launchers.start("vm-a", {"cnvnet.io/ip_address": "10.1.0.50"})
    desk.attach(pod, "eth0", "host-local")
    assert desk.add(pod) == "10.1.0.50"
    desk.attach(pod, "eth0")
    desk.plugin.release(desk.request(pod))
    assert desk.add(pod) != "10.1.0.50"


def test_an_annotation_without_a_network_is_refused_for_a_second_one(
    desk: Desk, launchers: Launchers
) -> None:
    pod = launchers.start("vm-twice", {"cnvnet.io/ip_address": "10.1.0.50"})
    desk.attach(pod, names.hashed("x"))
    assert "write cnvnet.io/ip_address.NETWORK" in refused(desk, pod, names.hashed("y"))


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("10.9.0.5", "10.9.0.5 is in no range of network vms"),
        ("10.1.0.1", "10.1.0.1 is the gateway of network vms"),
    ],
)
def test_an_annotation_that_cannot_be_met_names_itself(
    desk: Desk, launchers: Launchers, address: str, problem: str
) -> None:
    pod = launchers.start("vm-a", {"cnvnet.io/ip_address.lan": address})
    message = refused(desk, pod)
    assert message.startswith(f"annotation cnvnet.io/ip_address.lan: {problem}")
    assert desk.leases() == {}


def test_an_address_of_another_vm_is_refused_and_its_holder_named(desk: Desk, launchers: Launchers) -> None:
    desk.add(launchers.start("vm-a", {"cnvnet.io/ip_address.lan": "10.1.0.50"}))
    pod = launchers.start("vm-twice", {"cnvnet.io/ip_address.x": "10.1.0.50"})
    assert refused(desk, pod, names.hashed("x")) == (
        f"annotation cnvnet.io/ip_address.x: 10.1.0.50 is held by VM default/vm-a ({LAN}) in pod "
        "default/virt-launcher-vm-a-ckmh4"
    )


def test_kube_ovns_annotation_counts_in_the_ranges_only(desk: Desk, launchers: Launchers) -> None:
    inside = launchers.start("vm-a", {"ovn.kubernetes.io/ip_address": "10.1.0.50"})
    assert desk.add(inside) == "10.1.0.50"
    outside = launchers.start("vm-twice", {"ovn.kubernetes.io/ip_address": "10.16.0.7"})
    with captured() as lines:
        desk.add(outside, names.hashed("x"))
    assert lines == [
        "annotation ovn.kubernetes.io/ip_address: 10.16.0.7 ignored: in no range of this network "
        "(10.1.0.1-10.1.0.254), so it is meant for another one"
    ]
    gateway = launchers.start("vm-br", {"ovn.kubernetes.io/ip_address": "10.1.0.1"})
    assert "10.1.0.1 is the gateway" in refused(desk, gateway, "eth0")
    taken = launchers.start("vm-primary", {"ovn.kubernetes.io/ip_address": "10.1.0.50"})
    assert "10.1.0.50 is held by VM default/vm-a" in refused(desk, taken, "eth0")


def test_a_target_says_what_of_its_annotations_it_ignores(desk: Desk, launchers: Launchers) -> None:
    launchers.start("vm-a")
    target = launchers.migrate("vm-a", {"cnvnet.io/ip_address.lna": "10.1.0.50"})
    with captured() as lines:
        desk.add(target)
    (line,) = lines
    assert line.endswith(": ignored: VM default/vm-a is migrating and keeps what it has")


def test_a_binding_plugins_mac_yields_to_another_vms(
    desk: Desk, launchers: Launchers, server: ApiServer
) -> None:
    desk.add(launchers.start("vm-plugin"), "eth0")
    pod = launchers.start("vm-primary")
    spec = server.objects.get(INSTANCES, NAMESPACE, "vm-primary")["spec"]
    spec["domain"]["devices"]["interfaces"][0]["macAddress"] = "02:00:00:00:00:0b"
    server.objects.patch(INSTANCES, NAMESPACE, "vm-primary", {"spec": spec})
    with captured() as lines:
        mac = desk.plugin.assign(desk.request(pod, "eth0")).mac
    assert mac.startswith("0a:63:")
    assert lines == [
        "VirtualMachineInstance default/vm-primary: macAddress of interface prim: 02:00:00:00:00:0b is "
        f"another one's in network vms: VM default/vm-primary (eth0) gets {mac}"
    ]


def test_a_mac_that_the_call_asks_for_does_not_yield(desk: Desk, launchers: Launchers) -> None:
    desk.add(launchers.start("vm-plugin"), "eth0")
    pod = launchers.start("vm-twice")
    message = refused(desk, pod, names.hashed("x"), extra=";MAC=02:00:00:00:00:0b")
    assert message.startswith("CNI_ARGS MAC: 02:00:00:00:00:0b is held by VM default/vm-plugin (eth0)")


def test_a_check_needs_no_api(desk: Desk, launchers: Launchers, server: ApiServer) -> None:
    pod = launchers.start("vm-a")
    ip = desk.add(pod)
    server.stop()
    previous = {"cniVersion": "1.1.0", "ips": [{"address": f"{ip}/24"}]}
    desk.plugin.check(desk.request(pod, prevResult=previous))
    desk.plugin.release(desk.request(pod))
    with pytest.raises(CNIError) as caught:
        desk.plugin.check(desk.request(pod, prevResult=previous))
    assert caught.value.code == 100


def test_an_api_that_does_not_answer_gives_no_address(
    desk: Desk, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    server.stop()
    with pytest.raises(CNIError) as caught:
        desk.add(pod)
    assert caught.value.code == 11
    assert server.url in caught.value.msg
    assert desk.leases() == {}


def test_an_identity_in_the_call_is_refused_before_anything_is_asked(
    desk: Desk, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    named: list[dict[str, Any]] = [
        {"extra": ";VM_NAME=other"},
        {"args": {"cni": {"vm": {"name": "other"}}}},
    ]
    for more in named:
        assert "a Kubernetes pod cannot say which VM it is" in refused(desk, pod, **more)
    # What KubeVirt, and who writes a network element, may have put there.
    desk.add(pod, args={"cni": {"logicNetworkName": "lan", "persistIP": "true"}})
    assert server.count("get", "pods") == 1


def test_a_node_name_counts_where_the_call_says_none(
    tmp_path: Path, directory: Directory, launchers: Launchers
) -> None:
    desk = Desk(tmp_path, directory)
    desk.plugin = StaticIP(lookup=lambda: directory, node_name="node-1")
    desk.add(launchers.start("vm-a"))
    assert [each.holders[0].node for each in desk.leases().values()] == ["node-1"]


def test_the_store_is_the_nodes_own(desk: Desk, launchers: Launchers) -> None:
    config = desk.plugin.configure(desk.request(launchers.start("vm-a")))
    assert config.store == StoreRef(SQLITE, str(desk.folder))
