"""A running agent and a running controller on a real API server that is killed, or has other credentials."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from cnvnet.ipam.store.holds import RELEASING, Holds
from tests import harness
from tests.e2e.cnvnet_objects import AGENT, CONTROLLER, SYSTEM
from tests.e2e.control_plane import ControlPlane, kubeconfig
from tests.e2e.controller_process import running_controller
from tests.e2e.machine import eventually
from tests.e2e.static_ip import Document, StaticIpNode, reserved
from tests.functional.agent.own_agent import running_agent
from tests.harness import Node

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

# Seconds: see tests/functional/agent/test_api_outages.py, which has more faults.
ADD, DEL, FREE = 10.0, 3.0, 30.0
# For so long the API server may take a token of a pod that is gone for a good one.
FORGOTTEN = 12.0
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"


class Files(NamedTuple):
    """A kubeconfig whose token and authority are files beside it, as in a pod."""

    folder: Path
    control_plane: ControlPlane

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    def write(self) -> None:
        self.folder.mkdir()
        document = kubeconfig(self.control_plane.url, "")
        document["clusters"][0]["cluster"] = {
            "server": self.control_plane.url,
            "certificate-authority": "ca.crt",
        }
        document["users"][0]["user"] = {"tokenFile": "token"}
        self.kubeconfig.write_text(json.dumps(document))
        self.trust(self.control_plane.authority.read_bytes())

    def trust(self, *authorities: bytes) -> None:
        self._renew("ca.crt", b"".join(authorities))

    def use(self, token: str) -> None:
        self._renew("token", token.encode())

    def _renew(self, name: str, content: bytes) -> None:
        new = self.folder / f"{name}.new"
        new.write_bytes(content)
        new.rename(self.folder / name)


class Account:
    """A ServiceAccount of ours, with tokens that are bound to its pods."""

    def __init__(self, control_plane: ControlPlane, name: str, files: Files) -> None:
        self._control_plane = control_plane
        self._name = name
        self._number = 0
        self._pod: Document | None = None
        self.files = files

    def renew(self) -> None:
        """A token of another pod is in the file, and the former pod goes, and with it its token."""
        former = self._pod
        self._number += 1
        name = f"outages-{self._name}-{self._number}"
        self._pod = self._control_plane.create_pod(SYSTEM, name, "node-1", self._name)
        self.files.use(self._control_plane.token(SYSTEM, self._name, self._pod))
        if former is not None:
            self._end(former)

    def end(self) -> None:
        if self._pod is not None:
            self._end(self._pod)

    def _end(self, pod: Document) -> None:
        path = f"/api/v1/namespaces/{SYSTEM}/pods/{pod['metadata']['name']}"
        self._control_plane.api.delete(path, gracePeriodSeconds=0)


@contextmanager
def account(control_plane: ControlPlane, name: str, folder: Path) -> Generator[Account]:
    files = Files(folder, control_plane)
    files.write()
    made = Account(control_plane, name, files)
    made.renew()
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def agent_account(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Account]:
    with account(control_plane, AGENT, tmp_path / "agent-account") as made:
        yield made


@pytest.fixture
def node(agent_account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StaticIpNode]:
    """A node in the namespace of the tests, where the server is; it changes its own folder alone."""
    # The agent of this test has credentials; the harness' own would have none.
    monkeypatch.setattr(harness, "through", "")
    (tmp_path / "node").mkdir()
    options = ("--metrics-address", "", "--kubeconfig", str(agent_account.files.kubeconfig))
    with ExitStack() as undo:
        made = Node(f"/proc/{os.getpid()}/ns/net", tmp_path / "node", undo)
        within = ("env", f"CNVNET_STATEDIR={made.statedir}")
        agent = running_agent(made, *options, "--node-name", "node-1", within=within)
        yield StaticIpNode(made, "node-1", undo.enter_context(agent))


def released_in_time(node: StaticIpNode, pod: Document) -> None:
    """A DEL that is answered without the API."""
    begun = time.monotonic()
    node.delete(pod)
    assert time.monotonic() - begun < DEL
    states = {each.container_id: each.state for each in Holds(str(node.node.statedir)).all()}
    assert states[pod["metadata"]["uid"]] == RELEASING


def refused_in_time(node: StaticIpNode, pod: Document) -> str:
    """What an ADD says that is not served."""
    begun = time.monotonic()
    code, message = node.refused(pod)
    assert (code, time.monotonic() - begun < ADD) == (11, True), message
    return message


def renewal(control_plane: ControlPlane) -> str:
    """When the leading controller has renewed its Lease."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/{CONTROLLER}"
    return str(control_plane.api.get(path)["spec"]["renewTime"])


