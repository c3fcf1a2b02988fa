"""Programs that are started manually with an administrator's kubeconfig, on a real API server."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cnvnet.vm import names
from tests import harness
from tests.e2e.cnvnet_objects import LEASES, NETWORKS, RESERVATIONS
from tests.e2e.control_plane import ControlPlane
from tests.e2e.controller_process import running_controller
from tests.e2e.kubevirt_objects import KubeVirt
from tests.e2e.machine import eventually
from tests.functional.agent.own_agent import running_agent
from tests.harness import Node, Outcome

pytestmark = pytest.mark.xdist_group("control_plane")

Document = dict[str, Any]

LAN = names.hashed("lan")
NETWORK = "manual"
CONFIG: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": NETWORK,
    "type": "macvlan",
    "ipam": {"type": "static-ip", "store": "kubernetes", "subnet": "10.13.0.0/24"},
}


def token(document: Document, folder: Path) -> None:
    """As `ControlPlane.kubeconfig` writes it: the token, and the authority, in the file itself."""


def token_file(document: Document, folder: Path) -> None:
    user = document["users"][0]["user"]
    (folder / "token").write_text(user.pop("token"))
    # Beside the kubeconfig.
    user["tokenFile"] = "token"


def authority_file(document: Document, folder: Path) -> None:
    cluster = document["clusters"][0]["cluster"]
    (folder / "ca.crt").write_bytes(base64.b64decode(cluster.pop("certificate-authority-data")))
    cluster["certificate-authority"] = "ca.crt"


def server_name(document: Document, folder: Path) -> None:
    # One that the certificate has, too.
    document["clusters"][0]["cluster"]["tls-server-name"] = "kubernetes.default.svc"


def unverified(document: Document, folder: Path) -> None:
    cluster = document["clusters"][0]["cluster"]
    del cluster["certificate-authority-data"]
    cluster["insecure-skip-tls-verify"] = True


def program(document: Document, folder: Path) -> None:
    user = document["users"][0]["user"]
    version = "client.authentication.k8s.io/v1"
    printed = {"apiVersion": version, "kind": "ExecCredential", "status": {"token": user.pop("token")}}
    (folder / "login").write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(printed)}\nEND\n")
    (folder / "login").chmod(0o755)
    user["exec"] = {"apiVersion": version, "command": "./login", "interactiveMode": "Never"}


Form = Callable[[Document, Path], None]
FORMS: tuple[Form, ...] = (token, token_file, authority_file, server_name, unverified, program)


class NodeOne:
    """node-1 as far as static-ip is concerned, which changes nothing outside of its folders."""

    def __init__(self, node: Node, control_plane: ControlPlane) -> None:
        self.node = node
        self.control_plane = control_plane

    def call(self, command: str, pod: dict[str, Any], env: dict[str, str]) -> Outcome:
        metadata = pod["metadata"]
        args = ";".join(f"K8S_POD_{key.upper()}={metadata[key]}" for key in ("namespace", "name", "uid"))
        return self.node.cni(
            "static-ip",
            command,
            CONFIG,
            "/run/netns/nowhere",
            container_id=metadata["uid"],
            ifname=LAN,
            args=f"IgnoreUnknown=1;{args}",
            env=env,
        )

    def reserved(self) -> set[str]:
        path = f"{RESERVATIONS}?labelSelector=cnvnet.io/network={NETWORK}"
        return {each["spec"]["address"] for each in self.control_plane.api.get(path)["items"]}


@pytest.fixture
def node(control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeOne]:
    # The harness would start an agent without credentials.
    monkeypatch.setattr(harness, "through", "")
    with ExitStack() as undo:
        undo.callback(forget_network, control_plane)
        # The server is in the namespace of the tests.
        yield NodeOne(Node(f"/proc/{os.getpid()}/ns/net", tmp_path, undo), control_plane)


def forget_network(control_plane: ControlPlane) -> None:
    path = f"{NETWORKS}/{NETWORK}"
    if control_plane.api.find(path):
        control_plane.api.delete(path)


def test_an_agent_and_a_controller_keep_and_free_a_vms_addresses(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, node: NodeOne, tmp_path: Path
) -> None:
    kubeconfig = control_plane.kubeconfig()
    options = ("--metrics-address", "", "--kubeconfig", str(kubeconfig), "--node-name", "node-1")
    machine = kubevirt.create_machine(tenant, "web")
    with running_controller(kubeconfig, tmp_path / "controller.log"):
        with running_agent(node.node, *options) as agent:
            running = kubevirt.start(machine, "node-1")
            added = node.call("ADD", running.pod, {"CNVNET_AGENT": "auto"}).ok()
            assert len([each for each in agent.events() if each["msg"] == "call"]) == 1
            (lease,) = control_plane.api.get(LEASES.format(tenant))["items"]
            assert added["ips"][0]["address"] == f"{lease['spec']['ips'][0]}/24"
            assert [each["node"] for each in lease["status"]["holders"].values()] == ["node-1"]
            node.call("DEL", running.pod, {"CNVNET_AGENT": "auto"}).ok()
        kubevirt.stop(running)
        assert node.reserved() == {*lease["spec"]["ips"], lease["spec"]["mac"]}
        kubevirt.delete(machine)
        eventually(lambda: not control_plane.api.get(LEASES.format(tenant))["items"], "the lease is gone")
        assert node.reserved() == set()


def test_an_executable_needs_no_agent_where_a_kubeconfig_is_named(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, node: NodeOne
) -> None:
    env = {"CNVNET_AGENT": "off", "CNVNET_KUBECONFIG": str(control_plane.kubeconfig())}
    machine = kubevirt.create_machine(tenant, "web")
    first = kubevirt.start(machine, "node-1")
    added = node.call("ADD", first.pod, env).ok()
    node.call("DEL", first.pod, env).ok()
    kubevirt.stop(first)
    second = kubevirt.start(machine, "node-1")
    assert node.call("ADD", second.pod, env).ok()["ips"] == added["ips"]
    node.call("DEL", second.pod, env).ok()
    kubevirt.stop(second)
    # Without agent and kubeconfig it is said what is missing.
    error = node.call("ADD", second.pod, {"CNVNET_AGENT": "off"}).error()
    missing = "CNVNET_KUBECONFIG, --kubeconfig of the agent, or /etc/cnvnet/kubeconfig"
    assert error["code"] == 11
    assert error["msg"] == f"store kubernetes: no credentials for the Kubernetes API ({missing})"
    with running_controller(control_plane.kubeconfig(), Path(node.node.folder) / "controller.log"):
        kubevirt.delete(machine)
        eventually(lambda: node.reserved() == set(), "its addresses are free")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_kubeconfig_has_any_form(
    control_plane: ControlPlane, tenant: str, node: NodeOne, tmp_path: Path, form: Form
) -> None:
    document: Document = json.loads(control_plane.kubeconfig().read_text())
    folder = tmp_path / "etc"
    folder.mkdir()
    form(document, folder)
    (folder / "kubeconfig").write_text(json.dumps(document))
    env = {"CNVNET_AGENT": "off", "CNVNET_KUBECONFIG": str(folder / "kubeconfig")}
    pod = control_plane.create_pod(tenant, "plain", "node-1")
    added = node.call("ADD", pod, env)
    assert added.ok()["ips"]
    assert ("insecure-skip-tls-verify: any server at" in added.stderr) == (form is unverified)
    node.call("DEL", pod, env).ok()
    assert node.reserved() == set()


def test_a_server_that_is_not_called_so_is_not_believed(
    control_plane: ControlPlane, tenant: str, node: NodeOne, tmp_path: Path
) -> None:
    document: Document = json.loads(control_plane.kubeconfig().read_text())
    document["clusters"][0]["cluster"]["tls-server-name"] = "elsewhere.test"
    (tmp_path / "kubeconfig").write_text(json.dumps(document))
    env = {"CNVNET_AGENT": "off", "CNVNET_KUBECONFIG": str(tmp_path / "kubeconfig")}
    error = node.call("ADD", control_plane.create_pod(tenant, "plain", "node-1"), env).error()
    assert error["code"] == 11
    assert "the server's certificate cannot be verified" in error["msg"]
    assert control_plane.url in error["msg"]
