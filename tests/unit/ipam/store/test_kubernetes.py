"""The Kubernetes store: how often it asks, whose pods it leaves alone, and what it says."""

from __future__ import annotations

import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import POD, Lease, LeaseKey
from cnvnet.ipam.store import object_names
from cnvnet.ipam.store.holds import RELEASING, Holds
from cnvnet.ipam.store.kubernetes import KubernetesStore
from cnvnet.ipam.store.lease_owner import LeaseOwner
from cnvnet.ipam.store.protocol import Ledger
from cnvnet.kube.resources import IP_NETWORKS, IP_RESERVATIONS, VM_LEASES
from cnvnet.vm.identity import ACTIVE, TARGET
from tests.fakes.api_server import Action, ApiServer, Asked, drop, refuse, until_asked
from tests.fakes.callers import in_the_agent
from tests.fakes.kubernetes_store import disagreements
from tests.unit.ipam.store.conformance import a_pool, roles
from tests.unit.ipam.store.nodes import Node, asked, leases, reserved

# -- how often the API is asked


def test_a_first_add_makes_a_lease_and_a_reservation_for_each_family_and_the_mac(
    server: ApiServer, node: Node
) -> None:
    node.attach("vm1", "c1", given=a_pool("10.0.0.0/24", "fd00::/64"))
    assert asked(server) == ["get vmleases", "create vmleases", *["create ipreservations"] * 3]


def test_in_the_agent_a_vms_addresses_are_reserved_at_once(server: ApiServer, node: Node) -> None:
    """The first one is answered when all were asked for, and not before."""
    server.inject(until_asked("create", "ipreservations", 3), verb="create", plural="ipreservations")
    with in_the_agent():
        lease = node.attach("vm1", "c1", given=a_pool("10.0.0.0/24", "fd00::/64"))
    assert asked(server) == ["get vmleases", "create vmleases", *["create ipreservations"] * 3]
    assert {each.address for each in reserved(server)} == {*map(str, lease.ips), lease.mac}


def test_in_the_agent_an_add_that_fails_takes_back_what_was_asked_for_beside_it(
    server: ApiServer, node: Node
) -> None:
    refusal = refuse(403, "Forbidden", "no")
    server.inject(refusal, verb="create", plural="ipreservations")
    with in_the_agent(), pytest.raises(CNIError, match="no"):
        node.attach("vm1", "c1", given=a_pool("10.0.0.0/24", "fd00::/64"))
    assert (leases(server), reserved(server)) == ([], [])
    assert node.holds.all() == []


def test_a_pod_of_a_vm_is_ended_by_one_patch_and_comes_back_by_one(server: ApiServer, node: Node) -> None:
    node.attach("vm1", "c1", "uid")
    asked(server)
    node.delete("c1")
    assert asked(server) == ["patch vmleases"]
    for container in ("c2", "c3", "c4"):
        node.attach("vm1", container, "uid")
        assert asked(server) == ["get vmleases", "patch vmleases"]


def test_a_lease_that_has_changed_since_its_first_add_is_not_settled_by_its_pods_end(
    server: ApiServer, node: Node
) -> None:
    """What the DEL of the first pod knows is true of the version that its ADD has left, and of no other."""
    lease = node.attach("vm1", "c1", "uid")
    name = object_names.lease_name(lease.key)
    server.objects.patch(VM_LEASES, lease.key.namespace, name, {"spec": {"cooldown": 9}})
    asked(server)
    node.delete("c1")
    assert asked(server) == ["patch vmleases"] * 2
    document = server.objects.get(VM_LEASES, lease.key.namespace, name)
    assert document["spec"]["pending"] == [*map(str, lease.ips), lease.mac]
    assert not document["status"].get("holders")
    # The next ADD looks at the two reservations.
    node.attach("vm1", "c2", "uid")
    assert asked(server) == ["get vmleases", *["get ipreservations"] * 2, "patch vmleases"]


