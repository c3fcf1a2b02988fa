"""A network moves from leases of each node into the cluster and back, with agents and all policies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from cnvnet.ipam.lease import Lease
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.vm import names
from tests import harness
from tests.e2e.agent_stores import reserved
from tests.e2e.cnvnet_objects import LEASES, NETWORKS, agent, network
from tests.e2e.control_plane import ControlPlane
from tests.e2e.kubevirt_objects import STAGES, KubeVirt
from tests.e2e.machine import eventually
from tests.functional.agent.own_agent import running_agent
from tests.harness import Node, Outcome

pytestmark = pytest.mark.xdist_group("control_plane")

LAN = names.hashed("lan")
LOCAL = {"nodeLocal": True, "release": "vm-deleted"}
CLUSTER = {"store": "kubernetes"}


class AgentNode:
    """A node of the cluster with its agent, which can be started again."""

    def __init__(self, control_plane: ControlPlane, name: str, network: str, folder: Path) -> None:
        (folder / name).mkdir()
        self._undo = ExitStack()
        # Static-ip changes nothing outside of its folders, and the server is in the namespace of the tests.
        self.node = Node(f"/proc/{os.getpid()}/ns/net", folder / name, self._undo)
        self.network = network
        kubeconfig = str(control_plane.kubeconfig(agent(control_plane, name).token))
        self._options = ("--metrics-address", "", "--kubeconfig", kubeconfig, "--node-name", name)
        self._agent: AbstractContextManager[Any] | None = None

    def start(self, *options: str) -> None:
        """Start its agent, again if it runs, with more options."""
        self.stop()
        folder = f"CNVNET_STATEDIR={self.node.statedir}"
        self._agent = running_agent(self.node, *self._options, *options, within=("env", folder))
        self._agent.__enter__()

    def stop(self) -> None:
        running, self._agent = self._agent, None
        if running is not None:
            running.__exit__(None, None, None)

    def close(self) -> None:
        self.stop()
        self._undo.close()

    def call(self, command: str, pod: dict[str, Any], **ipam: Any) -> Outcome:
        metadata = pod["metadata"]
        args = (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE={metadata['namespace']};K8S_POD_NAME={metadata['name']};"
            f"K8S_POD_UID={metadata['uid']}"
        )
        return self.node.cni(
            "static-ip",
            command,
            {
                "cniVersion": "1.1.0",
                "name": self.network,
                "type": "macvlan",
                "ipam": {"type": "static-ip", **ipam},
            },
            "/run/netns/nowhere",
            container_id=metadata["uid"],
            ifname=LAN,
            args=args,
            env={"CNVNET_AGENT": "auto"},
        )

    def add(self, pod: dict[str, Any], **ipam: Any) -> Any:
        return self.call("ADD", pod, subnet="10.1.0.0/24", **ipam).ok()["ips"]

    def leases(self) -> list[Lease]:
        return Sqlite(str(self.node.statedir)).look(lambda ledger: list(ledger.leases()))


@pytest.fixture
def nodes(
    control_plane: ControlPlane, tenant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[AgentNode, AgentNode]]:
    # The agents of this test have credentials; the harness' own would have none.
    monkeypatch.setattr(harness, "through", "")
    with ExitStack() as undo:
        made = [AgentNode(control_plane, name, tenant, tmp_path) for name in ("node-1", "node-2")]
        for each in made:
            undo.callback(each.close)
            each.start()
        yield made[0], made[1]


def test_a_vm_that_runs_keeps_its_address_into_the_cluster_over_a_move_and_back(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, nodes: tuple[AgentNode, AgentNode]
) -> None:
    one, two = nodes
    machine = kubevirt.create_machine(tenant, "web")
    running = kubevirt.start(machine, "node-1")
    first = one.add(running.pod, **LOCAL)
    (local,) = one.leases()
    # As docs/kubernetes.md has it: first the IPNetwork, then the agents hand over, then the configuration.
    control_plane.api.create(NETWORKS, network(tenant, tenant))
    one.start()
    leases = LEASES.format(tenant)
    eventually(lambda: control_plane.api.get(leases)["items"] and not one.leases(), "the agent has seen it")
    (adopted,) = control_plane.api.get(leases)["items"]
    assert (adopted["spec"]["ips"], adopted["spec"]["mac"]) == ([str(local.ips[0])], local.mac)
    assert [each["node"] for each in adopted["status"]["holders"].values()] == ["node-1"]
    assert adopted["metadata"]["ownerReferences"][0]["uid"] == machine["metadata"]["uid"]
    assert set(reserved(control_plane, tenant)) == {str(local.ips[0]), local.mac}
    migrating = kubevirt.migrate(running, "node-2")
    assert two.add(migrating.target, **CLUSTER) == first
    kubevirt.advance(migrating, STAGES[-1])
    # Multus passes no more than the type on a DEL.
    one.call("DEL", running.pod).ok()
    (moved,) = control_plane.api.get(leases)["items"]
    assert [each["node"] for each in moved["status"]["holders"].values()] == ["node-2"]
    two.call("DEL", migrating.target).ok()
    kubevirt.stop(running)
    again = kubevirt.start(machine, "node-1")
    assert one.add(again.pod, **CLUSTER) == first
    one.call("DEL", again.pod).ok()
    # And back: the lease is the node's, and the cluster has none of it.
    assert one.add(again.pod, **LOCAL) == first
    assert control_plane.api.get(leases)["items"] == []
    assert set(reserved(control_plane, tenant)) - {str(local.ips[0]), local.mac} == set()
    assert [str(ip) for each in one.leases() for ip in each.ips] == [str(local.ips[0])]
    one.call("DEL", again.pod).ok()
    assert one.leases()[0].holders == ()
    kubevirt.stop(again)
    kubevirt.delete(machine)


def test_the_agents_option_says_who_may_use_a_new_network(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, nodes: tuple[AgentNode, AgentNode]
) -> None:
    one, _ = nodes
    pod = control_plane.create_pod(tenant, "plain", "node-1")
    one.start("--new-networks=refuse")
    refused = one.call("ADD", pod, subnet="10.1.0.0/24", **CLUSTER).error()
    assert (refused["code"], f"there is no IPNetwork {tenant}, and agents make none" in refused["msg"]) == (
        7,
        True,
    )
    assert control_plane.api.find(f"{NETWORKS}/{tenant}") is None
    one.start("--new-networks=open")
    one.add(pod, **CLUSTER)
    assert control_plane.api.get(f"{NETWORKS}/{tenant}")["spec"]["namespaces"] == ["*"]
    one.call("DEL", pod).ok()
