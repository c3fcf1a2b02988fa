"""The Kubernetes store on an API server in memory, as the suites over all stores open it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from cnvnet.ipam.store import objects
from cnvnet.ipam.store.holds import Holds
from cnvnet.ipam.store.kubernetes import KubernetesStore
from cnvnet.ipam.store.kubernetes_networks import OPEN
from cnvnet.kube.api import Api, ApiError, Document, Listing, refused
from cnvnet.kube.resources import IP_RESERVATIONS, VM_LEASES, Resource
from tests.fakes.api_objects import Objects, Refusal
from tests.fakes.api_server import ApiServer, Asked

# The node whose pods a suite attaches; holders of other nodes name theirs.
NODE: Final = "n1"


class Killed(BaseException):
    """The process of the call has ended: nothing that it would do after this happens."""


class DirectApi:
    """An API server in memory without HTTP, for tests of many thousand requests."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self.server = "https://direct"

    def get(self, resource: Resource, name: str, namespace: str = "") -> Document:
        return self._ask("get", resource, namespace, name)

    def create(self, resource: Resource, document: Mapping[str, Any], namespace: str = "") -> Document:
        return self._ask("create", resource, namespace, "", body=document)

    def patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        namespace: str = "",
        *,
        subresource: str = "",
    ) -> Document:
        return self._ask("patch", resource, namespace, name, body=patch)

    def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
    ) -> None:
        conditions = {"uid": uid, "resourceVersion": resource_version}
        body = {"preconditions": {key: value for key, value in conditions.items() if value}}
        self._ask("delete", resource, namespace, name, body=body)

    def list(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
        resource_version: str = "",
    ) -> Listing:
        query = {"labelSelector": labels, "fieldSelector": fields, "accept": ""}
        found = self._ask("list", resource, namespace, "", query=query)
        return Listing(tuple(found["items"]), str(found["metadata"]["resourceVersion"]))

    def watch(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a store watches nothing")

    def _ask(
        self,
        verb: str,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: dict[str, str] | None = None,
    ) -> Document:
        copy = json.loads(json.dumps(body or {}))
        asked = Asked(verb, resource, namespace, name, query or {}, "", copy, ("", 0))
        self._server.logged(asked)
        try:
            _, document = self._server.apply(asked)
        except Refusal as e:
            raise refused(self.server, f"{verb} {resource.plural} {name}", e.status, e.document()) from None
        copied: Document = json.loads(json.dumps(document))
        return copied


class MortalApi:
    """An Api whose process is killed at one of its requests: before it is applied, or after."""

    def __init__(self, api: Api, at: int, *, after: bool) -> None:
        self._api = api
        self._left = at
        self._after = after
        self.is_dead = False

    def __getattr__(self, name: str) -> Any:
        target = getattr(self._api, name)
        if not callable(target):
            return target

        def request(*args: Any, **kwargs: Any) -> Any:
            if self.is_dead:
                raise Killed
            self._left -= 1
            if self._left >= 0:
                return target(*args, **kwargs)
            self.is_dead = True
            if self._after:
                with suppress(ApiError):
                    target(*args, **kwargs)
            raise Killed

        return request


class FolderStore(KubernetesStore):
    """A store that a suite opens by a folder: two of one folder are two programs of one node."""

    def close(self) -> None:
        """What it knows of the API is gone, as if its process had ended."""
        self._over.clear()


class _Shared:
    """One server for all tests: to start one takes longer than most of them."""

    server: ApiServer | None = None
    folder: Path | None = None


def open_kubernetes(folder: Path) -> FolderStore:
    """The store of a node with this folder, in a cluster of its own: one folder is in use at a time."""
    if _Shared.server is None:
        _Shared.server = ApiServer()
        _Shared.server.start()
    if _Shared.folder != folder:
        _Shared.folder = folder
        _Shared.server.objects = Objects()
        _Shared.server.requests.clear()
    return FolderStore(_Shared.server.client(), Holds(str(folder)), NODE, new_networks=OPEN)


class Cluster(Protocol):
    """An API server whose objects can be looked at."""

    def documents(self, resource: Resource) -> list[Document]:
        """All objects of a kind."""
        ...


def disagreements(cluster: Cluster | None = None) -> list[str]:
    """What VMLeases and IPReservations say against each other, when no call is under way.

    Every address that a lease lists is reserved for it, unless it is still to be confirmed, and every
    reservation of a lease is of an address that it lists or keeps while it cools down. Without a cluster, of
    the one in which `open_kubernetes` has opened stores.
    """
    cluster = cluster or _Shared.server
    assert cluster is not None
    documents, reserved = cluster.documents(VM_LEASES), cluster.documents(IP_RESERVATIONS)
    leases = {each["metadata"]["uid"]: objects.read_lease(each) for each in documents}
    owners: dict[tuple[str, str], str] = {}
    wrong: list[str] = []
    for each in map(objects.read_reservation, reserved):
        if each.pod is not None:
            continue
        owners[each.network, each.address] = each.lease_uid
        lease = leases.get(each.lease_uid)
        cooling = [str(cooldown.ip) for cooldown in lease.cooling] if lease is not None else []
        if lease is None or each.address not in (*lease.listed, *cooling):
            wrong.append(f"{each.name} is left over")
    for lease in leases.values():
        if lease.is_deleted:
            wrong.append(f"{lease.key} is not quite deleted")
        wrong += [
            f"{lease.key} has {each}, which is not reserved for it"
            for each in lease.listed
            if each not in lease.pending and owners.get((lease.key.network, each)) != lease.uid
        ]
    return wrong