def test_a_lease_with_an_address_in_dispute_is_not_settled_by_its_pods_end(
    server: ApiServer, node: Node
) -> None:
    lease = node.attach("vm1", "c1", "uid")
    (hold,) = node.holds.all()
    assert hold.is_unsettled
    node.holds.write(hold._replace(dispute="10.0.0.5 is another one's"))
    node.delete("c1")
    document = server.objects.get(VM_LEASES, lease.key.namespace, object_names.lease_name(lease.key))
    assert document["spec"]["pending"] == [*map(str, lease.ips), lease.mac]
    assert not document["status"].get("holders")


def test_a_repeated_request_to_end_the_first_pod_ends_it(server: ApiServer, node: Node) -> None:
    """Its answer is lost, and what it was about is another version by then: its own."""
    lease = node.attach("vm1", "c1", "uid")
    server.inject(drop, verb="patch", plural="vmleases", after=True)
    node.delete("c1")
    document = server.objects.get(VM_LEASES, lease.key.namespace, object_names.lease_name(lease.key))
    assert (document["spec"]["pending"], document["status"].get("holders")) == ([], {})


def test_a_target_on_another_node_joins_by_one_patch(server: ApiServer, node: Node, tmp_path: Path) -> None:
    other = Node(server, tmp_path, "n2")
    node.attach("vm1", "c1", "uid")
    node.delete("c1")
    source = node.attach("vm1", "c2", "uid")
    asked(server)
    target = other.attach("vm1", "c3", "uid", role=TARGET)
    assert asked(server) == ["get vmleases", "patch vmleases"]
    assert (target.ips, target.mac) == (source.ips, source.mac)
    assert roles(target) == {"c2": ACTIVE, "c3": TARGET}
    node.delete("c2")
    assert roles(other.lease("vm1")) == {"c3": ACTIVE}


def test_a_pod_that_is_no_vm_is_one_object_for_each_family(server: ApiServer, node: Node) -> None:
    node.attach_pod("c1", given=a_pool("10.0.0.0/24", "fd00::/64"))
    assert asked(server) == ["create ipreservations"] * 2
    node.delete("c1")
    assert asked(server) == ["delete ipreservations"] * 2
    assert reserved(server) == []


def test_a_mac_that_a_pod_asks_for_is_reserved_too(server: ApiServer, node: Node) -> None:
    node.attach_pod("c1", mac="0a:63:00:00:00:01")
    assert node.refusal("vm1", "c2", mac="0a:63:00:00:00:01").msg == (
        "args.cni.mac: 0a:63:00:00:00:01 is held by container c1 (eth0) of pod default/c1"
    )
    node.delete("c1")
    node.attach("vm1", "c2", mac="0a:63:00:00:00:01")


def test_two_hundred_adds_of_a_half_full_network_list_nothing(server: ApiServer, node: Node) -> None:
    given = a_pool("10.0.0.0/24")
    for number in range(200):
        node.attach(f"vm{number}", f"c{number}", given=given)
    assert len({each.lease.ips for each in leases(server) if each.lease}) == 200
    assert server.count("list") == 0


def test_a_stranger_to_a_crowded_network_lists_one_block(
    server: ApiServer, node: Node, tmp_path: Path
) -> None:
    given = a_pool("10.0.0.0/23")
    for number in range(250):
        node.attach_pod(f"c{number}", given=given)
    other = Node(server, tmp_path, "n2")
    asked(server)
    for number in range(30):
        other.attach(f"vm{number}", f"d{number}", given=given)
    assert server.count("list") <= 6
    assert disagreements(server) == []


def test_check_and_gc_with_nothing_to_end_do_not_ask_the_api(server: ApiServer, node: Node) -> None:
    lease = node.attach("vm1", "c1")
    asked(server)

    def held(ledger: Ledger) -> Lease | None:
        return ledger.held_by("net", "c1", "eth0")

    assert node.store.look(held) == lease
    node.collect("c1", node="n1")
    assert node.store.knows("net", "c1", "eth0")
    assert asked(server) == []


# -- pods of other nodes


