"""static-ip on nodes of the control plane: real executables, the agent's own token, all policies."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cnvnet.vm import names
from tests.e2e.cnvnet_objects import AGENT, LEASES, RESERVATIONS, SYSTEM, agent
from tests.e2e.control_plane import ControlPlane
from tests.functional.agent.own_agent import RunningAgent, running_agent
from tests.harness import Node, Outcome

Document = dict[str, Any]

LAN = names.hashed("lan")
ACCOUNT = f"system:serviceaccount:{SYSTEM}:{AGENT}"
"""What the API server calls agents."""


class StaticIpNode:
    """A node whose agent runs the calls. A network is called as the test's namespace: no two share one."""

    def __init__(self, node: Node, name: str, process: RunningAgent) -> None:
        self.name = name
        self.node = node
        self.process = process

    def call(
        self,
        command: str,
        pod: Document,
        *,
        ifname: str = LAN,
        network: str = "",
        sandbox: str = "",
        **keys: Any,
    ) -> Outcome:
        """A call for the pod's interface; `keys` are keys of the network's configuration."""
        metadata = pod["metadata"]
        args = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": metadata["namespace"],
            "K8S_POD_NAME": metadata["name"],
            "K8S_POD_UID": metadata["uid"],
        }
        ipam = {"type": "static-ip", "subnet": "10.1.0.0/24", **keys.pop("ipam", {})}
        document = {"cniVersion": "1.1.0", "name": network or metadata["namespace"], "type": "macvlan"}
        return self.node.cni(
            "static-ip",
            command,
            {**document, "ipam": ipam, **keys},
            "/run/netns/nowhere",
            container_id=f"{sandbox}{metadata['uid']}",
            ifname=ifname,
            args=";".join(f"{key}={value}" for key, value in args.items()),
            env={"CNVNET_AGENT": "auto"},
        )

    def add(self, pod: Document, **keys: Any) -> list[str]:
        """The addresses that an ADD gives, with their prefixes."""
        return [each["address"] for each in self.call("ADD", pod, **keys).ok()["ips"]]

    def refused(self, pod: Document, **keys: Any) -> tuple[int, str]:
        """The code and the words of an ADD that fails."""
        error = self.call("ADD", pod, **keys).error()
        sys.stdout.write(f"refused: {error['msg']}\n")
        return error["code"], error["msg"]

    def delete(self, pod: Document, **keys: Any) -> None:
        self.call("DEL", pod, **keys).ok()


@contextmanager
def running_node(control_plane: ControlPlane, name: str, folder: Path) -> Generator[StaticIpNode]:
    """A node of the control plane, with its agent; it changes nothing outside of `folder`."""
    folder.mkdir()
    with ExitStack() as undo:
        # The server is in the namespace of the tests.
        node = Node(f"/proc/{os.getpid()}/ns/net", folder, undo)
        kubeconfig = control_plane.kubeconfig(agent(control_plane, name).token)
        options = ("--metrics-address", "", "--kubeconfig", str(kubeconfig), "--node-name", name)
        yield StaticIpNode(node, name, undo.enter_context(running_agent(node, *options)))


def leases(control_plane: ControlPlane, namespace: str) -> list[Document]:
    """The VMLeases of a namespace."""
    listed: list[Document] = control_plane.api.get(LEASES.format(namespace))["items"]
    return listed


def reserved(control_plane: ControlPlane, network: str) -> set[str]:
    """The addresses of IP that are reserved in a network."""
    listed = control_plane.api.get(f"{RESERVATIONS}?labelSelector=cnvnet.io/network={network}")["items"]
    addresses: set[str] = {each["spec"]["address"] for each in listed}
    return {each for each in addresses if each.count(":") != 5}
