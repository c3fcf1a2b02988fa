"""The Kubernetes store on the real API server, as agents have it: each with a token bound to its pod."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cnvnet.ipam import allocator
from cnvnet.ipam.lease import Lease, LeaseKey
from cnvnet.ipam.store.holds import Holds
from cnvnet.ipam.store.kubernetes import KubernetesStore
from cnvnet.ipam.store.kubernetes_networks import OPEN
from cnvnet.kube.api import NotFound
from cnvnet.kube.client import Client
from cnvnet.kube.credentials import from_kubeconfig
from cnvnet.kube.resources import VM_LEASES
from tests.e2e.cnvnet_objects import LEASES, RESERVATIONS, agent
from tests.e2e.control_plane import ControlPlane
from tests.unit.ipam.store.conformance import Desk


class AgentStore(KubernetesStore):
    """The store as the suites of leases use one."""

    def close(self) -> None:
        """Its connections end, and what it knows of the API is gone, as if its process had ended."""
        self._over.clear()
        if isinstance(self._api, Client):
            self._api.close()


def agent_store(kubeconfig: Path, holds: Path, node: str) -> AgentStore:
    """The store of the agent that has this kubeconfig, with the hold files of this folder."""
    client = Client(from_kubeconfig(str(kubeconfig)))
    return AgentStore(client, Holds(str(holds)), node, new_networks=OPEN)


class AgentDesk(Desk):
    """The store of a node, behind the token of the node's agent. The network is called as the namespace."""

    def __init__(self, control_plane: ControlPlane, folder: Path, node: str, namespace: str) -> None:
        kubeconfig = control_plane.kubeconfig(agent(control_plane, node).token)
        super().__init__(agent_store(kubeconfig, folder / node, node))
        self.node, self.namespace = node, namespace

    def attach(self, vm: str, container: str, **options: Any) -> Lease:
        """An ADD of a pod: one of the VM, or one that is no VM if `vm` is empty."""
        key = LeaseKey(self.namespace, self.namespace, vm, "eth0")
        if not vm:
            key = LeaseKey(self.namespace, "", container, "eth0")
        pod = f"{self.namespace}/launcher-{container}"
        return self.add(vm, container, "uid-1", key=key, node=self.node, pod=pod, **options).lease

    def detach(self, container: str) -> None:
        """The DEL of a pod."""
        self.store.run(
            lambda ledger: allocator.release(ledger, self.namespace, container, "eth0", now=self.now)
        )


def reserved(control_plane: ControlPlane, network: str) -> dict[str, str]:
    """The addresses that are reserved in a network, and the node that has reserved each."""
    selector = f"labelSelector=cnvnet.io/network={network}"
    listed = control_plane.api.get(f"{RESERVATIONS}?{selector}")["items"]
    return {each["spec"]["address"]: each["spec"].get("node", "") for each in listed}


def remove_leases(control_plane: ControlPlane) -> None:
    """Removes what there is of leases and reservations in the whole cluster, as no user can."""
    admin = Client(from_kubeconfig(str(control_plane.kubeconfig())))
    found = [each["metadata"] for each in admin.list(VM_LEASES, metadata_only=True).items]
    for namespace in {each["namespace"] for each in found}:
        control_plane.api.delete(LEASES.format(namespace))
    for each in found:
        try:
            admin.patch(VM_LEASES, each["name"], {"metadata": {"finalizers": None}}, each["namespace"])
        except NotFound:
            pass  # nothing has kept it
    admin.close()
    control_plane.api.delete(RESERVATIONS)