def test_no_call_of_a_node_ends_a_holder_of_another(server: ApiServer, node: Node, tmp_path: Path) -> None:
    other = Node(server, tmp_path, "n2")
    for number in range(5):
        node.attach(f"vm{number}", f"c{number}", "uid")
    before = [node.lease(f"vm{number}") for number in range(5)]
    # A full pool, whose holders all look dead from here: another boot, and their paths lead nowhere.
    other.dead = {"d0"}
    error = other.refusal("vm9", "d9")
    assert (error.code, error.msg) == (
        11,
        "network net: all 5 addresses of 10.0.0.1-10.0.0.7 are taken: 5 in use: "
        "give the network a wider range",
    )
    other.collect(node="n2")
    other.restart().store.drain()
    assert other.refusal("vm1", "d1", "another").msg == (
        "VM default/vm1 (eth0): another VM of this name (UID uid) still has "
        f"{before[1].ips[0] if before[1] else ''} in pod default/virt-launcher-vm1-c1"
    )
    assert [node.lease(f"vm{number}") for number in range(5)] == before


def test_a_vm_that_comes_back_on_another_node_makes_its_former_pod_leave(
    server: ApiServer, node: Node, tmp_path: Path
) -> None:
    other = Node(server, tmp_path, "n2")
    node.attach("vm1", "c1", "uid")
    before = server.objects.get(VM_LEASES, "default", leases(server)[0].name)["status"]["holders"]["c1.eth0"]
    lease = other.attach("vm1", "c2", "uid")
    assert roles(lease) == roles(node.lease("vm1")) == {"c1": "leaving", "c2": ACTIVE}
    # The entry of another node's pod is as that node has written it.
    after = server.objects.get(VM_LEASES, "default", leases(server)[0].name)["status"]["holders"]["c1.eth0"]
    assert after == before


# -- without the API


def test_a_delete_succeeds_without_the_api_and_reaches_it_later(server: ApiServer, node: Node) -> None:
    node.attach("vm1", "c1")
    node.attach("vm2", "c2", release=POD)
    node.attach_pod("c3")
    server.stop()
    for container in ("c1", "c2", "c3"):
        node.delete(container)
        node.delete(container)
    assert {each.state for each in node.holds.all()} == {RELEASING}
    assert len(node.restart().store.drain().left) == 3
    server.start()
    time.sleep(1.1)  # the client asks a server that has refused a connection no sooner
    assert len(node.restart().store.drain().done) == 3
    assert node.holds.all() == []
    assert roles(node.lease("vm1")) == {}
    assert [each.key.vm for each in leases(server)] == ["vm1"]
    assert len(reserved(server)) == 2
    assert disagreements(server) == []


def test_an_add_without_the_api_names_the_server_and_leaves_no_hold(server: ApiServer, node: Node) -> None:
    server.stop()
    with pytest.raises(CNIError, match=server.url) as caught:
        node.attach("vm1", "c1")
    assert caught.value.code == 11
    assert node.holds.all() == []


def test_a_forbidden_write_is_an_error_with_nothing_left(server: ApiServer, node: Node) -> None:
    server.inject(refuse(403, "Forbidden", "no"), verb="create", plural="ipreservations", skip=1)
    with pytest.raises(CNIError, match="403 Forbidden: no"):
        node.attach("vm1", "c1")
    assert (leases(server), reserved(server), node.holds.all()) == ([], [], [])


def test_what_cannot_be_undone_at_once_is_undone_by_the_next_drain(server: ApiServer, node: Node) -> None:
    server.inject(
        lambda server, _: server.inject(refuse(500), times=99), verb="create", plural="vmleases", after=True
    )
    with pytest.raises(CNIError):
        node.attach("vm1", "c1")
    server.clear_faults()
    assert node.restart().store.drain().left == ()
    assert (reserved(server), node.holds.all(), roles(node.lease("vm1"))) == ([], [], {})


def test_the_node_is_ready_if_it_can_write_its_holds(server: ApiServer, node: Node, tmp_path: Path) -> None:
    server.stop()
    node.store.ready()
    (tmp_path / "file").write_text("")
    broken = KubernetesStore(node.client, Holds(str(tmp_path / "file")), "n1")
    with pytest.raises(CNIError, match="cannot be written") as caught:
        broken.ready()
    assert caught.value.code == 50


# -- leases that are being deleted, and their owners


