"""Nodes of a cluster whose API server is in memory, for the tests of the Kubernetes store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cnvnet.ipam.lease import Lease, LeaseKey
from cnvnet.ipam.store import objects
from cnvnet.ipam.store.holds import Holds
from cnvnet.ipam.store.kubernetes import KubernetesStore
from cnvnet.kube.resources import IP_RESERVATIONS, VM_LEASES
from tests.fakes.api_server import ApiServer
from tests.fakes.kubernetes_store import Cluster, DirectApi, MortalApi
from tests.unit.ipam.store.conformance import Desk


class Node(Desk):
    """A node of the cluster: a store, and the pods that are attached there."""

    store: Any

    def __init__(
        self, server: ApiServer, folder: Path, name: str = "n1", *, direct: bool = False, **options: Any
    ) -> None:
        """`direct` spares it HTTP."""
        self.holds = Holds(str(folder / name))
        self.server, self.name, self.options = server, name, options
        self.client = DirectApi(server) if direct else server.client()
        store: Any = KubernetesStore(self.client, self.holds, name, **options)
        super().__init__(store)

    def attach(self, vm: str, container: str, uid: str = "", **options: Any) -> Lease:
        options = {"node": self.name, "pod": f"default/virt-launcher-{vm}-{container}"} | options
        return self.add(vm, container, uid, **options).lease

    def attach_pod(self, container: str, **options: Any) -> Lease:
        key = LeaseKey("net", "", container, "eth0")
        return self.attach("", container, key=key, **{"pod": f"default/{container}"} | options)

    def killed_at(self, request: int, *, after: bool) -> Node:
        """The same node with a process that is killed at one of its requests."""
        other = Node.__new__(Node)
        other.__dict__.update(self.__dict__)
        api: Any = MortalApi(self.client, request, after=after)
        other.store = KubernetesStore(api, self.holds, self.name, **self.options)
        return other

    def neighbour(self, name: str) -> Node:
        """Another node of the cluster."""
        return Node(self.server, Path(self.holds.statedir).parent, name, direct=True)

    def restart(self) -> Node:
        """The same node with another process; its clock and its holds are the same."""
        other = Node.__new__(Node)
        other.__dict__.update(self.__dict__)
        options: dict[str, Any] = self.options | {"clock": lambda: other.now}
        other.store = KubernetesStore(self.client, self.holds, self.name, **options)
        return other


def asked(server: ApiServer) -> list[str]:
    """What the server was asked since the last look, IPNetworks aside: they are asked for once in 30 s."""
    found = [f"{each.asked.verb} {each.asked.plural}" for each in server.requests]
    server.requests.clear()
    return [each for each in found if not each.endswith("ipnetworks")]


def reserved(cluster: Cluster) -> list[objects.StoredReservation]:
    return [objects.read_reservation(each) for each in cluster.documents(IP_RESERVATIONS)]


def leases(cluster: Cluster) -> list[objects.StoredLease]:
    return [objects.read_lease(each) for each in cluster.documents(VM_LEASES)]
