"""The Kubernetes store in a crowd: many nodes, many calls at once, and no address twice."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import POD, Lease
from cnvnet.ipam.store.kubernetes_survey import KnownPools
from cnvnet.kube.resources import VM_LEASES
from cnvnet.vm.identity import ACTIVE
from tests.fakes.api_server import ApiServer, Asked, refuse
from tests.fakes.kubernetes_store import disagreements
from tests.unit.ipam.store.conformance import a_pool, roles
from tests.unit.ipam.store.nodes import Node, leases, reserved


def crowd(count: int, call: Callable[[int], Lease]) -> tuple[list[Lease], list[CNIError]]:
    """What so many concurrent calls get: leases and errors."""

    def attempt(number: int) -> Lease | CNIError:
        try:
            return call(number)
        except CNIError as e:
            return e

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(attempt, range(count)))
    return (
        [each for each in answers if isinstance(each, Lease)],
        [each for each in answers if isinstance(each, CNIError)],
    )


def nodes(server: ApiServer, folder: Path, count: int) -> list[Node]:
    return [Node(server, folder, f"n{number}") for number in range(count)]


def test_a_thousand_adds_from_twenty_nodes_get_a_thousand_addresses(
    server: ApiServer, tmp_path: Path
) -> None:
    cluster = nodes(server, tmp_path, 20)
    given = a_pool("10.0.0.0/21")
    got, errors = crowd(
        1000, lambda number: cluster[number % 20].attach(f"vm{number}", f"c{number}", given=given)
    )
    assert errors == []
    assert len({each.ips for each in got}) == len({each.mac for each in got}) == 1000
    assert disagreements(server) == []


def test_thirty_pods_of_one_vm_share_its_addresses(server: ApiServer, tmp_path: Path) -> None:
    cluster = nodes(server, tmp_path, 20)
    got, errors = crowd(30, lambda number: cluster[number % 20].attach("vm1", f"c{number}", "uid"))
    assert errors == []
    assert len({(each.ips, each.mac) for each in got}) == 1
    lease = cluster[0].lease("vm1")
    assert Counter(roles(lease).values()) == {ACTIVE: 1, "leaving": 29}
    assert len(reserved(server)) == 2
    assert disagreements(server) == []


def test_of_thirty_vms_that_ask_for_one_address_one_gets_it(server: ApiServer, tmp_path: Path) -> None:
    cluster = nodes(server, tmp_path, 20)
    got, errors = crowd(
        30, lambda number: cluster[number % 20].attach(f"vm{number}", f"c{number}", ips=("10.0.0.5",))
    )
    (winner,) = got
    vm, container = winner.key.vm, winner.holders[0].container_id
    assert {(each.code, each.msg) for each in errors} == {
        (
            7,
            f"args.cni.ips[0]: 10.0.0.5 is held by VM default/{vm} (eth0) in pod "
            f"default/virt-launcher-{vm}-{container}",
        )
    }
    assert len(errors) == 29
    assert [each.key for each in leases(server)] == [winner.key]
    assert disagreements(server) == []


def test_a_network_is_filled_to_its_last_address(server: ApiServer, tmp_path: Path) -> None:
    cluster = nodes(server, tmp_path, 20)
    given = a_pool("10.0.0.0/28")
    got, errors = crowd(
        30, lambda number: cluster[number % 20].attach(f"vm{number}", f"c{number}", given=given)
    )
    assert len({each.ips for each in got}) == len(got) == 13
    text = "network net: all 13 addresses of 10.0.0.1-10.0.0.15 are taken: 13 in use"
    assert {(each.code, each.msg) for each in errors} == {(11, f"{text}: give the network a wider range")}
    assert len(leases(server)) == 13
    assert disagreements(server) == []


def test_vms_and_pods_that_come_and_go_never_share(server: ApiServer, tmp_path: Path) -> None:
    cluster = nodes(server, tmp_path, 6)

    def live(number: int) -> Lease:
        node, name = cluster[number % 6], f"c{number}"
        lease = node.attach(f"vm{number}", name, release=POD) if number % 2 else node.attach_pod(name)
        others = [each for each in reserved(server) if each.address in map(str, lease.ips)]
        assert len(others) == 1
        node.delete(name)
        return lease

    _, errors = crowd(120, live)
    assert {each.code for each in errors} <= {11}
    assert len(errors) < 60
    # On a busy machine some DELs had no time left, and are in the queue.
    for each in cluster:
        assert each.restart().store.drain().left == ()
    assert reserved(server) == []
    assert leases(server) == []


def test_an_add_that_looks_through_a_network_goes_on_where_an_address_is_taken_from_it(
    server: ApiServer, tmp_path: Path
) -> None:
    node, other = (Node(server, tmp_path, name, direct=True, clock=lambda: 1000) for name in ("n1", "n2"))
    for last in (2, 3, 4):
        other.attach(f"x{last}", f"x{last}", ips=(f"10.0.0.{last}",))
    # Not long ago all of them were.
    node.store._taken.add("net", [ip_address(f"10.0.0.{last}") for last in range(2, 7)])
    taken: list[str] = []

    def take(_: ApiServer, asked: Asked) -> None:
        taken.append(asked.body["spec"]["address"])
        other.attach("faster", "faster", ips=(taken[0],))

    server.inject(take, verb="create", plural="ipreservations")
    lease = node.attach("vm1", "c1")
    assert {str(lease.ips[0]), *taken} == {"10.0.0.5", "10.0.0.6"}


def test_the_first_adds_of_a_network_write_down_together_what_it_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = [KnownPools(str(tmp_path)) for _ in range(2)]
    others: list[threading.Thread] = []

    def fsync(_: int) -> None:
        if not others:
            others.append(threading.Thread(target=pools[1].write, args=("net", a_pool())))
            others[0].start()
            others[0].join(0.5)

    monkeypatch.setattr(os, "fsync", fsync)
    pools[0].write("net", a_pool())
    others[0].join()
    assert pools[0].read("net")[4].size == 5


def test_an_add_passes_by_what_only_the_controller_may_free(server: ApiServer, tmp_path: Path) -> None:
    node, other = (Node(server, tmp_path, name, direct=True, clock=lambda: 1000) for name in ("n1", "n2"))
    for last in (2, 3, 4, 5, 6):
        other.attach(f"x{last}", f"x{last}", ips=(f"10.0.0.{last}",))
    name = leases(server)[0].name
    # What the others have has an owner, this lease lists nothing any more.
    server.objects.patch(VM_LEASES, "default", name, {"spec": {"ips": []}})
    server.inject(refuse(403), verb="delete", times=99)
    with pytest.raises(CNIError, match="all 5 addresses of"):
        node.attach("vm1", "c1")


def test_no_add_lists_a_network_that_is_half_full(server: ApiServer, tmp_path: Path) -> None:
    """Of what the other node has given out this one knows nothing."""
    node, other = (Node(server, tmp_path, name, direct=True, clock=lambda: 1000) for name in ("n1", "n2"))
    given = a_pool("10.0.0.0/24")
    for number in range(126):
        other.attach_pod(f"there{number}", given=given)
    before = server.count()
    for number in range(200):
        node.attach_pod(f"here{number}", given=given)
        node.delete(f"here{number}")
    assert server.count("list") == 0
    # Each ADD and DEL has one, and some ADDs meet an address that is taken.
    assert server.count() - before < 3 * 400


def test_a_network_that_was_listed_is_known_for_a_while(server: ApiServer, tmp_path: Path) -> None:
    node, other = (Node(server, tmp_path, name, direct=True, clock=lambda: 1000) for name in ("n1", "n2"))
    given = a_pool("10.0.0.0/24")
    for number in range(240):
        other.attach_pod(f"there{number}", given=given)
    for number in range(5):
        node.attach_pod(f"here{number}", given=given)
    assert server.count("list") == 1