def test_a_vm_that_is_recreated_waits_for_the_lease_of_its_namesake(server: ApiServer, node: Node) -> None:
    node.attach("vm1", "c1", "old", ips=("10.0.0.5",))
    (lease,) = leases(server)
    node.client.delete(VM_LEASES, lease.name, "default")
    error = node.refusal("vm1", "c2", "new")
    assert (error.code, error.msg) == (
        11,
        "VM default/vm1 (eth0): another VM of this name (UID old) still has 10.0.0.5 in pod "
        "default/virt-launcher-vm1-c1",
    )
    node.delete("c1")
    assert node.refusal("vm1", "c2", "new").msg == (
        "VM default/vm1 (eth0): its former lease is being deleted and still has 10.0.0.5"
    )


def test_a_lease_goes_with_its_owner_unless_it_is_never_released(server: ApiServer, node: Node) -> None:
    owner = LeaseOwner("kubevirt.io/v1", "VirtualMachine", "vm1", "uid")
    node.store = node.store.for_call(owner)
    node.attach("vm1", "c1", "uid")

    def owners() -> Any:
        return server.objects.get(VM_LEASES, "default", leases(server)[0].name)["metadata"].get(
            "ownerReferences"
        )

    assert owners() == [
        {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "vm1", "uid": "uid"}
    ]
    node.attach("vm1", "c2", "uid", release="never")
    assert owners() is None
    node.attach("vm1", "c3", "uid")
    assert len(owners()) == 1


def test_every_lease_keeps_its_object_until_its_addresses_are_freed(server: ApiServer, node: Node) -> None:
    node.attach("vm1", "c1", release=POD)
    (made,) = leases(server)
    assert made.finalizers == (object_names.FINALIZER,)
    asked(server)
    node.delete("c1")
    calls = asked(server)
    assert calls[0] == "get vmleases"
    assert calls[1] == "delete vmleases"
    assert calls[-1] == "patch vmleases"
    assert (leases(server), reserved(server)) == ([], [])


# -- networks


def test_a_network_is_its_first_namespaces(server: ApiServer, node: Node) -> None:
    node.attach("vm1", "c1")
    made = server.objects.get(IP_NETWORKS, "", "net")
    assert made["spec"] == {"namespaces": ["default"]}
    other = LeaseKey("net", "b", "vm1", "eth0")
    error = node.refusal("", "c2", key=other, pod="b/p")
    assert (error.code, error.msg) == (
        7,
        'network net: namespace b may not use it: IPNetwork net admits default: add "- b" to its '
        "spec.namespaces (kubectl edit ipnetwork net)",
    )
    node.client.patch(IP_NETWORKS, "net", {"spec": {"namespaces": ["default", "b"]}})
    node.attach("", "c2", key=other, pod="b/p")


@pytest.mark.parametrize(("option", "namespaces"), [("open", ["*"]), ("refuse", None)])
def test_an_option_says_whose_a_new_network_is(
    server: ApiServer, tmp_path: Path, option: str, namespaces: list[str] | None
) -> None:
    node = Node(server, tmp_path, new_networks=option)
    if namespaces is None:
        with pytest.raises(CNIError, match="there is no IPNetwork net, and agents make none here"):
            node.attach("vm1", "c1")
        assert (leases(server), reserved(server), node.holds.all()) == ([], [], [])
    else:
        node.attach("vm1", "c1")
        assert server.objects.get(IP_NETWORKS, "", "net")["spec"]["namespaces"] == namespaces


def test_a_network_gives_out_its_ranges_only(server: ApiServer, node: Node) -> None:
    spec = {"namespaces": ["*"], "ranges": ["10.0.0.0/29", "10.0.2.1-10.0.2.9"]}
    node.client.create(IP_NETWORKS, {"metadata": {"name": "net"}, "spec": spec})
    node.attach("vm1", "c1")
    with pytest.raises(CNIError, match=r"IPNetwork net does not give out 10\.0\.1\.2-10\.0\.1\.6") as caught:
        node.attach("vm2", "c2", given=a_pool("10.0.1.0/29"))
    assert caught.value.code == 7
    assert [each.key.vm for each in leases(server)] == ["vm1"]