def test_what_is_deleted_while_the_api_server_is_dead_is_free_when_it_is_back(
    control_plane: ControlPlane, tenant: str, node: StaticIpNode
) -> None:
    first, second = (control_plane.create_pod(tenant, name, "node-1") for name in ("first", "second"))
    node.add(first)
    control_plane.kill_server()
    try:
        assert control_plane.url in refused_in_time(node, second)
        released_in_time(node, first)
    finally:
        control_plane.start_server()
        control_plane.wait_until_answers()
    eventually(lambda: not reserved(control_plane, tenant), "the address is free", seconds=FREE)
    eventually(lambda: node.call("ADD", second).code == 0, "an ADD is served", seconds=FREE)
    node.delete(second)
    assert reserved(control_plane, tenant) == set()


def test_rights_that_are_taken_away_are_named_and_what_is_left_is_released_when_they_are_back(
    control_plane: ControlPlane, tenant: str, node: StaticIpNode
) -> None:
    first, second = (control_plane.create_pod(tenant, name, "node-1") for name in ("first", "second"))
    node.add(first)
    binding = control_plane.api.get(f"{BINDINGS}/{AGENT}")
    control_plane.api.delete(f"{BINDINGS}/{AGENT}")
    try:
        text = f'403 Forbidden: pods "second" is forbidden: User "system:serviceaccount:{SYSTEM}:{AGENT}"'
        eventually(lambda: text in refused_in_time(node, second), "the rights are gone")
        assert control_plane.url in refused_in_time(node, second)
        released_in_time(node, first)
    finally:
        kept = {key: binding["metadata"].get(key) for key in ("name", "labels", "annotations")}
        control_plane.api.create(BINDINGS, {**binding, "metadata": kept})
    eventually(lambda: not reserved(control_plane, tenant), "the address is free", seconds=FREE)
    node.add(second)
    node.delete(second)


def test_tokens_and_authorities_are_replaced_under_a_running_agent_and_a_running_controller(
    control_plane: ControlPlane, tenant: str, node: StaticIpNode, agent_account: Account, tmp_path: Path
) -> None:
    """No ADD fails, nothing is restarted, and the controller goes on to lead."""
    number = 0

    def add_and_delete() -> None:
        nonlocal number
        number += 1
        pod = control_plane.create_pod(tenant, f"pod-{number}", "node-1")
        node.add(pod)
        node.delete(pod)
        assert reserved(control_plane, tenant) == set()

    with (
        account(control_plane, CONTROLLER, tmp_path / "controller-account") as controller_account,
        running_controller(controller_account.files.kubeconfig, tmp_path / "controller.log") as controller,
    ):
        accounts = (agent_account, controller_account)
        eventually(lambda: controller.lines("this replica leads"), "it leads")
        add_and_delete()
        for each in accounts:
            each.renew()
        end = time.monotonic() + FORGOTTEN
        while time.monotonic() < end:
            add_and_delete()
            time.sleep(1)
        # As a cluster's administrator does it: first both are trusted, then the server changes.
        former = control_plane.authority.read_bytes()
        control_plane.write_certificate()
        for each in accounts:
            each.files.trust(former, control_plane.authority.read_bytes())
        control_plane.kill_server()
        control_plane.start_server()
        control_plane.wait_until_answers()
        add_and_delete()
        for each in accounts:
            each.files.trust(control_plane.authority.read_bytes())
        add_and_delete()
        renewed = renewal(control_plane)
        eventually(lambda: renewal(control_plane) > renewed, "the controller leads on")
        assert (node.process.process.poll(), controller.process.poll()) == (None, None)
