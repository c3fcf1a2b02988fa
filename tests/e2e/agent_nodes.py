"""Nodes whose agents are real processes, each with a token bound to its pod, and a way to the API server."""

from __future__ import annotations

import json
import uuid
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
IPAM: Document = {"type": "static-ip", "subnet": "10.7.0.0/24"}
# The kernel's own id would be the same after what a test calls a reboot.
_BOOT = """
mount --bind "$1" /proc/sys/kernel/random/boot_id
export CNVNET_STATEDIR="$2"
shift 2
exec "$@"
"""


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
        ipam: Document = IPAM,
        **keys: Any,
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
            "ipam": ipam,
            **keys,
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
def running_node(
    control_plane: ControlPlane, name: str, folder: Path, before: AgentNode | None = None
) -> Generator[AgentNode]:
    """A host in a network namespace of its own, whose agent is that of the Kubernetes node `name`.

    `before` is the same one before it was rebooted: it has its disk, and nothing else of it.
    """
    token = agent(control_plane, name).token
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        host = Node(undo.enter_context(namespace()), folder, undo)
        if before is not None:
            host.statedir = before.host.statedir
        proxy = undo.enter_context(running_proxy(control_plane.url, within=host.netns))
        path = folder / "kubeconfig"
        path.write_text(json.dumps(kubeconfig(proxy.url, token, control_plane.authority.read_bytes())))
        boot = folder / "boot_id"
        boot.write_text(f"{uuid.uuid4()}\n")
        options = ("--metrics-address", "", "--kubeconfig", str(path), "--node-name", name)
        within = ("unshare", "--mount", "sh", "-euc", _BOOT, "sh", str(boot), str(host.statedir))
        yield AgentNode(host, proxy, undo.enter_context(running_agent(host, *options, within=within)), name)