def test_a_namespace_has_as_many_addresses_as_the_network_grants(server: ApiServer, node: Node) -> None:
    spec = {"namespaces": ["*"], "maxPerNamespace": 2}
    node.client.create(IP_NETWORKS, {"metadata": {"name": "net"}, "spec": spec})
    given = a_pool("10.0.0.0/29", "fd00::/64")
    node.attach("vm1", "c1", given=given)
    node.attach_pod("c2", given=given)
    with pytest.raises(CNIError) as caught:
        node.attach("vm3", "c3", given=given)
    assert (caught.value.code, caught.value.msg) == (
        11,
        "network net: namespace default has 2 of 2 addresses that IPNetwork net grants it: delete a VM, "
        "or raise its spec.maxPerNamespace",
    )
    node.attach("", "c4", key=LeaseKey("net", "b", "vm", "eth0"), pod="b/p", given=given)
    assert disagreements(server) == []


# -- addresses that cool down


def test_an_address_cools_down_in_its_lease_and_is_another_ones_after_that(
    server: ApiServer, node: Node
) -> None:
    node.attach("vm1", "c1", "uid", release=POD, cooldown=60, ips=("10.0.0.5",))
    node.delete("c1")
    (kept,) = leases(server)
    assert (kept.lease, [str(each.ip) for each in kept.cooling]) == (None, ["10.0.0.5"])
    assert [each.address for each in reserved(server)] == ["10.0.0.5"]
    assert "is kept free for another 60 s" in node.refusal("vm2", "c2", ips=("10.0.0.5",)).msg
    node.now += 60
    node.attach("vm2", "c2", ips=("10.0.0.5",))
    # The VM that had it comes back, and cannot have it.
    assert node.attach("vm1", "c3", "uid").ips != (ip_address("10.0.0.5"),)
    assert disagreements(server) == []


def test_a_pods_address_that_has_cooled_down_is_freed_by_its_node(server: ApiServer, node: Node) -> None:
    node.attach_pod("c1", cooldown=60)
    node.delete("c1")
    assert [each.until for each in reserved(server)] == [1060]
    healed = node.restart()
    healed.store.drain()
    assert len(reserved(server)) == 1
    node.now = healed.now = 1060
    assert len(healed.store.drain().done) == 1
    assert (reserved(server), node.holds.all()) == ([], [])


# -- what admission leaves to the controller


def test_a_reservation_says_which_node_has_made_it_whatever_node_goes_on_with_it(
    server: ApiServer, node: Node, tmp_path: Path
) -> None:
    other = Node(server, tmp_path, "n2")
    node.attach("vm1", "c1", "uid")
    node.delete("c1")
    # The address is confirmed, and the MAC with it.
    other.attach("vm1", "c2", "uid")
    made = server.objects.matching(IP_RESERVATIONS, "", lambda _: True)
    assert [each["spec"]["node"] for each in made] == ["n1", "n1"]


def keep_of(node: str) -> Action:
    """Refuses the deletion of what a node has reserved, as the policy does for agents of others."""

    def action(server: ApiServer, asked: Asked) -> None:
        for each in server.objects.matching(IP_RESERVATIONS, "", lambda _: True):
            if each["metadata"]["name"] == asked.name and each["spec"]["node"] == node:
                refuse(403, "Forbidden", f"n2 did it to one of {node}")(server, asked)

    return action


def test_what_another_node_has_reserved_counts_as_taken_until_the_controller_frees_it(
    server: ApiServer, node: Node, tmp_path: Path
) -> None:
    other = Node(server, tmp_path, "n2")
    node.attach("vm1", "c1", "uid", ips=("10.0.0.5",))
    node.delete("c1")
    server.inject(keep_of("n1"), verb="delete", plural="ipreservations", times=99)
    assert other.attach("vm1", "c2", "uid", ips=("10.0.0.6",)).ips == (ip_address("10.0.0.6"),)
    with pytest.raises(CNIError, match=r"10\.0\.0\.5 .*until the controller frees it"):
        other.attach("vm2", "c3", "uid", ips=("10.0.0.5",))
    assert other.attach("vm2", "c4", "uid").ips
    server.clear_faults()
    assert node.attach("vm3", "c5", "uid", ips=("10.0.0.5",)).ips == (ip_address("10.0.0.5"),)
