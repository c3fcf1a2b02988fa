"""What pods of a node hold beside an API that has lost it, or has ended it while the node was away."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import POD
from cnvnet.ipam.store.holds import HELD, RELEASING, Hold
from cnvnet.ipam.store.kubernetes_comparison import (
    DISPUTED,
    DISPUTES,
    FENCED,
    LEASES,
    OPENED,
    REMADE,
    Compared,
)
from cnvnet.ipam.store.object_names import lease_name
from cnvnet.kube.resources import IP_RESERVATIONS, PODS, VIRTUAL_MACHINES, VM_LEASES
from tests.fakes.api_server import ApiServer, Asked, drop, refuse
from tests.fakes.kubernetes_store import Killed, disagreements
from tests.unit.ipam.store.nodes import Node, leases, reserved

BOOT = "boot"


@pytest.fixture
def nodes(server: ApiServer, tmp_path: Path) -> tuple[Node, Node]:
    one, two = (
        Node(server, tmp_path, name, direct=True, clock=lambda: 1000, new_networks="open")
        for name in ("n1", "n2")
    )
    return one, two


def compared(node: Node, scope: str = "everything") -> list[tuple[str, str]]:
    """The kinds and reasons of a look that could compare everything."""
    found: Compared = node.store.compare(BOOT, scope=scope)
    assert (found.left, found.absent) == ((), "")
    return [(each.kind, each.reason) for each in found.findings]


def run_vm(server: ApiServer, node: Node, vm: str, pod: str, **options: Any) -> Hold:
    """A pod of a VM that the API has; what it holds."""
    server.objects.put(PODS, {"metadata": {"namespace": "default", "name": pod, "uid": f"{pod}-uid"}})
    node.attach(vm, pod, f"{vm}-uid", pod=f"default/{pod}", pod_uid=f"{pod}-uid", **options)
    return held(node, pod)


def run_pod(server: ApiServer, node: Node, pod: str, **options: Any) -> Hold:
    server.objects.put(PODS, {"metadata": {"namespace": "default", "name": pod, "uid": f"{pod}-uid"}})
    node.attach_pod(pod, pod_uid=f"{pod}-uid", **options)
    return held(node, pod)


def server_holder(two: Node, server: ApiServer, lost: Hold) -> dict[str, object]:
    """The holder of a pod as its VMLease had it."""
    document = server.objects.get(VM_LEASES, "default", lease_name(lost.lease.key))
    (of_two,) = document["status"]["holders"].values()
    return {**of_two, "container": lost.container_id, "node": "n1"}


def texts(hold: Hold) -> tuple[str, ...]:
    return tuple(map(str, hold.lease.ips))


def held(node: Node, container: str) -> Hold:
    hold = node.holds.get("net", container, "eth0")
    assert hold is not None
    return hold


def lose(server: ApiServer, pod: str) -> None:
    """The pod's node is declared lost, and the API has the pod no more."""
    server.objects.delete(PODS, "default", pod, {})


def end_holder(server: ApiServer, hold: Hold) -> None:
    """As the controller does it, which the pod's node does not see."""
    patch = {"status": {"holders": {hold.holder_key: None}, "left": 1000}}
    server.objects.patch(VM_LEASES, "default", lease_name(hold.lease.key), patch)


def end_lease(server: ApiServer, hold: Hold) -> None:
    for each in reserved(server):
        if each.lease_uid == hold.lease_uid:
            server.objects.delete(IP_RESERVATIONS, "", each.name, {})
    name = lease_name(hold.lease.key)
    server.objects.delete(VM_LEASES, "default", name, {})
    server.objects.patch(VM_LEASES, "default", name, {"metadata": {"finalizers": None}})


