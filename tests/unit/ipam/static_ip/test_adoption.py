"""A node's leases become the cluster's once their network is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import ADDED, ADDING, Key, Record
from cnvnet.cni.conventions import PodRef
from cnvnet.ipam import allocator
from cnvnet.ipam.lease import Lease, LeaseKey
from cnvnet.ipam.static_ip import recorded
from cnvnet.ipam.static_ip.adoption import Adopted
from cnvnet.ipam.static_ip.plugin import Assignment
from cnvnet.ipam.store.ref import KUBERNETES
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kube.resources import IP_NETWORKS, PODS, VM_LEASES
from cnvnet.vm.directory import Directory
from tests.fakes.api_server import ApiServer, refuse
from tests.fakes.kubernetes_store import disagreements
from tests.fakes.launchers import Launchers
from tests.unit.ipam.static_ip.test_cluster import IPAM, LAN, ClusterNode, container_of, leases
from tests.unit.ipam.static_ip.test_switching import CLUSTER, LOCAL, clustered, given, local

BY_DEFAULT = {**IPAM, "nodeLocal": True}
DATA = Path(__file__).parents[3] / "data"
STATUS = "k8s.v1.cni.cncf.io/network-status"


class AgentNode(ClusterNode):
    """A node whose agent looks; what was attached on it has records."""

    @property
    def rundir(self) -> Path:
        return self.folder / "run"

    def attach(self, pod: PodRef, state: str = ADDED, **keys: Any) -> Assignment:
        """An ADD and what it leaves: the record, and what Multus writes of it."""
        assignment = self.add(pod, **keys)
        key = Key("cnv-bridge", "vms", container_of(pod), LAN)
        ipam = keys["ipam"]
        undo = {"ipam_type": "static-ip", "ipam": ipam, "store": assignment.store._asdict()}
        with AttachmentFiles(str(self.rundir)).locked(key) as slot:
            slot.write(Record(key, "/run/netns/x", 1, "boot", state, undo))
        return assignment

    def adopt(self) -> Adopted:
        adopted = self.plugin.adopt(str(self.folder), str(self.rundir))
        assert adopted is not None
        return adopted


@pytest.fixture
def node(tmp_path: Path, directory: Directory) -> AgentNode:
    return AgentNode(tmp_path / "n1", directory)


@pytest.fixture(autouse=True)
def _in_agreement(server: ApiServer) -> Iterator[None]:
    yield
    assert disagreements(server) == []


def declare(server: ApiServer, **spec: Any) -> None:
    """The network is the cluster's from now on."""
    document = {"metadata": {"name": "vms"}, "spec": {"namespaces": ["default"], **spec}}
    server.objects.create(IP_NETWORKS, "", document)


def multus_says(server: ApiServer, pod: PodRef, *ips: str, mac: str = "", ifname: str = LAN) -> None:
    status = json.dumps([{"name": "other", "default": True}, {"interface": ifname, "ips": ips, "mac": mac}])
    server.objects.patch(PODS, pod.namespace, pod.name, {"metadata": {"annotations": {STATUS: status}}})


def ips_of(assignment: Assignment) -> list[str]:
    return [str(each.address.ip) for each in assignment.result.ips]


def test_what_is_no_network_of_the_cluster_stays_on_the_node(
    node: AgentNode, launchers: Launchers, server: ApiServer
) -> None:
    node.attach(launchers.start("vm-a"), ipam=LOCAL)
    assert node.adopt() == Adopted((), ())
    assert (len(local(node)), clustered(server)) == (1, [])
    alone = ClusterNode(node.folder, None)
    assert alone.plugin.adopt(str(node.folder), str(node.rundir)) is None
    server.requests.clear()
    empty = AgentNode(node.folder / "empty", node.directory)
    assert (empty.adopt(), server.requests) == (Adopted((), ()), [])


