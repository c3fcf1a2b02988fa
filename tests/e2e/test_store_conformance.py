"""The suites of all stores on the real API server, as the agent of a node: the same scenarios and texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cnvnet.vm.identity import ACTIVE
from tests.e2e.agent_stores import AgentStore, agent_store, remove_leases
from tests.e2e.cnvnet_objects import NETWORKS, SYSTEM, agent
from tests.e2e.control_plane import ControlPlane
from tests.fakes.kubernetes_store import NODE
from tests.unit.ipam import test_allocator, test_allocator_release, test_allocator_undo
from tests.unit.ipam.conftest import any_store, desk
from tests.unit.ipam.store import test_conformance
from tests.unit.ipam.store.conformance import Desk, Factory, roles

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

# Their tests are this module's, with its store.
for _suite in (test_conformance, test_allocator, test_allocator_release, test_allocator_undo):
    globals().update({name: each for name, each in vars(_suite).items() if name.startswith("test_")})

# The networks in which the suites add pods.
USED = ("net", "other", "another", "unknown")
OTHER_NODE = "n2"

__all__ = ["any_store", "desk"]


class RealCluster:
    """Stores of one node by their folders: a folder that is new has a cluster without leases."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self.control_plane = control_plane
        self._kubeconfigs: dict[str, Path] = {}
        self._folder: Path | None = None
        for node in (NODE, OTHER_NODE):
            control_plane.add_node(node)
            self._kubeconfigs[node] = control_plane.kubeconfig(agent(control_plane, node).token)

    def open(self, folder: Path) -> AgentStore:
        """Two of one folder are two programs of the node."""
        if folder != self._folder:
            self._folder = folder
            remove_leases(self.control_plane)
        return agent_store(self._kubeconfigs[NODE], folder, NODE)

    def open_elsewhere(self, folder: Path) -> AgentStore:
        """The store of another node."""
        return agent_store(self._kubeconfigs[OTHER_NODE], folder, OTHER_NODE)

    def end(self) -> None:
        """Leaves the cluster as it was."""
        remove_leases(self.control_plane)
        api = self.control_plane.api
        for network in USED:
            if api.find(f"{NETWORKS}/{network}"):
                api.delete(f"{NETWORKS}/{network}")
        for node in (NODE, OTHER_NODE):
            api.delete(f"/api/v1/namespaces/{SYSTEM}/pods/agent-{node}", gracePeriodSeconds=0)
            api.delete(f"/api/v1/nodes/{node}")


@pytest.fixture(scope="module")
def real_cluster(control_plane: ControlPlane) -> Iterator[RealCluster]:
    made = RealCluster(control_plane)
    yield made
    made.end()


@pytest.fixture
def open_store(real_cluster: RealCluster) -> Factory:
    return real_cluster.open


# Takes the place of the suite's: no agent can write what another node holds.
def test_gc_ends_no_hold_of_another_node(real_cluster: RealCluster, desk: Desk, tmp_path: Path) -> None:
    other = Desk(real_cluster.open_elsewhere(tmp_path / "other"))
    desk.add("vm1", "c1", node=NODE)
    other.add("vm2", "c2", node=OTHER_NODE)
    desk.collect(node=NODE)
    assert [roles(desk.lease(vm)) for vm in ("vm1", "vm2")] == [{}, {"c2": ACTIVE}]
    other.store.close()