def test_what_the_api_has_is_left_alone(server: ApiServer, nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    before = [run_vm(server, one, "web", "web-1"), run_pod(server, one, "app")]
    version = server.objects.version
    assert compared(one) == compared(one, LEASES) == []
    assert [held(one, "web-1"), held(one, "app")] == before
    assert server.objects.version == version


def test_a_lease_that_a_restored_backup_lacks_is_made_again(
    server: ApiServer, nodes: tuple[Node, Node]
) -> None:
    one, two = nodes
    server.objects.put(
        VIRTUAL_MACHINES, {"metadata": {"namespace": "default", "name": "web", "uid": "web-uid"}}
    )
    backup = server.objects.backup()
    before = run_vm(server, one, "web", "web-1")
    server.objects.restore(backup)
    assert (leases(server), reserved(server)) == ([], [])
    assert compared(one) == [(REMADE, "VM default/web (eth0) had no VMLease")]
    (lease,) = leases(server)
    assert lease.lease == before.lease
    document = server.objects.get(VM_LEASES, "default", lease.name)
    (owner,) = document["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("VirtualMachine", "web-uid")
    assert disagreements(server) == []
    now = held(one, "web-1")
    assert (now.state, now.lease_uid, now.lease) == (HELD, lease.uid, before.lease)
    assert compared(one) == []
    # And its DEL ends it, as ever.
    assert two.attach("db", "db-1").ips != before.lease.ips
    one.delete("web-1")
    assert leases(server)[0].holder_keys == {} or leases(server)[1].holder_keys == {}


def test_a_holder_that_a_restored_backup_lacks_is_made_again_though_its_pod_is_lost_as_well(
    server: ApiServer, nodes: tuple[Node, Node]
) -> None:
    one, _ = nodes
    run_vm(server, one, "web", "web-1")
    one.delete("web-1")
    backup = server.objects.backup()
    before = run_vm(server, one, "web", "web-2")
    server.objects.restore(backup)
    assert compared(one) == [(REMADE, "the VMLease of VM default/web (eth0) did not name the pod")]
    assert leases(server)[0].lease == before.lease
    assert disagreements(server) == []


def test_reservations_that_are_missing_are_made_again(server: ApiServer, nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    before = run_vm(server, one, "web", "web-1")
    for each in reserved(server):
        server.objects.delete(IP_RESERVATIONS, "", each.name, {})
    assert compared(one, LEASES) == []
    addresses = f"{before.lease.ips[0]}, {before.lease.mac}"
    assert compared(one) == [(REMADE, f"{addresses} of VM default/web (eth0) was not reserved")]
    assert disagreements(server) == []


def test_the_address_of_a_pod_that_is_no_vm_is_reserved_again(
    server: ApiServer, nodes: tuple[Node, Node]
) -> None:
    one, two = nodes
    backup = server.objects.backup()
    before = run_pod(server, one, "app")
    server.objects.restore(backup)
    (ip,) = before.lease.ips
    assert compared(one) == [(REMADE, f"{ip} was not reserved")]
    (reservation,) = reserved(server)
    assert reservation.pod is not None
    assert (reservation.address, reservation.pod.holders) == (str(ip), before.lease.holders)
    assert held(one, "app").reservations == {reservation.name: reservation.uid}
    assert two.attach_pod("other").ips != before.lease.ips
    one.delete("app")
    assert [each.address for each in reserved(server)] != [str(ip)]


def test_a_node_that_comes_back_fences_what_has_ended_until_the_lease_names_the_pod_again(
    server: ApiServer, nodes: tuple[Node, Node]
) -> None:
    one, two = nodes
    lost = run_vm(server, one, "web", "web-1")
    lose(server, "web-1")
    end_holder(server, lost)
    run_vm(server, two, "web", "web-2")
    reason = (
        "VM default/web (eth0) is in pod default/web-2 on node n2, and pod default/web-1 has ended in the "
        "Kubernetes API"
    )
    assert compared(one) == [(FENCED, reason)]
    assert (held(one, "web-1").dispute, one.holds.fenced()) == (reason, [held(one, "web-1")])
    # The same once more is nothing new, and nothing is written.
    assert compared(one) == compared(one, DISPUTES) == compared(two) == []
    holders = {lost.holder_key: server_holder(two, server, lost)}
    server.objects.patch(VM_LEASES, "default", lease_name(lost.lease.key), {"status": {"holders": holders}})
    assert compared(one, DISPUTES) == [(OPENED, "")]
    assert one.holds.disputed() == []


def test_a_vm_that_is_stopped_since_its_node_was_lost_is_fenced_there(
    server: ApiServer, nodes: tuple[Node, Node]
) -> None:
    one, _ = nodes
    lost = run_vm(server, one, "web", "web-1")
    lose(server, "web-1")
    end_holder(server, lost)
    ((kind, reason),) = compared(one)
    assert (kind, "has no pod any more: pod default/web-1 has ended" in reason) == (FENCED, True)
    one.delete("web-1")
    assert one.holds.all() == []


def test_a_vm_that_was_deleted_since_its_node_was_lost_is_fenced_where_its_address_is_anothers(
    server: ApiServer, nodes: tuple[Node, Node]
) -> None:
    one, two = nodes
    lost = run_vm(server, one, "web", "web-1")
    lose(server, "web-1")
    end_lease(server, lost)
    other = run_vm(server, two, "db", "db-1", ips=texts(lost))
    assert other.lease.ips == lost.lease.ips
    (ip,) = lost.lease.ips
    reason = f"{ip} of VM default/web (eth0) is VM default/db (eth0)'s in pod default/db-1 on node n2, too"
    assert compared(one) == [(FENCED, reason)]
    assert [each.lease.ips for each in leases(server) if each.lease is not None] == [lost.lease.ips]
    # Its address is free again: nothing says that it is not its own.
    two.delete("db-1")
    end_lease(server, other)
    assert [kind for kind, _ in compared(one, DISPUTES)] == [REMADE]
    assert one.holds.disputed() == []


def test_a_pod_that_is_no_vm_is_fenced_where_its_address_is_anothers(
    server: ApiServer, nodes: tuple[Node, Node]
) -> None:
    one, two = nodes
    lost = run_pod(server, one, "db-0")
    lose(server, "db-0")
    for name, uid in lost.reservations.items():
        server.objects.delete(IP_RESERVATIONS, "", name, {"preconditions": {"uid": uid}})
    # The StatefulSet's new pod has the name, and the address by chance.
    server.objects.put(PODS, {"metadata": {"namespace": "default", "name": "db-0", "uid": "another"}})
    two.attach_pod("db-0-again", pod="default/db-0", pod_uid="another", ips=texts(lost))
    again = held(two, "db-0-again")
    assert again.lease.ips == lost.lease.ips
    assert [kind for kind, _ in compared(one)] == [FENCED]
    (only,) = reserved(server)
    assert {only.name: only.uid} == again.reservations


def test_of_two_claims_to_an_address_the_older_one_stays(
    server: ApiServer, nodes: tuple[Node, Node]
) -> None:
    one, two = nodes
    backup = server.objects.backup()
    older = run_vm(server, one, "web", "web-1")
    server.objects.restore(backup)
    server.objects.put(PODS, {"metadata": {"namespace": "default", "name": "web-1", "uid": "web-1-uid"}})
    two.now = 2000
    run_vm(server, two, "db", "db-1", ips=texts(older))
    ((kind, reason),) = compared(one)
    assert (kind, "VM default/db (eth0)'s in pod default/db-1 on node n2" in reason) == (DISPUTED, True)
    assert (one.holds.fenced(), [each.lease for each in one.holds.disputed()]) == ([], [older.lease])
    assert compared(two) == []


def test_of_two_claims_to_an_address_the_younger_one_is_fenced(
    server: ApiServer, nodes: tuple[Node, Node]
) -> None:
    one, two = nodes
    older = run_vm(server, two, "db", "db-1")
    backup = server.objects.backup()
    end_lease(server, older)
    one.now = 2000
    run_vm(server, one, "web", "web-1", ips=texts(older))
    server.objects.restore(backup)
    server.objects.put(PODS, {"metadata": {"namespace": "default", "name": "web-1", "uid": "web-1-uid"}})
    assert [kind for kind, _ in compared(one)] == [FENCED]


def test_a_pod_of_another_boot_is_no_more(server: ApiServer, nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    backup = server.objects.backup()
    run_vm(server, one, "web", "web-1")
    server.objects.restore(backup)
    assert one.store.compare("another boot") == Compared()


def test_an_api_that_is_away_ends_the_look_and_says_so(server: ApiServer, nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    run_vm(server, one, "web", "web-1")
    run_vm(server, one, "db", "db-1")
    server.inject(refuse(503), times=9)
    found = one.store.compare(BOOT)
    assert (found.findings, found.left) == ((), ())
    assert "503" in found.absent


@pytest.mark.parametrize("plural", ["vmleases", "pods"])
def test_an_api_that_does_not_know_the_agents_rights_yet_is_away(
    server: ApiServer, nodes: tuple[Node, Node], plural: str
) -> None:
    """A server that has just begun answers 403 for a moment; none of it says that something is missing."""
    one, _ = nodes
    backup = server.objects.backup()
    before = run_vm(server, one, "web", "web-1")
    run_pod(server, one, "app")
    server.objects.restore(backup)
    server.inject(refuse(403, "Forbidden"), verb="get", plural=plural, times=99)
    found = one.store.compare(BOOT)
    assert (found.left, "403" in found.absent) == ((), True)
    server.clear_faults()
    assert {kind for kind, _ in compared(one)} == {REMADE}
    assert leases(server)[0].lease == before.lease


def test_what_cannot_be_compared_keeps_no_other_from_it(server: ApiServer, nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    backup = server.objects.backup()
    run_vm(server, one, "web", "web-1")
    odd = run_vm(server, one, "odd", "odd-1")
    document = server.objects.get(VM_LEASES, "default", lease_name(odd.lease.key))
    server.objects.restore(backup)
    server.objects.put(VM_LEASES, document | {"spec": document["spec"] | {"ips": "none"}})
    found = one.store.compare(BOOT)
    assert [each.kind for each in found.findings] == [REMADE]
    assert ["ips" in each for each in found.left] == [True]


@pytest.mark.parametrize("release", ["", POD])
def test_a_pod_that_ends_meanwhile_is_not_made_again(
    server: ApiServer, nodes: tuple[Node, Node], release: str
) -> None:
    one, _ = nodes
    options = {"release": release} if release else {}
    run_vm(server, one, "web", "web-1", **options)

    def end(_: ApiServer, __: Asked) -> None:
        one.delete("web-1")

    # The look has read the hold, and asks for the lease.
    server.inject(end, verb="get", plural="vmleases")
    found = one.store.compare(BOOT)
    assert found.findings == ()
    assert one.holds.all() == []
    assert [each.holder_keys for each in leases(server)] == ([] if release else [{}])
    assert disagreements(server) == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("request_number", range(10))
def test_an_agent_that_is_killed_while_it_makes_a_lease_again_has_lost_nothing(
    server: ApiServer, nodes: tuple[Node, Node], request_number: int, *, after: bool
) -> None:
    one, two = nodes
    backup = server.objects.backup()
    before = run_vm(server, one, "web", "web-1")
    pod = run_pod(server, one, "app")
    server.objects.restore(backup)
    with suppress(Killed):
        one.killed_at(request_number, after=after).store.compare(BOOT)
    healed = one.restart()
    healed.store.drain()
    assert {each.container_id: each.state for each in healed.holds.all()} == {"web-1": HELD, "app": HELD}
    compared(healed)
    assert compared(healed) == []
    assert [each.lease for each in leases(server)] == [before.lease]
    assert [each.address for each in reserved(server) if each.pod is not None] == [str(pod.lease.ips[0])]
    assert disagreements(server) == []
    assert two.attach("db", "db-1").ips not in (before.lease.ips, pod.lease.ips)
    healed.delete("web-1")
    healed.delete("app")
    assert healed.holds.all() == []


def test_a_lost_answer_makes_no_second_lease(server: ApiServer, tmp_path: Path) -> None:
    one = Node(server, tmp_path, clock=lambda: 1000)
    backup = server.objects.backup()
    before = run_vm(server, one, "web", "web-1")
    server.objects.restore(backup)
    server.inject(drop, verb="create", plural="vmleases", after=True)
    assert [kind for kind, _ in compared(one)] == [REMADE]
    assert [each.lease for each in leases(server)] == [before.lease]
    assert disagreements(server) == []


def test_a_hold_that_is_being_released_is_not_made_again(
    server: ApiServer, nodes: tuple[Node, Node]
) -> None:
    one, _ = nodes
    backup = server.objects.backup()
    run_vm(server, one, "web", "web-1")
    server.inject(refuse(503), times=99)
    one.delete("web-1")
    server.clear_faults()
    server.objects.restore(backup)
    assert [each.state for each in one.holds.all()] == [RELEASING]
    assert compared(one) == []
    assert leases(server) == []


def test_a_lease_of_another_vm_of_the_name_is_left_to_it(
    server: ApiServer, nodes: tuple[Node, Node]
) -> None:
    one, two = nodes
    backup = server.objects.backup()
    run_vm(server, one, "web", "web-1")
    server.objects.restore(backup)
    two.attach("web", "web-2", "another-uid", pod="default/web-2", pod_uid="web-2-uid")
    ((kind, reason),) = compared(one)
    assert (kind, "pod default/web-1 has ended" in reason) == (FENCED, True)
    server.objects.put(PODS, {"metadata": {"namespace": "default", "name": "web-1", "uid": "web-1-uid"}})
    two.delete("web-2")
    with pytest.raises(CNIError):
        two.attach("web", "web-2", "web-uid", ips=("10.0.0.77",))
    ((kind, reason),) = compared(one)
    assert (kind, reason.startswith("the VMLease of VM default/web (eth0) of")) == (DISPUTED, True)
