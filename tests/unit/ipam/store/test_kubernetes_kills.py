"""The Kubernetes store whose process is killed at any request, or loses any answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnvnet.ipam.lease import POD
from cnvnet.ipam.store.holds import COOLING, HELD
from tests.fakes.api_objects import Objects
from tests.fakes.api_server import ApiServer, drop
from tests.fakes.kubernetes_store import Killed, disagreements
from tests.unit.ipam.store.conformance import a_pool
from tests.unit.ipam.store.nodes import Node, leases, reserved


def first_add(node: Node) -> None:
    node.attach("vm1", "c1", "uid", given=a_pool("10.0.0.0/29", "fd00::/64"))


def contested_add(node: Node) -> None:
    node.attach("vm1", "c1", "uid", given=a_pool("10.0.0.0/29", "fd00::/64"))


def restart(node: Node) -> None:
    node.attach("vm2", "c3", "uid")


def move(node: Node) -> None:
    node.attach("vm2", "c3", "uid", ips=("10.0.0.6",))


def recreate(node: Node) -> None:
    node.attach("vm2", "c3", "another", cooldown=60)


def add_pod(node: Node) -> None:
    node.attach_pod("c4", given=a_pool("10.0.0.0/29", "fd00::/64"))


def delete(node: Node) -> None:
    node.delete("d1")


def delete_with_the_pod(node: Node) -> None:
    node.delete("d2")


def delete_a_pod(node: Node) -> None:
    node.delete("d3")


def cool_a_pod(node: Node) -> None:
    node.delete("d4")


def add_and_undo(node: Node) -> None:
    granted = node.add("vm1", "c1", "uid", node="n1", pod="default/p")
    node.revert(granted, "c1")


SCENARIOS = [
    first_add,
    contested_add,
    restart,
    move,
    recreate,
    add_pod,
    delete,
    delete_with_the_pod,
    delete_a_pod,
    cool_a_pod,
    add_and_undo,
]


def prepare(node: Node, scenario: Callable[[Node], None]) -> None:
    node.attach("vm2", "c2", "uid", ips=("10.0.0.2",))
    node.delete("c2")
    wide = a_pool("10.1.0.0/29")
    node.attach("vm3", "d1", "uid", given=wide)
    node.attach("vm4", "d2", "uid", given=wide, release=POD)
    node.attach_pod("d3", given=wide)
    node.attach_pod("d4", given=wide, cooldown=60)
    if scenario is contested_add:
        # Another node has what a first guess gives, but for one.
        other = Node(node.server, Path(node.holds.statedir).parent, "n9", direct=True)
        for last in (3, 4, 5):
            other.attach(f"x{last}", f"x{last}", ips=(f"10.0.0.{last}",))


def kills() -> list[Any]:
    return [
        pytest.param(each, after, id=f"{each.__name__}-{'after' if after else 'before'}")
        for each in SCENARIOS
        for after in (False, True)
    ]


@pytest.mark.parametrize(("scenario", "after"), kills())
def test_a_kill_at_any_request_is_healed_by_the_next_drain(
    server: ApiServer, tmp_path: Path, scenario: Callable[[Node], None], after: bool
) -> None:
    for request in range(40):
        server.objects = Objects()
        node = Node(server, tmp_path / str(request), direct=True, clock=lambda: 1000)
        prepare(node, scenario)
        try:
            scenario(node.killed_at(request, after=after))
        except Killed:
            healed = node.restart()
            assert healed.store.drain().left == ()
            assert disagreements(server) == [], f"killed at request {request}"
            assert {each.state for each in node.holds.all()} <= {HELD, COOLING}
            # The runtime asks again, and all is as if nothing had happened.
            scenario(healed)
            ensure_all_is_well(node, server, request)
        else:
            ensure_all_is_well(node, server, request)
            return
    raise AssertionError("it never came to its end")


def ensure_all_is_well(node: Node, server: ApiServer, request: int) -> None:
    """Every address is one lease's or pod's, and all pods' when they have gone."""
    assert disagreements(server) == [], f"killed at request {request}"
    for container in ("c1", "c2", "c3", "c4", "d1", "d2", "d3", "d4"):
        node.delete(container)
    assert disagreements(server) == [], f"killed at request {request}"
    assert {each.state for each in node.holds.all()} <= {COOLING}
    cooling = [each for each in reserved(server) if each.pod is not None]
    assert all(each.until for each in cooling)
    assert all(
        each.lease.key.vm.startswith("x") or not each.lease.holders for each in leases(server) if each.lease
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_lost_answer_to_any_request_changes_nothing(
    server: ApiServer, tmp_path: Path, scenario: Callable[[Node], None]
) -> None:
    for request in range(40):
        server.objects = Objects()
        node = Node(server, tmp_path / str(request), clock=lambda: 1000)
        prepare(node, scenario)
        server.inject(drop, after=True, skip=request)
        count = server.count()
        scenario(node)
        was_asked = server.count() - count
        server.clear_faults()
        ensure_all_is_well(node, server, request)
        if was_asked <= request:
            return
    raise AssertionError("it never came to its end")
