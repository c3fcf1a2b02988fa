"""What a node does with the Kubernetes store while it is killed, or the API goes away, at any request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cnvnet.ipam.lease import POD
from cnvnet.ipam.store.holds import COOLING
from tests.fakes.kubernetes_store import Cluster, disagreements
from tests.unit.ipam.store.conformance import a_pool
from tests.unit.ipam.store.nodes import Node, leases, reserved

Scenario = Callable[[Node], None]
OTHER_NODE: Final = "n9"


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


SCENARIOS: Final[list[Scenario]] = [
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


# Those in which pods end: a DEL succeeds whatever becomes of the API.
ENDINGS: Final[list[Scenario]] = [delete, delete_with_the_pod, delete_a_pod, cool_a_pod]


def prepare(node: Node, scenario: Scenario) -> None:
    """What is there before."""
    node.attach("vm2", "c2", "uid", ips=("10.0.0.2",))
    node.delete("c2")
    wide = a_pool("10.1.0.0/29")
    node.attach("vm3", "d1", "uid", given=wide)
    node.attach("vm4", "d2", "uid", given=wide, release=POD)
    node.attach_pod("d3", given=wide)
    node.attach_pod("d4", given=wide, cooldown=60)
    if scenario is contested_add:
        # Another node has what a first guess gives, but for one.
        other = node.neighbour(OTHER_NODE)
        for last in (3, 4, 5):
            other.attach(f"x{last}", f"x{last}", ips=(f"10.0.0.{last}",))


def ensure_all_is_well(node: Node, cluster: Cluster, request: int) -> None:
    """Every address is one lease's or pod's, and all pods' when they have gone."""
    assert disagreements(cluster) == [], f"killed at request {request}"
    for container in ("c1", "c2", "c3", "c4", "d1", "d2", "d3", "d4"):
        node.delete(container)
    assert disagreements(cluster) == [], f"killed at request {request}"
    assert {each.state for each in node.holds.all()} <= {COOLING}
    cooling = [each for each in reserved(cluster) if each.pod is not None]
    assert all(each.until for each in cooling)
    assert all(
        each.lease.key.vm.startswith("x") or not each.lease.holders for each in leases(cluster) if each.lease
    )
