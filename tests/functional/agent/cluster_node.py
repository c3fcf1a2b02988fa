"""A node of a cluster whose API server is in memory: an agent of its own asks it, over TLS, with a token.

    with cluster_node(node, tmp_path) as cluster:
        with cluster.running_agent() as agent:
            pod = cluster.attach(cluster.launchers.start("vm-a"))
            cluster.server.stop()
            cluster.call("DEL", pod).ok()

The server listens inside the node's network namespace, where a packet filter can come between the two.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cnvnet.cni.conventions import PodRef
from cnvnet.ipam.store import objects
from cnvnet.ipam.store.holds import Hold, Holds
from cnvnet.kernel import netns
from cnvnet.kube.resources import IP_RESERVATIONS, VM_LEASES
from cnvnet.vm import names
from tests.fakes.api_server import ApiServer
from tests.fakes.certificates import Authority
from tests.fakes.kubernetes_store import disagreements
from tests.fakes.launchers import Launchers, cni_args
from tests.functional.agent import own_agent
from tests.functional.agent.launcher_calls import Started, cni, start
from tests.functional.agent.own_agent import RunningAgent
from tests.harness import Node, Outcome, Sandbox

# The interface that both VMs of the tests have on the network.
LAN = names.hashed("lan")
IPAM: dict[str, Any] = {"type": "static-ip", "subnet": "10.1.0.0/24", "store": "kubernetes"}
NETWORK: dict[str, Any] = {"cniVersion": "1.1.0", "name": "vms", "type": "cnv-bridge", "bridge": "br-vms"}
NODE_NAME = "node-1"


class Attached(NamedTuple):
    """A pod that has been added, or is to be."""

    pod: PodRef
    sandbox: Sandbox
    # Its keys of `ipam` besides IPAM's.
    keys: dict[str, Any]

    @property
    def container_id(self) -> str:
        return self.pod.uid

    @property
    def config(self) -> dict[str, Any]:
        return {**NETWORK, "ipam": {**IPAM, **self.keys}}


class ClusterNode:
    """A node, the server, and the credentials in between."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.folder = folder
        self.authority = Authority(folder, "authority")
        self.server = ApiServer(self.authority.issue("server"))
        self.server.tokens = {"first"}
        self.launchers = Launchers(self.server)
        self.token, self.trusted = folder / "token", folder / "ca.crt"
        self.token.write_text("first")
        self.trust(self.authority)
        self.kubeconfig = folder / "kubeconfig"

    def start_server(self) -> None:
        """Also after `server.stop`: at the same port, in the namespace of `node`."""
        with netns.opened(self.node.netns) as there, netns.entered(there):
            self.server.start()
        cluster = {"server": self.server.url, "certificate-authority": "ca.crt"}
        document = {
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"tokenFile": "token"}}],
        }
        self.kubeconfig.write_text(json.dumps(document))

    def trust(self, *authorities: Authority) -> None:
        """The file of the authorities is replaced, as the kubelet replaces one."""
        new = self.folder / "ca.crt.new"
        new.write_text("".join(Path(each.certificate).read_text() for each in authorities))
        new.rename(self.trusted)

    def running_agent(self) -> AbstractContextManager[RunningAgent]:
        """The node's agent; its leases are in the node's folder."""
        options = ("--kubeconfig", str(self.kubeconfig), "--node-name", NODE_NAME)
        within = ("env", f"CNVNET_STATEDIR={self.node.statedir}")
        return own_agent.running_agent(self.node, *options, within=within)

    def rebooted(self, node: Node) -> None:
        """The node is another one now that has its disk: RUNDIR and all namespaces are gone."""
        node.statedir = self.node.statedir
        self.node = node

    def new(self, pod: PodRef, **keys: Any) -> Attached:
        """A pod that is still to be added."""
        return Attached(pod, self.node.pod(), keys)

    def attach(self, pod: PodRef, **keys: Any) -> Attached:
        """An ADD that has to succeed."""
        made = self.new(pod, **keys)
        self.call("ADD", made).ok()
        return made

    def call(self, command: str, of: Attached, netns: str = "") -> Outcome:
        """Through the agent; `netns` is the path where the pod's is gone."""
        return cni(
            self.node,
            command,
            netns or of.sandbox,
            config=of.config,
            container_id=of.container_id,
            ifname=LAN,
            args=cni_args(of.pod),
        )

    def start(self, command: str, of: Attached) -> Started:
        """The same, and the launcher still runs."""
        env = {"CNI_CONTAINERID": of.container_id, "CNI_IFNAME": LAN, "CNI_ARGS": cni_args(of.pod)}
        return start(self.node, command, of.sandbox, of.config, **env)

    def holds(self) -> dict[str, str]:
        """The states of the hold files, by container."""
        found: list[Hold] = Holds(str(self.node.statedir)).all()
        return {each.container_id: each.state for each in found}

    def leases(self) -> list[objects.StoredLease]:
        with self.server.objects.changed:
            found = list(self.server.objects.matching(VM_LEASES, "", lambda _: True))
        return [objects.read_lease(each) for each in found]

    def remains(self) -> list[str]:
        """What a node without pods has left: only a lease of a stopped VM, which keeps its addresses."""
        with self.server.objects.changed:
            reserved = list(self.server.objects.matching(IP_RESERVATIONS, "", lambda _: True))
        listed = {address for lease in self.leases() for address in lease.listed}
        addresses = {each["spec"]["address"] for each in reserved}
        return [
            *(f"hold of {container}: {state}" for container, state in self.holds().items()),
            *(f"{lease.key}: {lease.holder_keys}" for lease in self.leases() if lease.holder_keys),
            *(f"{lease.key} is still there" for lease in self.leases() if lease.key.vm != "vm-a"),
            *(f"{address} is still reserved" for address in addresses - listed),
            *disagreements(self.server),
        ]


@contextmanager
def cluster_node(node: Node, folder: Path) -> Generator[ClusterNode]:
    """One whose server runs, and ends with the block."""
    made = ClusterNode(node, folder)
    made.start_server()
    try:
        yield made
    finally:
        made.server.stop()
