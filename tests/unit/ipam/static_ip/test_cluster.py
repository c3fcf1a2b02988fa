"""static-ip over the leases of a cluster: which store a call goes to, and what it finds there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnvnet.call_context import captured, ending_at
from cnvnet.cni import skel
from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request, parse
from cnvnet.ipam.static_ip.plugin import Assignment, StaticIP
from cnvnet.ipam.store import objects
from cnvnet.ipam.store.holds import RELEASING, Holds
from cnvnet.ipam.store.ref import KUBERNETES, SQLITE
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kube.resources import IP_RESERVATIONS, VM_LEASES
from cnvnet.vm import names
from cnvnet.vm.directory import Directory
from tests.fakes.api_server import ApiServer, black_hole
from tests.fakes.kubernetes_store import disagreements
from tests.fakes.launchers import Launchers, cni_args

LAN = names.hashed("lan")
IPAM: dict[str, Any] = {"type": "static-ip", "subnet": "10.1.0.0/24"}


def container_of(pod: PodRef) -> str:
    return pod.name[-20:].lstrip("-")


class ClusterNode:
    """static-ip on one node of a cluster."""

    def __init__(self, folder: Path, directory: Directory | None) -> None:
        self.folder = folder
        self.directory = directory
        self.plugin = StaticIP(lookup=lambda: self.directory)

    def request(self, pod: PodRef, command: str = "ADD", ifname: str = LAN, **keys: Any) -> Request:
        env = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container_of(pod),
            "CNI_NETNS": "/run/netns/nowhere",
            "CNI_IFNAME": ifname,
            "CNI_PATH": "/nowhere",
            "CNI_ARGS": cni_args(pod),
            "CNVNET_STATEDIR": str(self.folder),
            "CNVNET_RUNDIR": str(self.folder / "run"),
        }
        document = {"cniVersion": "1.1.0", "name": "vms", "type": "cnv-bridge", "ipam": IPAM, **keys}
        return parse(env, json.dumps(document).encode())

    def add(self, pod: PodRef, **keys: Any) -> Assignment:
        return self.plugin.assign(self.request(pod, **keys))

    def delete(self, pod: PodRef) -> None:
        self.plugin.release(self.request(pod, "DEL"))


def leases(server: ApiServer) -> list[objects.StoredLease]:
    return [objects.read_lease(each) for each in server.objects.matching(VM_LEASES, "", lambda _: True)]


def test_a_vm_keeps_its_addresses_from_node_to_node(
    tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    first, second = ClusterNode(tmp_path / "n1", directory), ClusterNode(tmp_path / "n2", directory)
    pod = launchers.start("vm-a")
    source = first.add(pod)
    assert source.store.kind == KUBERNETES
    target = second.add(launchers.migrate("vm-a"))
    assert (target.result.ips, target.mac, target.role) == (source.result.ips, source.mac, "target")
    first.delete(pod)
    (lease,) = leases(server)
    assert lease.lease is not None
    assert [each.role for each in lease.lease.holders] == ["active"]
    assert all(each.node for each in lease.lease.holders)
    # What a table of leases shows, too.
    assert list(lease.roles.values()) == ["active"]
    (owner,) = server.objects.get(VM_LEASES, lease.key.namespace, lease.name)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == (
        "VirtualMachine",
        lease.key.vm,
        lease.lease.vm_uid,
    )
    assert disagreements(server) == []


def test_a_pod_that_is_no_vm_has_a_reservation_for_its_own_life(
    tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    node = ClusterNode(tmp_path, directory)
    pod = launchers.add_pod("web")
    node.add(pod)
    assert leases(server) == []
    (reservation,) = server.objects.matching(IP_RESERVATIONS, "", lambda _: True)
    # Nothing but the API has said which node this is; the pod was read once.
    assert (reservation["spec"]["node"], reservation["spec"]["pod"]["node"]) == ("node1", "node1")
    assert server.count("get", "pods") == 1
    node.delete(pod)
    assert server.objects.matching(IP_RESERVATIONS, "", lambda _: True) == []


def test_check_and_gc_go_by_what_the_node_holds(
    tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    node = ClusterNode(tmp_path, directory)
    pod = launchers.start("vm-a")
    result = node.add(pod).result
    server.requests.clear()
    ips = [{"address": str(each.address)} for each in result.ips]
    node.plugin.check(node.request(pod, "CHECK", prevResult={"cniVersion": "1.1.0", "ips": ips}))
    valid: dict[str, Any] = {
        "cni.dev/valid-attachments": [{"containerID": container_of(pod), "ifname": LAN}]
    }
    node.plugin.gc(node.request(pod, "GC", **valid))
    assert server.requests == []
    valid["cni.dev/valid-attachments"] = []
    node.plugin.gc(node.request(pod, "GC", **valid))
    (lease,) = leases(server)
    assert lease.holder_keys == {}


def test_a_failed_add_is_undone(
    tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    node = ClusterNode(tmp_path, directory)
    request = node.request(launchers.start("vm-a"))
    node.plugin.revert(request, node.plugin.assign(request))
    assert leases(server) == []
    assert server.objects.matching(IP_RESERVATIONS, "", lambda _: True) == []


def test_an_add_that_fails_late_is_undone_all_the_same(
    tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    """The time in which its call may ask the API is over."""
    node = ClusterNode(tmp_path, directory)
    request = node.request(launchers.start("vm-a"))
    assignment = node.plugin.assign(request)
    with ending_at(time.monotonic() - 1):
        node.plugin.revert(request, assignment)
    assert leases(server) == []
    assert Holds(str(tmp_path)).all() == []


def test_a_delete_without_credentials_waits_for_them(
    tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    node = ClusterNode(tmp_path, directory)
    pod = launchers.start("vm-a")
    node.add(pod)
    other = ClusterNode(tmp_path, None)
    other.delete(pod)
    assert len(leases(server)[0].holder_keys) == 1
    assert other.plugin.drain(str(tmp_path)) is None
    other.directory = directory
    drained = other.plugin.drain(str(tmp_path))
    assert drained is not None
    assert len(drained.done) == 1
    assert leases(server)[0].holder_keys == {}


def lease_of_a_vm(node: ClusterNode, launchers: Launchers) -> PodRef:
    pod = launchers.start("vm-a")
    node.add(pod)
    return pod


def lease_until_the_pod_ends(node: ClusterNode, launchers: Launchers) -> PodRef:
    pod = launchers.start("vm-a")
    node.add(pod, ipam={**IPAM, "release": "pod"})
    return pod


def reservation_of_a_pod(node: ClusterNode, launchers: Launchers) -> PodRef:
    pod = launchers.add_pod("web")
    node.add(pod)
    return pod


@pytest.mark.parametrize(
    "attach", [lease_of_a_vm, lease_until_the_pod_ends, reservation_of_a_pod], ids=lambda each: each.__name__
)
@pytest.mark.parametrize("skip", range(4))
def test_a_delete_waits_for_an_api_that_says_nothing_as_long_as_it_may(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    directory: Directory,
    launchers: Launchers,
    server: ApiServer,
    attach: Callable[[ClusterNode, Launchers], PodRef],
    skip: int,
) -> None:
    """Whichever of its requests is the first without an answer, and however many there are."""
    assert skel.REQUEST_SECONDS["DEL"] == 1.5
    monkeypatch.setitem(skel.REQUEST_SECONDS, "DEL", 0.3)
    node = ClusterNode(tmp_path, directory)
    pod = attach(node, launchers)
    server.inject(black_hole, skip=skip, times=99)
    request = node.request(pod, "DEL")
    begun = time.monotonic()
    response = skel.run_request("static-ip", lambda _: node.plugin, request.env, lambda: request)
    assert time.monotonic() - begun < 1.3
    assert response.exit == 0, response
    held = Holds(str(tmp_path)).all()
    assert [each.state for each in held] in ([RELEASING], [])
    server.clear_faults()
    server.hang_up()
    drained = node.plugin.drain(str(tmp_path))
    assert drained is not None
    assert len(drained.done) == len(held)
    assert Holds(str(tmp_path)).all() == []
    assert disagreements(server) == []


def test_a_damaged_embedded_store_keeps_no_pod_of_the_cluster_from_ending(
    tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    node = ClusterNode(tmp_path, directory)
    pod, other = launchers.start("vm-a"), launchers.add_pod("web")
    node.add(pod)
    (tmp_path / "leases.db").write_text("no database" * 1000)
    with captured() as lines:
        node.plugin.release(node.request(pod, "DEL", ipam={"type": "static-ip"}))
    assert leases(server)[0].holder_keys == {}
    assert any("leases.db" in each for each in lines)
    # Of one that the cluster does not know, nothing is known.
    with pytest.raises(CNIError, match=r"leases\.db") as caught:
        node.plugin.release(node.request(other, "DEL", ipam={"type": "static-ip"}))
    assert caught.value.code == 5


def test_a_damaged_embedded_store_keeps_no_hold_of_the_cluster_from_being_collected(
    tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    node = ClusterNode(tmp_path, directory)
    pod = launchers.start("vm-a")
    node.add(pod)
    (tmp_path / "leases.db").write_text("no database" * 1000)
    valid: dict[str, Any] = {"cni.dev/valid-attachments": []}
    with pytest.raises(CNIError, match=r"leases\.db"):
        node.plugin.gc(node.request(pod, "GC", ipam={"type": "static-ip"}, **valid))
    assert leases(server)[0].holder_keys == {}


def test_a_delete_finds_the_lease_whatever_the_configuration_says_by_now(
    tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    node = ClusterNode(tmp_path, directory)
    pod, local = launchers.start("vm-a"), launchers.add_pod("web")
    node.add(pod)
    node.add(local, ipam={**IPAM, "nodeLocal": True})
    node.plugin.release(node.request(pod, "DEL", ipam={**IPAM, "nodeLocal": True}))
    node.plugin.release(node.request(local, "DEL", ipam={**IPAM, "store": "kubernetes"}))
    assert leases(server)[0].holder_keys == {}
    store = Sqlite(str(tmp_path))
    assert store.look(lambda ledger: list(ledger.leases())) == []
    store.close()


def test_without_credentials_an_add_fails_and_the_node_is_not_ready(
    tmp_path: Path, launchers: Launchers
) -> None:
    node = ClusterNode(tmp_path, None)
    ipam = {**IPAM, "store": "kubernetes"}
    request = node.request(launchers.add_pod("web"), ipam=ipam)
    for call, code in ((node.plugin.assign, 11), (node.plugin.status, 50)):
        with pytest.raises(
            CNIError, match="store kubernetes: no credentials for the Kubernetes API"
        ) as caught:
            call(request)
        assert caught.value.code == code
    # A range of the node's own needs none.
    assert node.add(launchers.add_pod("db"), ipam={**IPAM, "nodeLocal": True}).store.kind == SQLITE


def test_an_embedded_store_imports_no_client(tmp_path: Path) -> None:
    code = """if True:
        import json, sys
        from cnvnet.cni.request import parse
        from cnvnet.ipam.static_ip.plugin import load
        env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0",
            "CNI_PATH": "/", "CNI_ARGS": "VM_NAME=vm1", "CNVNET_STATEDIR": sys.argv[1]}
        ipam = {"type": "static-ip", "subnet": "10.1.0.0/24"}
        request = parse(env, json.dumps({"cniVersion": "1.1.0", "name": "net", "ipam": ipam}).encode())
        plugin = load(env)
        plugin.revert(request, plugin.assign(request))
        plugin.release(request)
        print(*sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True, text=True
    )
    loaded = set(done.stdout.split())
    assert loaded & {"ssl", "urllib3", "cnvnet.kube.client", "cnvnet.ipam.store.kubernetes"} == set()


def test_an_add_of_no_pod_looks_for_no_credentials(tmp_path: Path) -> None:
    """A kubeconfig that is damaged, say, is nothing to it."""

    def lookup() -> Directory | None:
        raise CNIError(7, "a kubeconfig cannot be read")

    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/nowhere",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nowhere",
        "CNVNET_STATEDIR": str(tmp_path),
    }
    document = {"cniVersion": "1.1.0", "name": "vms", "type": "cnv-bridge", "ipam": IPAM}
    assert StaticIP(lookup=lookup).add(parse(env, json.dumps(document).encode())).ips
