"""Agents and API servers that are killed between any two requests of a call, on the real API server."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.store.holds import COOLING, HELD
from cnvnet.kube.client import Client
from cnvnet.kube.credentials import from_kubeconfig
from cnvnet.kube.resources import Resource
from tests.e2e.agent_stores import remove_leases
from tests.e2e.cnvnet_objects import NETWORKS, SYSTEM, agent
from tests.e2e.control_plane import ControlPlane, kubeconfig
from tests.e2e.request_proxy import running_proxy
from tests.e2e.store_process import AgentNode, store_processes
from tests.fakes.kubernetes_store import NODE, disagreements
from tests.faults.conftest import TIMES
from tests.unit.ipam.store.interruptions import (
    ENDINGS,
    OTHER_NODE,
    SCENARIOS,
    Scenario,
    add_pod,
    cool_a_pod,
    delete,
    delete_a_pod,
    delete_with_the_pod,
    ensure_all_is_well,
    first_add,
    move,
    prepare,
)

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

NETWORK = "net"


def chosen(*some: Scenario) -> list[Scenario]:
    """Some in CI, all with CNV_FAULTS: the suite of the API server in memory has all of them always."""
    return list(some) if TIMES == 1 else SCENARIOS


class RealCluster:
    """What the API server has, its agents' kubeconfigs, and a way to it on which requests get lost."""

    def __init__(self, control_plane: ControlPlane, undo: ExitStack, folder: Path) -> None:
        self.control_plane = control_plane
        self.proxy = undo.enter_context(running_proxy(control_plane.url))
        self.processes = undo.enter_context(store_processes())
        self._admin = Client(from_kubeconfig(str(control_plane.kubeconfig())))
        tokens: dict[str, str] = {}
        for node in (NODE, OTHER_NODE):
            control_plane.add_node(node)
            tokens[node] = agent(control_plane, node).token
        self.kubeconfigs = {node: control_plane.kubeconfig(token) for node, token in tokens.items()}
        authority = control_plane.authority.read_bytes()
        self.by_proxy = folder / "proxy.kubeconfig"
        self.by_proxy.write_text(json.dumps(kubeconfig(self.proxy.url, tokens[NODE], authority)))

    def documents(self, resource: Resource) -> list[dict[str, Any]]:
        return list(self._admin.list(resource).items)

    def node(self, folder: Path, scenario: Scenario) -> AgentNode:
        """In a cluster where there is what the scenario needs, and nothing else."""
        remove_leases(self.control_plane)
        made = AgentNode(self.kubeconfigs[NODE], folder, NODE, self.kubeconfigs)
        prepare(made, scenario)
        return made

    def where(self, point: Point) -> str:
        """The request at which it happened."""
        return f"{'after' if point.after else 'before'} request {point.number} of {self.proxy.seen}"

    def end(self) -> None:
        """Leaves the control plane as it was."""
        self._admin.close()
        remove_leases(self.control_plane)
        api = self.control_plane.api
        api.delete(f"{NETWORKS}/{NETWORK}")
        for node in (NODE, OTHER_NODE):
            api.delete(f"/api/v1/namespaces/{SYSTEM}/pods/agent-{node}", gracePeriodSeconds=0)
            api.delete(f"/api/v1/nodes/{node}")


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with ExitStack() as undo:
        made = RealCluster(control_plane, undo, tmp_path_factory.mktemp("kills"))
        yield made
        made.end()


class Point(NamedTuple):
    """A request of a scenario, by its number, and whether it has been done when something happens to it."""

    number: int
    after: bool


def points(cluster: RealCluster, folder: Path, scenario: Scenario) -> list[Point]:
    """Before each request, and after each that writes: behind one that reads all is as it was before."""
    node = cluster.node(folder / "as usual", scenario)
    node.connect(cluster.by_proxy)
    cluster.proxy.clear_trap()
    scenario(node)
    seen = list(cluster.proxy.seen)
    writes = [number for number, each in enumerate(seen) if not each.startswith("get ")]
    assert writes
    return [*(Point(each, False) for each in range(len(seen))), *(Point(each, True) for each in writes)]


@pytest.mark.parametrize(
    "scenario", chosen(first_add, move, add_pod, delete, delete_with_the_pod, cool_a_pod)
)
def test_a_process_that_is_killed_at_any_request_leaves_nothing(
    cluster: RealCluster, tmp_path: Path, scenario: Scenario
) -> None:
    for point in points(cluster, tmp_path, scenario):
        node = cluster.node(tmp_path / str(point), scenario)
        process = cluster.processes.fork(scenario.__name__, cluster.by_proxy, node.folder, NODE)
        cluster.proxy.set_trap(
            point.number, partial(os.kill, process.pid, signal.SIGKILL), after=point.after
        )
        assert process.go() == "killed", cluster.where(point)
        ensure_healed(cluster, node, scenario, point)


@pytest.mark.parametrize("scenario", chosen(first_add, add_pod, delete, delete_a_pod))
def test_an_api_server_that_goes_away_at_any_request_is_caught_up_with(
    cluster: RealCluster, tmp_path: Path, scenario: Scenario
) -> None:
    """An ADD says so, unless it has all that it asked for; a DEL has done its part."""
    for point in points(cluster, tmp_path, scenario):
        node = cluster.node(tmp_path / str(point), scenario)
        node.connect(cluster.by_proxy)
        cluster.proxy.set_trap(point.number, cluster.proxy.stop, after=point.after)
        error = None
        try:
            scenario(node)
        except CNIError as e:
            error = e
        assert cluster.proxy.is_away, cluster.where(point)
        cluster.proxy.start()
        if error is not None:
            assert (error.code, cluster.proxy.url in error.msg) == (11, True), cluster.where(point)
        assert error is None or scenario not in ENDINGS, cluster.where(point)
        node.connect(cluster.kubeconfigs[NODE])
        ensure_healed(cluster, node, scenario, point)


@pytest.mark.parametrize("scenario", chosen(first_add, move, delete))
def test_a_lost_answer_to_any_write_changes_nothing(
    cluster: RealCluster, tmp_path: Path, scenario: Scenario
) -> None:
    """What was created and not answered is recognised by the one who asked for it."""
    for point in points(cluster, tmp_path, scenario):
        if point.after:
            node = cluster.node(tmp_path / str(point), scenario)
            node.connect(cluster.by_proxy)
            lost: list[Point] = []
            cluster.proxy.set_trap(point.number, partial(lost.append, point), after=True)
            scenario(node)
            assert lost, cluster.where(point)
            ensure_all_is_well(node, cluster, point.number)


def ensure_healed(cluster: RealCluster, node: AgentNode, scenario: Scenario, point: Point) -> None:
    """The node's next process has taken everything back, and the runtime's next call comes to its end."""
    assert node.store.drain().left == (), cluster.where(point)
    assert disagreements(cluster) == [], cluster.where(point)
    assert {each.state for each in node.holds.all()} <= {HELD, COOLING}, cluster.where(point)
    scenario(node)
    ensure_all_is_well(node, cluster, point.number)
