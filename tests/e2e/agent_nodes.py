"""Nodes whose agents are real processes, each with a token bound to its pod, and a way to the API server."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.cnvnet_objects import agent
from tests.e2e.control_plane import ControlPlane, kubeconfig
from tests.e2e.request_proxy import RequestProxy, running_proxy
from tests.functional.agent.own_agent import RunningAgent, running_agent
from tests.harness import Node, Outcome, Sandbox, launchers, namespace

Document = dict[str, Any]

BRIDGE = "br0"
# As a pod of the runtime calls it.
IFNAME = "net1"


class AgentNode:
    """A host with an agent, and a way to the API server that a test can break."""

    def __init__(self, host: Node, proxy: RequestProxy, agent: RunningAgent, name: str) -> None:
        self.host = host
        self.proxy = proxy
        self.agent = agent
        self.name = name

    def call(
        self,
        command: str,
        pod: Document,
        sandbox: Sandbox | str,
        *,
        container_id: str,
        network: str,
        ifname: str = IFNAME,
        **ipam: Any,
    ) -> Outcome:
        """What a runtime calls for an interface of a pod: cnv-bridge, by its launcher."""
        metadata = pod["metadata"]
        args = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": metadata["namespace"],
            "K8S_POD_NAME": metadata["name"],
            "K8S_POD_UID": metadata["uid"],
        }
        config = {
            "cniVersion": "1.1.0",
            "name": network,
            "type": "cnv-bridge",
            "bridge": BRIDGE,
            "ipam": {"type": "static-ip", "subnet": "10.7.0.0/24", **ipam},
        }
        return self.host.cni(
            str(launchers() / "cnv-bridge"),
            command,
            config,
            sandbox,
            container_id=container_id,
            ifname=ifname,
            args=";".join(f"{key}={value}" for key, value in args.items()),
            env={"CNVNET_AGENT": "auto"},
        )


@contextmanager
def running_node(control_plane: ControlPlane, name: str, folder: Path) -> Generator[AgentNode]:
    """A host in a network namespace of its own, whose agent is that of the Kubernetes node `name`."""
    token = agent(control_plane, name).token
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        host = Node(undo.enter_context(namespace()), folder, undo)
        proxy = undo.enter_context(running_proxy(control_plane.url, within=host.netns))
        path = folder / "kubeconfig"
        path.write_text(json.dumps(kubeconfig(proxy.url, token, control_plane.authority.read_bytes())))
        options = ("--metrics-address", "", "--kubeconfig", str(path), "--node-name", name)
        within = ("env", f"CNVNET_STATEDIR={host.statedir}")
        yield AgentNode(host, proxy, undo.enter_context(running_agent(host, *options, within=within)), name)