def test_a_vm_that_runs_is_adopted_ends_restarts_and_moves_with_its_addresses(
    node: AgentNode, tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    first = node.attach(pod, ipam=BY_DEFAULT)
    declare(server)
    adopted = node.adopt()
    assert ([str(ip) for each in adopted.leases for ip in each.ips], adopted.left) == (ips_of(first), ())
    assert local(node) == []
    (lease,) = leases(server)
    assert lease.lease is not None
    ((holder),) = lease.lease.holders
    assert (holder.container_id, holder.pod, bool(holder.node)) == (container_of(pod), str(pod), True)
    # Without the key a node's lease ends with its pod; the cluster's outlives it.
    assert lease.lease.release == "vm-deleted"
    (owner,) = server.objects.get(VM_LEASES, "default", lease.name)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("VirtualMachine", lease.lease.vm_uid)
    (record,) = AttachmentFiles(str(node.rundir)).records("cnv-bridge")
    assert recorded.store(record.undo, str(node.folder)).kind == KUBERNETES
    assert node.adopt() == Adopted((), ())
    other = ClusterNode(tmp_path / "n2", directory)
    target = other.add(launchers.migrate("vm-a"), ipam=CLUSTER)
    assert given(target) == given(first)
    node.plugin.release(node.request(pod, "DEL", ipam={"type": "static-ip"}), first.store)
    assert [each.container_id for each in clustered(server)[0].holders] != [container_of(pod)]


def test_a_stopped_vm_is_adopted_and_starts_anywhere_with_its_addresses(
    node: AgentNode, tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    first = node.attach(pod, ipam=LOCAL)
    node.delete(pod)
    declare(server)
    assert len(node.adopt().leases) == 1
    (lease,) = clustered(server)
    assert (lease.holders, bool(lease.vm_uid)) == ((), True)
    other = ClusterNode(tmp_path / "n2", directory)
    assert given(other.add(pod, ipam=CLUSTER)) == given(first)


def container_lease(node: AgentNode, pod: PodRef) -> Assignment:
    """The ADD on a node without credentials: the pod is a container like any other."""
    alone = AgentNode(node.folder, None)
    return alone.attach(pod, ipam=BY_DEFAULT)


def test_a_vm_that_has_run_as_a_container_gets_its_lease_by_what_multus_says(
    node: AgentNode, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    first = container_lease(node, pod)
    declare(server)
    (left,) = node.adopt().left
    assert left.startswith(f"container {container_of(pod)} ({LAN}): {STATUS} has no interface {LAN}, and ")
    multus_says(server, pod, "10.1.0.250", mac=first.mac)
    (left,) = node.adopt().left
    assert f"{STATUS} says 10.1.0.250 {first.mac}, and the lease has {ips_of(first)[0]}, {first.mac}" in left
    assert (len(local(node)), clustered(server)) == (1, [])
    multus_says(server, pod, *ips_of(first), mac=first.mac)
    (adopted,) = node.adopt().leases
    assert (str(adopted.key), adopted.release) == (f"VM default/vm-a ({LAN})", "vm-deleted")
    assert [str(ip) for ip in clustered(server)[0].ips] == ips_of(first)
    node.delete(pod)
    # Its MAC is the one of the VM's spec by now.
    assert ips_of(node.add(pod, ipam=CLUSTER)) == ips_of(first)


def test_a_pod_that_is_no_vm_keeps_its_address_for_its_life(
    node: AgentNode, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.add_pod("web")
    first = container_lease(node, pod)
    multus_says(server, pod, *ips_of(first), mac=first.mac)
    declare(server)
    assert [each.key.vm for each in node.adopt().leases] == [container_of(pod)]
    assert local(node) == []
    node.delete(pod)
    assert leases(server) == []


def test_an_address_that_is_taken_there_stays_and_is_said(
    node: AgentNode, tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    first = node.attach(pod, ipam=LOCAL)
    other = ClusterNode(tmp_path / "n2", directory)
    web = launchers.add_pod("web")
    other.add(web, ipam=CLUSTER, runtimeConfig={"ips": ips_of(first)})
    adopted = node.adopt()
    assert adopted.leases == ()
    assert (
        f"has {ips_of(first)[0]} in {node.folder}/leases.db, and here it is held by container"
        in (adopted.left[0])
    )
    assert (len(local(node)), clustered(server)) == (1, [])
    other.delete(web)
    assert len(node.adopt().leases) == 1


def test_what_the_network_does_not_give_stays(
    node: AgentNode, launchers: Launchers, server: ApiServer
) -> None:
    node.attach(launchers.start("vm-a"), ipam=LOCAL)
    declare(server, ranges=["10.9.0.0/24"])
    (left,) = node.adopt().left
    assert "IPNetwork vms does not give out 10.1.0." in left
    assert len(local(node)) == 1


def test_an_add_that_is_under_way_is_left_alone(
    node: AgentNode, launchers: Launchers, server: ApiServer
) -> None:
    node.attach(launchers.start("vm-a"), ADDING, ipam=LOCAL)
    declare(server)
    assert node.adopt() == Adopted((), ())
    assert len(local(node)) == 1


def test_a_pod_that_is_gone_is_left_to_its_delete(
    node: AgentNode, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    node.attach(pod, ipam=LOCAL)
    server.objects.delete(PODS, pod.namespace, pod.name, {})
    declare(server)
    assert "is not in the Kubernetes API" in node.adopt().left[0]
    node.delete(pod)
    assert len(node.adopt().leases) == 1


def test_an_api_that_fails_takes_nothing_and_is_asked_again(
    node: AgentNode, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    first = node.attach(pod, ipam=LOCAL)
    declare(server)
    for plural in ("vmleases", "ipreservations"):
        server.inject(refuse(403), verb="create", plural=plural)
        assert "403" in node.adopt().left[0]
        assert (len(local(node)), clustered(server)) == (1, [])
        server.clear_faults()
    assert [str(ip) for each in node.adopt().leases for ip in each.ips] == ips_of(first)


def test_what_was_left_by_a_kill_goes_at_the_next_look(
    node: AgentNode, launchers: Launchers, server: ApiServer
) -> None:
    node.attach(launchers.start("vm-a"), ipam=LOCAL)
    declare(server)
    left = local(node)
    node.adopt()
    before = clustered(server)
    Sqlite(str(node.folder)).run(lambda ledger: ledger.change(None, left[0], until=0))
    assert len(node.adopt().leases) == 1
    assert (local(node), clustered(server)) == ([], before)


def test_a_delete_that_comes_in_between_leaves_no_hold(
    node: AgentNode, launchers: Launchers, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the look at the node's leases, and before the cluster has them."""
    pod = launchers.start("vm-a")
    node.attach(pod, ipam=LOCAL)
    declare(server)
    adopt = allocator.adopt

    def late(*args: Any, **options: Any) -> Lease:
        node.delete(pod)
        return adopt(*args, **options)

    monkeypatch.setattr(allocator, "adopt", late)
    node.adopt()
    assert [each.holders for each in clustered(server)] == [()]
    monkeypatch.setattr(allocator, "adopt", adopt)
    node.adopt()
    assert (local(node), [each.holders for each in clustered(server)]) == ([], [()])


@pytest.mark.parametrize("written", [1, 2])
def test_a_file_of_an_older_version_is_read_once_an_add_has_brought_it_up_to_date(
    node: AgentNode, server: ApiServer, written: int
) -> None:
    node.folder.mkdir()
    (node.folder / "leases.db").write_bytes((DATA / "leases_378e07b.db").read_bytes())
    if written == 1:
        assert node.adopt() == Adopted((), ())
        return
    before = Sqlite(str(node.folder)).run(lambda ledger: list(ledger.leases()))
    network = before[0].key.network
    document = {"metadata": {"name": network}, "spec": {"namespaces": ["*"]}}
    server.objects.create(IP_NETWORKS, "", document)
    adopted = node.adopt()
    stopped = [each.key for each in before if each.key.network == network and not each.holders]
    assert {each.key for each in adopted.leases} >= set(stopped)


def test_a_newer_file_is_left_as_it_is(node: AgentNode, server: ApiServer) -> None:
    store = Sqlite(str(node.folder))
    key = LeaseKey("vms", "default", "vm-a", LAN)
    store.run(lambda ledger: ledger.change(None, Lease(key, (ip_address("10.1.0.9"),)), until=0))
    store.close()
    import sqlite3

    with sqlite3.connect(node.folder / "leases.db") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    declare(server)
    (left,) = node.adopt().left
    assert "written by a newer version (schema 99" in left
    assert clustered(server) == []
