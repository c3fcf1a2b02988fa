"""A network that changes its store: a VM's addresses come with it, once, and are no one else's."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cnvnet.call_context import captured
from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request
from cnvnet.ipam.lease import Lease, LeaseKey
from cnvnet.ipam.static_ip.plugin import Assignment
from cnvnet.ipam.store.holds import Holds
from cnvnet.ipam.store.ref import KUBERNETES, SQLITE
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kube.resources import IP_NETWORKS, VM_LEASES
from cnvnet.vm.directory import Directory
from tests.fakes.api_server import ApiServer, refuse
from tests.fakes.kubernetes_store import disagreements
from tests.fakes.launchers import Launchers
from tests.unit.ipam.static_ip.test_cluster import IPAM, LAN, ClusterNode, container_of, leases

LOCAL = {**IPAM, "nodeLocal": True, "release": "vm-deleted"}
CLUSTER = {**IPAM, "store": "kubernetes"}


@pytest.fixture
def node(tmp_path: Path, directory: Directory) -> ClusterNode:
    return ClusterNode(tmp_path / "n1", directory)


@pytest.fixture(autouse=True)
def _in_agreement(server: ApiServer) -> Iterator[None]:
    yield
    assert disagreements(server) == []


def local(node: ClusterNode) -> list[Lease]:
    return Sqlite(str(node.folder)).look(lambda ledger: list(ledger.leases()))


def clustered(server: ApiServer) -> list[Lease]:
    return [each.lease for each in leases(server) if each.lease is not None]


def given(assignment: Assignment) -> tuple[Any, str]:
    return assignment.result.ips, assignment.mac


def unknown_to_kubernetes(node: ClusterNode, pod: PodRef, **keys: Any) -> Request:
    """The ADD of the VM by a caller who says himself which it is, on a node without credentials."""
    vm = {"vm": {"namespace": "default", "name": "vm-a", "interface": LAN}}
    return node.request(pod, ipam=LOCAL, args={"cni": vm}, **keys)._replace(args="")


def test_a_stopped_vm_takes_its_addresses_into_the_cluster_and_back(
    node: ClusterNode, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    first = node.add(pod, ipam=LOCAL)
    node.delete(pod)
    assert len(local(node)) == 1
    moved = node.add(pod, ipam=CLUSTER)
    assert (moved.store.kind, given(moved)) == (KUBERNETES, given(first))
    assert local(node) == []
    (lease,) = leases(server)
    (owner,) = server.objects.get(VM_LEASES, lease.key.namespace, lease.name)["metadata"]["ownerReferences"]
    assert owner["kind"] == "VirtualMachine"
    node.delete(pod)
    back = node.add(pod, ipam=LOCAL)
    assert (back.store.kind, given(back)) == (SQLITE, given(first))
    assert (clustered(server), len(local(node))) == ([], 1)
    assert Holds(str(node.folder)).all() == []


@pytest.mark.parametrize(("before", "after"), [(LOCAL, CLUSTER), (CLUSTER, LOCAL)])
def test_a_restart_that_overlaps_keeps_the_old_pods_hold_until_its_end(
    node: ClusterNode,
    launchers: Launchers,
    server: ApiServer,
    before: dict[str, Any],
    after: dict[str, Any],
) -> None:
    pod = launchers.start("vm-a")
    first = node.add(pod, ipam=before)
    # A second container of the VM: its old pod still ends.
    request = node.request(pod, ipam=after)
    again = request._replace(container_id="next")
    second = node.plugin.assign(again)
    assert given(second) == given(first)
    (lease,) = clustered(server) or local(node)
    assert {each.container_id: each.role for each in lease.holders} == {
        container_of(pod): "leaving",
        "next": "active",
    }
    node.plugin.check(
        node.request(
            pod,
            "CHECK",
            ipam=after,
            prevResult={"cniVersion": "1.1.0", "ips": [{"address": str(first.result.ips[0].address)}]},
        ),
        first.store,
    )
    # Its record says where it has got them, and they have moved since.
    node.plugin.release(node.request(pod, "DEL"), first.store)
    (lease,) = clustered(server) or local(node)
    assert [each.container_id for each in lease.holders] == ["next"]


def test_an_add_that_fails_leaves_the_lease_where_the_switch_has_put_it(
    node: ClusterNode, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    first = node.add(pod, ipam=LOCAL)
    node.delete(pod)
    request = node.request(pod, ipam=CLUSTER)
    node.plugin.revert(request, node.plugin.assign(request))
    (lease,) = clustered(server)
    assert (lease.ips, lease.holders) == (tuple(each.address.ip for each in first.result.ips), ())


def test_an_address_that_another_one_has_by_now_stays_where_it_is(
    node: ClusterNode, tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    ip = str(node.add(pod, ipam=LOCAL).result.ips[0].address.ip)
    node.delete(pod)
    other = launchers.add_pod("web")
    stranger = ClusterNode(tmp_path / "n2", directory)
    stranger.add(other, ipam=CLUSTER, runtimeConfig={"ips": [ip]})
    for _ in range(2):
        with pytest.raises(CNIError) as caught:
            node.add(pod, ipam=CLUSTER)
        assert (caught.value.code, caught.value.msg) == (
            11,
            f"VM default/vm-a ({LAN}) has {ip} in {node.folder}/leases.db, and here it is held by container "
            f"{container_of(other)} ({LAN}) of pod default/web",
        )
        assert (clustered(server), [str(each.ips[0]) for each in local(node)]) == ([], [ip])
    stranger.delete(other)
    assert str(node.add(pod, ipam=CLUSTER).result.ips[0].address.ip) == ip


def test_a_vm_that_has_other_addresses_there_by_now_gets_neither(
    node: ClusterNode, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    node.add(pod, ipam=CLUSTER, runtimeConfig={"ips": ["10.1.0.9"]})
    node.delete(pod)
    alone = ClusterNode(node.folder, None)
    alone.plugin.assign(unknown_to_kubernetes(alone, pod, runtimeConfig={"ips": ["10.1.0.8"]}))
    with pytest.raises(
        CNIError, match=r"has 10\.1\.0\.9, .* and 10\.1\.0\.8, .* release one of them"
    ) as caught:
        node.add(pod, ipam=CLUSTER)
    assert caught.value.code == 11
    assert (len(clustered(server)), len(local(node))) == (1, 1)


def test_an_address_of_a_vm_that_runs_on_another_node_does_not_come_back(
    node: ClusterNode, tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    node.add(pod, ipam=CLUSTER)
    (lease,) = leases(server)
    (key,) = lease.holder_keys.values()
    elsewhere = {"status": {"holders": {key: {"node": "far"}}}}
    server.objects.patch(VM_LEASES, "default", lease.name, elsewhere)
    with pytest.raises(CNIError) as caught:
        node.add(pod, ipam=LOCAL)
    assert caught.value.code == 11
    assert f"is in {server.url} still the address of pod {pod} on node far" in caught.value.msg
    assert (local(node), len(clustered(server))) == ([], 1)


def test_a_migrations_target_gets_the_sources_addresses_from_the_cluster(
    node: ClusterNode, tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    """Its network has gone back to leases of each node, and the source still has its own in the cluster."""
    other = ClusterNode(tmp_path / "n2", directory)
    other.add(launchers.add_pod("web"), ipam=CLUSTER)
    pod = launchers.start("vm-a")
    source = node.add(pod, ipam=CLUSTER)
    target = other.add(launchers.migrate("vm-a"), ipam=LOCAL)
    assert given(target) == given(source)
    assert [len(each.holders) for each in clustered(server)] == [1]


def test_what_was_left_by_a_kill_goes_with_the_next_add(
    node: ClusterNode, launchers: Launchers, server: ApiServer
) -> None:
    pod = launchers.start("vm-a")
    first = node.add(pod, ipam=LOCAL)
    node.delete(pod)
    left = local(node)
    node.add(pod, ipam=CLUSTER)
    # The cluster has it, and the process was killed before it ended it here.
    Sqlite(str(node.folder)).run(lambda ledger: ledger.change(None, left[0], until=0))
    node.delete(pod)
    assert given(node.add(pod, ipam=CLUSTER)) == given(first)
    assert (local(node), len(clustered(server))) == ([], 1)


def test_an_api_that_fails_takes_nothing(node: ClusterNode, launchers: Launchers, server: ApiServer) -> None:
    pod = launchers.start("vm-a")
    first = node.add(pod, ipam=LOCAL)
    node.delete(pod)
    server.inject(refuse(403), verb="create", plural="ipreservations")
    with pytest.raises(CNIError, match="403"):
        node.add(pod, ipam=CLUSTER)
    assert (clustered(server), len(local(node))) == ([], 1)
    server.clear_faults()
    assert given(node.add(pod, ipam=CLUSTER)) == given(first)
    node.delete(pod)
    # The way back: the API cannot be asked, so nothing is given that may not be right.
    server.inject(refuse(500), verb="get", plural="vmleases", times=99)
    with pytest.raises(CNIError) as caught:
        node.add(pod, ipam=LOCAL)
    assert (caught.value.code, local(node)) == (11, [])


def test_without_credentials_a_node_goes_on_with_addresses_of_its_own(
    node: ClusterNode, launchers: Launchers
) -> None:
    pod = launchers.start("vm-a")
    node.add(pod, ipam=CLUSTER)
    node.delete(pod)
    alone = ClusterNode(node.folder, None)
    with captured() as lines:
        alone.plugin.assign(unknown_to_kubernetes(alone, pod))
    assert lines == [f"VM default/vm-a ({LAN}): no credentials for the API that may have its address"]


def test_a_network_that_was_never_in_the_cluster_asks_it_for_no_lease(
    node: ClusterNode, launchers: Launchers, server: ApiServer
) -> None:
    node.add(launchers.add_pod("web"), ipam=CLUSTER, name="other")
    server.requests.clear()
    node.add(launchers.start("vm-a"), ipam=LOCAL)
    assert {each.asked.plural for each in server.requests} == {"pods", "virtualmachineinstances"}


def test_a_vm_of_the_same_name_does_not_get_what_a_former_one_had(
    node: ClusterNode, launchers: Launchers, server: ApiServer
) -> None:
    key = LeaseKey("vms", "default", "vm-a", LAN)
    former = Lease(key, (ip_address("10.1.0.77"),), vm_uid="of-the-former", since=5)
    Sqlite(str(node.folder)).run(lambda ledger: ledger.change(None, former, until=0))
    node.add(launchers.start("vm-a"), ipam=CLUSTER)
    assert clustered(server)[0].ips != former.ips
    assert local(node) == []


def test_a_target_that_finds_no_source_makes_the_network_known(
    node: ClusterNode, launchers: Launchers, server: ApiServer
) -> None:
    """The source's node takes its leases into the cluster when it sees that the network is there."""
    launchers.start("vm-a")
    with pytest.raises(CNIError, match="runs nowhere in network vms"):
        node.add(launchers.migrate("vm-a"), ipam=CLUSTER)
    assert server.objects.get(IP_NETWORKS, "", "vms")["spec"]["namespaces"] == ["default"]


@pytest.mark.parametrize("ipam", [LOCAL, CLUSTER, {**LOCAL, "dataDir": "own"}])
@pytest.mark.parametrize("has_record", [True, False])
def test_a_delete_whose_configuration_has_lost_its_keys_ends_what_the_add_began(
    node: ClusterNode,
    tmp_path: Path,
    launchers: Launchers,
    server: ApiServer,
    ipam: dict[str, Any],
    has_record: bool,
) -> None:
    """By the record's word, or without a record by what the node has."""
    own = {"dataDir": str(tmp_path / "own")} if "dataDir" in ipam else {}
    pod = launchers.start("vm-a")
    assignment = node.add(pod, ipam={**ipam, **own})
    request = node.request(pod, "DEL", ipam={"type": "static-ip"})
    node.plugin.release(request, assignment.store if has_record else None)
    (lease,) = clustered(server) or Sqlite(assignment.store.location).look(
        lambda ledger: list(ledger.leases())
    )
    assert lease.holders == ()
