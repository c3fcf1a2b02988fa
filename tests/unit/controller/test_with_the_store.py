"""The controller and the nodes' store on one API server: each understands what the other has written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.controller import survey
from cnvnet.controller.cleanup import Cleaner, Overtaken
from cnvnet.controller.steps import END_COOLDOWN
from cnvnet.controller.sweep import Limits, Plan, plan
from cnvnet.ipam.store.kubernetes_networks import OPEN
from cnvnet.kube.resources import NODES, PODS, VIRTUAL_MACHINES, VM_LEASES, Resource
from tests.fakes.api_server import ApiServer, Asked, running_api_server
from tests.fakes.kubernetes_store import disagreements
from tests.unit.ipam.store.nodes import Node, leases, reserved

NAMESPACE = "default"
# That of the nodes, in seconds since 1970.
CLOCK = 1000


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with running_api_server() as running:
        for name in ("n1", "n2"):
            put(running, NODES, name)
        yield running


def put(server: ApiServer, resource: Resource, name: str) -> None:
    namespace = {"namespace": NAMESPACE} if resource.namespaced else {}
    server.objects.put(resource, {"metadata": {"name": name, "uid": f"{name}-uid", **namespace}})


def remove(server: ApiServer, resource: Resource, name: str) -> None:
    server.client().delete(resource, name, NAMESPACE if resource.namespaced else "")


def node(server: ApiServer, folder: Path, name: str) -> Node:
    return Node(server, folder, name, new_networks=OPEN)


def planned(server: ApiServer, clock: int = CLOCK) -> Plan:
    """What is due when it has been missing for long enough."""
    taken, limits = survey.take(server.client()), Limits(grace=60.0)
    first = plan(taken, {}, limits, now=0.0, clock=clock)
    return plan(taken, first.memory, limits, now=60.0, clock=clock)


def settle(server: ApiServer, clock: int = CLOCK) -> None:
    cleaner = Cleaner(server.client(), lambda: 10.0, lambda _: None, lambda: clock)
    for _ in range(5):
        for step in planned(server, clock).steps:
            cleaner.run(step)
    assert planned(server, clock).steps == ()


def run_web(server: ApiServer, on: Node, pod: str) -> str:
    """A pod of VM `web` begins on a node; its address."""
    put(server, PODS, pod)
    lease = on.attach("web", f"{pod}-container", "web-uid", pod=f"{NAMESPACE}/{pod}", pod_uid=f"{pod}-uid")
    return str(lease.ips[0])


def test_what_nodes_write_for_what_is_there_is_left_alone(server: ApiServer, tmp_path: Path) -> None:
    n1, n2 = node(server, tmp_path, "n1"), node(server, tmp_path, "n2")
    put(server, VIRTUAL_MACHINES, "web")
    run_web(server, n1, "web-1")
    put(server, PODS, "app")
    n1.attach_pod("app", pod_uid="app-uid")
    run_web(server, n2, "web-2")
    n1.delete("web-1-container")
    remove(server, PODS, "web-1")
    n2.delete("web-2-container")
    remove(server, PODS, "web-2")
    made = planned(server)
    assert (made.steps, made.waiting, made.doubts) == ((), (), ())


def test_a_vm_comes_back_from_a_lost_node_with_its_address(server: ApiServer, tmp_path: Path) -> None:
    n1, n2 = node(server, tmp_path, "n1"), node(server, tmp_path, "n2")
    put(server, VIRTUAL_MACHINES, "web")
    address = run_web(server, n1, "web-1")
    remove(server, PODS, "web-1")
    remove(server, NODES, "n1")
    settle(server)
    (stored,) = leases(server)
    assert stored.lease is not None
    assert (stored.lease.holders, stored.lease.state) == ((), "stopped")
    assert run_web(server, n2, "web-2") == address
    made = planned(server)
    assert (made.steps, made.doubts) == ((), ())


def test_the_address_of_a_vm_that_is_gone_goes_to_the_next(server: ApiServer, tmp_path: Path) -> None:
    n1, n2 = node(server, tmp_path, "n1"), node(server, tmp_path, "n2")
    put(server, VIRTUAL_MACHINES, "web")
    address = run_web(server, n1, "web-1")
    # Deleted while it runs: until its pod has left, a VM of that name has to wait.
    (stored,) = leases(server)
    server.client().delete(VM_LEASES, stored.name, NAMESPACE)
    remove(server, VIRTUAL_MACHINES, "web")
    remove(server, PODS, "web-1")
    settle(server)
    assert len(reserved(server)) == 2
    with pytest.raises(CNIError, match=f"still has {address} in pod default/web-1") as caught:
        n2.attach("web", "anew", "new-uid", pod_uid="anew-uid")
    assert caught.value.code == TRY_AGAIN_LATER
    n1.delete("web-1-container")
    settle(server)
    assert (leases(server), reserved(server)) == ([], [])
    assert str(n2.attach("other", "c", "other-uid", ips=(address,), pod_uid="c-uid").ips[0]) == address


def test_the_address_of_a_plain_pod_on_a_lost_node_is_free(server: ApiServer, tmp_path: Path) -> None:
    n1, n2 = node(server, tmp_path, "n1"), node(server, tmp_path, "n2")
    address = str(n1.attach_pod("app", pod_uid="app-uid").ips[0])
    remove(server, NODES, "n1")
    settle(server)
    assert reserved(server) == []
    assert str(n2.attach_pod("next", ips=(address,), pod_uid="next-uid").ips[0]) == address


def test_an_address_that_cools_down_is_free_when_it_has(server: ApiServer, tmp_path: Path) -> None:
    n1 = node(server, tmp_path, "n1")
    put(server, VIRTUAL_MACHINES, "web")
    put(server, PODS, "web-1")
    options = {"pod": f"{NAMESPACE}/web-1", "pod_uid": "web-1-uid", "release": "pod", "cooldown": 60}
    n1.attach("web", "c1", "web-uid", **options)
    n1.delete("c1")
    remove(server, PODS, "web-1")
    settle(server)
    assert [each.address for each in reserved(server)] != []
    settle(server, CLOCK + 61)
    assert (leases(server), reserved(server)) == ([], [])


def test_an_address_that_a_vm_takes_back_while_its_cooldown_is_ended_stays_its_own(
    server: ApiServer, tmp_path: Path
) -> None:
    n1 = node(server, tmp_path, "n1")
    put(server, VIRTUAL_MACHINES, "web")
    n1.attach("web", "c1", "web-uid", ips=("10.0.0.5",), cooldown=60)
    n1.delete("c1")
    n1.attach("web", "c2", "web-uid", ips=("10.0.0.6",), cooldown=60)
    n1.delete("c2")
    clock = n1.now = CLOCK + 60

    def take_back(_: ApiServer, __: Asked) -> None:
        n1.attach("web", "c3", "web-uid", ips=("10.0.0.5",))

    (step,) = planned(server, clock).steps
    assert step.action == END_COOLDOWN
    server.inject(take_back, verb="patch", plural="vmleases", after=True)
    cleaner = Cleaner(server.client(), lambda: 10.0, lambda _: None, lambda: clock)
    with pytest.raises(Overtaken, match=r"lists 10\.0\.0\.5 again"):
        cleaner.run(step)
    assert disagreements(server) == []
