"""Fixtures of the end-to-end tests: one cluster for all that need one, since they leave nothing in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnvnet import VERSION
from tests import harness
from tests.e2e.cnvnet_objects import NETWORKS, free_leases, running_cluster
from tests.e2e.control_plane import ControlPlane
from tests.e2e.controller_process import Process, bound_kubeconfig, running_controller
from tests.e2e.kubevirt_objects import KubeVirt
from tests.e2e.machine import eventually
from tests.e2e.static_ip import StaticIpNode, running_node
from tests.e2e.testbed import Testbed, running_testbed
from tests.functional.test_scripts import run_script


@pytest.fixture(scope="session")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """A Kubernetes with one node. Folders of failed runs have the logs of all its programs."""
    with running_testbed(tmp_path_factory.mktemp("testbed")) as running:
        yield running


@pytest.fixture(scope="session")
def image_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What scripts/build-image makes of this checkout. Tests of it are in the xdist group "image"."""
    path = tmp_path_factory.mktemp("image") / "cnvnet.tar"
    assert f"{path}: localhost/cnvnet:{VERSION} (amd64), " in run_script(
        "build-image", "--output", str(path)
    )
    return path


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A Kubernetes without kubelets, on which cnvnet is installed; `node-1` and `node-2` are objects.

    Tests of it have the mark `pytest.mark.xdist_group("control_plane")`, and a namespace of their own each.
    """
    with running_cluster(tmp_path_factory.mktemp("control-plane"), "node-1", "node-2") as running:
        yield running


@pytest.fixture(scope="session")
def kubevirt(control_plane: ControlPlane) -> KubeVirt:
    """KubeVirt's controller in the control plane: makes virtual machines, launcher pods and migrations."""
    made = KubeVirt(control_plane)
    made.install()
    return made


@pytest.fixture(scope="module")
def controller(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """As it runs in a cluster: with the token of its ServiceAccount that is bound to its pod."""
    log = tmp_path_factory.mktemp("controller") / "controller.log"
    with (
        bound_kubeconfig(control_plane) as kubeconfig,
        running_controller(kubeconfig, log) as running,
    ):
        eventually(lambda: running.lines("this replica leads"), "it leads")
        yield running


@pytest.fixture(scope="module")
def nodes(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[StaticIpNode, StaticIpNode]]:
    """`node-1` and `node-2`, each with its agent, for calls of static-ip."""
    with pytest.MonkeyPatch.context() as patch:
        # These agents have credentials; the harness' own would have none.
        patch.setattr(harness, "through", "")
        folder = tmp_path_factory.mktemp("nodes")
        with (
            running_node(control_plane, "node-1", folder / "1") as one,
            running_node(control_plane, "node-2", folder / "2") as two,
        ):
            yield one, two


@pytest.fixture
def tenant(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace of the control plane for one test; it ends some seconds later."""
    name = f"tenant-{uuid.uuid4().hex[:8]}"
    control_plane.add_namespace(name)
    yield name
    control_plane.api.delete(f"/api/v1/namespaces/{name}")
    free_leases(control_plane, name)
    # Tests call their network as their namespace.
    network = f"{NETWORKS}/{name}"
    if control_plane.api.find(network) is not None:
        control_plane.api.delete(network)
