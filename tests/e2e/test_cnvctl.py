"""cnvctl on a cluster, by an administrator of the network: the role cnvnet-admin, all policies in force."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.agent_stores import AgentDesk, reserved
from tests.e2e.cnvnet_objects import LEASES, SYSTEM, agent, user
from tests.e2e.control_plane import ControlPlane
from tests.harness import installed

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

NODES = "/api/v1/nodes"


class Operator:
    """A user with a kubeconfig on a machine that is no node."""

    def __init__(self, control_plane: ControlPlane, folder: Path, token: str) -> None:
        self.kubeconfig = control_plane.kubeconfig(token)
        self.folder = folder

    def cnvctl(self, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        places = (f"--rundir={self.folder}/run", f"--statedir={self.folder}/state")
        done = subprocess.run(
            [installed("cnvctl"), *places, f"--kubeconfig={self.kubeconfig}", *args],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == code, f"cnvctl {args} ended with {done.returncode}: {done}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def leases(self, network: str) -> list[dict[str, object]]:
        listed = self.cnvctl("leases", "list", "--network", network, "-o", "json")
        found: list[dict[str, object]] = json.loads(listed.stdout)["leases"]
        return found


@pytest.fixture
def operator(control_plane: ControlPlane, tmp_path: Path, tenant: str) -> Operator:
    return Operator(
        control_plane, tmp_path / "desk", user(control_plane, tenant, "operator", "cnvnet-admin").token
    )


@pytest.fixture
def lost_node(control_plane: ControlPlane, tenant: str) -> Iterator[str]:
    """A node of this test alone, which it takes away."""
    name = f"node-of-{tenant}"
    control_plane.add_node(name)
    yield name
    if control_plane.api.find(f"{NODES}/{name}") is not None:
        control_plane.api.delete(f"{NODES}/{name}")
    control_plane.api.delete(f"/api/v1/namespaces/{SYSTEM}/pods/agent-{name}", gracePeriodSeconds=0)


def test_an_administrator_sees_reserves_and_releases(
    control_plane: ControlPlane, tmp_path: Path, tenant: str, operator: Operator
) -> None:
    desk = AgentDesk(control_plane, tmp_path, "node-1", tenant)
    running = desk.attach("web", "c1", ips=("10.0.0.4",))
    stopped = desk.attach("db", "c2", ips=("10.0.0.5",))
    desk.detach("c2")
    done = operator.cnvctl("leases", "list", "--network", tenant)
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [(row[1], row[3], row[5], row[7]) for row in rows] == [
        (f"{tenant}/db", str(stopped.ips[0]), "stopped", "-"),
        (f"{tenant}/web", str(running.ips[0]), "active", f"{tenant}/launcher-c1"),
    ]
    status = json.loads(operator.cnvctl("status", "-o", "json").stdout)
    used = [each for each in status["pools"]["networks"] if each["network"] == tenant]
    assert [(each["active"], each["stopped"]) for each in used] == [(1, 1)]
    reserve = ("leases", "reserve", f"{tenant}/new", "--network", tenant, "--ip", "10.0.0.6")
    assert f"reserved {tenant}/{tenant}/new eth0: 10.0.0.6" in operator.cnvctl(*reserve).stdout
    new = desk.attach("new", "c3")
    assert [str(ip) for ip in new.ips] == ["10.0.0.6"]
    release = ("leases", "release", "--network", tenant)
    refused = operator.cnvctl(*release, f"{tenant}/web", code=2).stderr
    assert f"is held by pod {tenant}/launcher-c1: stop it first" in refused
    operator.cnvctl(*release, f"{tenant}/db")
    assert set(reserved(control_plane, tenant)) == {"10.0.0.4", running.mac, "10.0.0.6", new.mac}
    assert len(control_plane.api.get(LEASES.format(tenant))["items"]) == 2


def test_a_pod_of_a_node_keeps_its_address_until_both_are_gone(
    control_plane: ControlPlane, tmp_path: Path, tenant: str, operator: Operator, lost_node: str
) -> None:
    pod = control_plane.create_pod(tenant, "launcher-c1", lost_node)
    desk = AgentDesk(control_plane, tmp_path, lost_node, tenant)
    desk.attach("web", "c1", pod_uid=pod["metadata"]["uid"])
    force = ("leases", "release", f"{tenant}/web", "--network", tenant, "--force")
    text = "--force takes nothing from a pod of another node"
    assert f"{text} (pod {tenant}/launcher-c1 is there)" in operator.cnvctl(*force, code=2).stderr
    control_plane.api.delete(f"/api/v1/namespaces/{tenant}/pods/launcher-c1", gracePeriodSeconds=0)
    assert f"{text} (node {lost_node} is there without" in operator.cnvctl(*force, code=2).stderr
    control_plane.api.delete(f"{NODES}/{lost_node}")
    assert operator.cnvctl(*force).stdout.startswith(f"released {tenant}/{tenant}/web eth0: ")
    assert reserved(control_plane, tenant) == {}
    assert control_plane.api.get(LEASES.format(tenant))["items"] == []


def test_a_right_that_is_missing_is_named(control_plane: ControlPlane, tmp_path: Path, tenant: str) -> None:
    AgentDesk(control_plane, tmp_path, "node-1", tenant).attach("web", "c1")
    stranger = Operator(control_plane, tmp_path, user(control_plane, tenant, "stranger").token)
    denied = stranger.cnvctl("leases", "list", code=3).stderr
    assert 'cannot list resource "vmleases"' in denied
    # With the agent's own credentials, as they are on a node: another node's pods are none of its business.
    node = Operator(control_plane, tmp_path, agent(control_plane, "node-2").token)
    assert f"{tenant}/web" in node.cnvctl("leases", "list", "--network", tenant).stdout
    force = ("leases", "release", f"{tenant}/web", "--network", tenant, "--force")
    assert "--force takes nothing from a pod of another node" in node.cnvctl(*force, code=2).stderr
    assert len(control_plane.api.get(LEASES.format(tenant))["items"]) == 1
