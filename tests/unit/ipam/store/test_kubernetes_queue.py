"""What the Kubernetes store has queued, and the calls that come while it is worked off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import POD
from cnvnet.ipam.store import object_names
from cnvnet.ipam.store.holds import ADDING, HELD, RELEASING, Hold
from cnvnet.kube.resources import VM_LEASES
from tests.fakes.api_objects import Objects
from tests.fakes.api_server import ApiServer, Asked, black_hole, drop, refuse
from tests.fakes.kubernetes_store import Killed, disagreements
from tests.unit.ipam.store.conformance import a_pool, roles
from tests.unit.ipam.store.nodes import Node, reserved


@pytest.fixture
def node(server: ApiServer, tmp_path: Path) -> Node:
    return Node(server, tmp_path, direct=True, clock=lambda: 1000)


def add_a_vm(node: Node) -> None:
    node.attach("vm1", "c1")


def add_a_vm_until_its_pod_ends(node: Node) -> None:
    node.attach("vm1", "c1", release=POD)


def add_a_pod(node: Node) -> None:
    node.attach_pod("c1")


ADDS = [add_a_vm, add_a_vm_until_its_pod_ends, add_a_pod]


def queue(node: Node, server: ApiServer, *containers: str) -> None:
    """DELs of which the API does not hear."""
    server.inject(refuse(503), times=99)
    for each in containers:
        node.delete(each)
    server.clear_faults()


def in_this_order(node: Node, monkeypatch: pytest.MonkeyPatch, *states: str) -> None:
    """A look at the folder finds the holds of these states first."""
    found: Callable[[str | None], list[Hold]] = node.holds.all

    def sort(network: str | None = None) -> list[Hold]:
        return sorted(found(network), key=lambda each: states.index(each.state))

    monkeypatch.setattr(node.holds, "all", sort)


@pytest.mark.parametrize("add", ADDS)
def test_an_add_that_ends_while_the_queue_is_worked_off_keeps_what_it_got(
    server: ApiServer, node: Node, monkeypatch: pytest.MonkeyPatch, add: Callable[[Node], None]
) -> None:
    node.attach("vm0", "c0")
    queue(node, server, "c0")
    begun, may_end = threading.Event(), threading.Event()

    def wait(_: ApiServer, __: Asked) -> None:
        begun.set()
        may_end.wait(10)

    server.inject(wait, verb="create", plural="ipreservations")
    adding = threading.Thread(target=add, args=(node,))
    adding.start()
    assert begun.wait(10)

    def let_it_end(_: ApiServer, __: Asked) -> None:
        may_end.set()
        adding.join(10)

    # The release of c0, which was queued.
    server.inject(let_it_end, verb="patch", plural="vmleases")
    in_this_order(node, monkeypatch, RELEASING, ADDING, HELD)
    assert node.restart().store.drain().left == ()
    assert not adding.is_alive()
    assert [(each.container_id, each.state) for each in node.holds.all()] == [("c1", HELD)]
    ensure_c1_has_its_addresses(node, server, add)


@pytest.mark.parametrize("add", ADDS)
@pytest.mark.parametrize("request_number", range(8))
def test_an_interface_that_comes_back_during_its_release_has_what_its_add_got(
    server: ApiServer, node: Node, add: Callable[[Node], None], request_number: int
) -> None:
    server.objects = Objects()
    add(node)
    queue(node, server, "c1")
    refusals: list[CNIError] = []

    def come_back(_: ApiServer, __: Asked) -> None:
        try:
            add(node)
        except CNIError as e:
            refusals.append(e)

    server.inject(come_back, skip=request_number)
    healed = node.restart()
    assert healed.store.drain().left == ()
    server.clear_faults()
    if refusals:
        # The runtime asks again.
        assert [each.code for each in refusals] == [11]
    if not node.holds.all() or refusals:
        assert healed.store.drain().left == ()
        add(node)
    ensure_c1_has_its_addresses(node, server, add)


def ensure_c1_has_its_addresses(node: Node, server: ApiServer, add: Callable[[Node], None]) -> None:
    assert [(each.container_id, each.state) for each in node.holds.all()] == [("c1", HELD)]
    assert disagreements(server) == []
    if add is add_a_pod:
        (hold,) = node.holds.all()
        found = [each for each in reserved(server) if each.pod is not None]
        assert [each.address for each in found] == [str(ip) for ip in hold.lease.ips]
        assert {each.name: each.uid for each in found} == hold.reservations
    else:
        assert roles(node.lease("vm1")) == {"c1": "active"}


def test_a_pod_that_comes_back_does_not_count_on_what_its_release_has_freed(
    server: ApiServer, node: Node
) -> None:
    both = a_pool("10.0.0.0/29", "fd00::/64")
    had = node.attach_pod("c1", given=both).ips
    server.inject(refuse(503), verb="delete", skip=1)
    node.delete("c1")
    assert [each.state for each in node.holds.all()] == [RELEASING]
    (left,) = (each.address for each in reserved(server))
    freed = next(str(ip) for ip in had if str(ip) != left)
    node.attach_pod("c2", given=both, ips=(freed,))
    node.attach_pod("c1", given=both)
    given = [str(ip) for each in node.holds.all() for ip in each.lease.ips]
    assert len(given) == len({*given}) == 4
    assert sorted(given) == sorted(each.address for each in reserved(server))


def test_a_pods_address_cools_down_though_its_release_was_queued(server: ApiServer, node: Node) -> None:
    node.attach_pod("c1", cooldown=60)
    queue(node, server, "c1")
    healed = node.restart()
    healed.store.drain()
    assert [each.until for each in reserved(server)] == [1060]
    node.now = healed.now = 1060
    healed.store.drain()
    assert (reserved(server), node.holds.all()) == ([], [])


def test_an_address_that_no_pod_has_used_does_not_cool_down(server: ApiServer, node: Node) -> None:
    with pytest.raises(Killed):
        node.killed_at(2, after=True).attach_pod("c1", cooldown=60)
    assert len(reserved(server)) == 1
    node.restart().store.drain()
    assert (reserved(server), node.holds.all()) == ([], [])


def test_a_lease_that_cannot_be_read_keeps_no_pod_from_ending_and_no_other_from_being_released(
    server: ApiServer, node: Node
) -> None:
    odd = object_names.lease_name(node.attach("vm1", "c1", release=POD).key)
    node.attach("vm2", "c2", release=POD)
    queue(node, server, "c2")
    server.objects.patch(VM_LEASES, "default", odd, {"spec": {"cooldown": "as a newer version has it"}})
    server.inject(refuse(503), verb="patch", plural="vmleases")
    node.delete("c1")
    drained = node.restart().store.drain()
    assert [each.container_id for each in drained.done] == ["c2"]
    assert ["cooldown: expected an integer" in each for each in drained.left] == [True]
    assert [each.container_id for each in node.holds.all()] == ["c1"]


def test_an_api_that_says_nothing_is_asked_twice_in_one_look(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty holds are not thirty times as long a wait, and all of them are released when it is back."""
    node = Node(server, tmp_path)
    for number in range(5):
        node.attach(f"vm{number}", f"c{number}")
    queue(node, server, *(f"c{number}" for number in range(5)))
    monkeypatch.setattr("cnvnet.ipam.store.kubernetes._DRAIN_SECONDS", 0.2)
    server.inject(black_hole, times=99)
    server.requests.clear()
    left = node.store.drain().left
    assert len(left) == 5
    assert sum("no answer in time" in each for each in left) == 2
    assert sum("does not answer" in each for each in left) == 3
    # Each once more on a fresh connection, but for a request that has no time left for that.
    assert server.count() <= 4
    server.clear_faults()
    assert len(node.store.drain().done) == 5


def test_a_hold_that_alone_gets_no_answer_keeps_no_other_from_being_released(
    server: ApiServer, tmp_path: Path
) -> None:
    node = Node(server, tmp_path)
    for number in range(4):
        node.attach(f"vm{number}", f"c{number}")
    queue(node, server, *(f"c{number}" for number in range(4)))

    def odd(_: ApiServer, asked: Asked) -> None:
        if asked.name.startswith("vm2-"):
            drop(server, asked)

    server.inject(odd, times=99)
    drained = node.store.drain()
    assert (len(drained.done), len(drained.left)) == (3, 1)
