"""Lists what a sweep decides by."""

from __future__ import annotations

from typing import Final

from cnvnet.controller import snapshot
from cnvnet.controller.snapshot import ClusterSnapshot
from cnvnet.kube.api import Api, ApiError
from cnvnet.kube.resources import (
    INSTANCES,
    IP_RESERVATIONS,
    IPAM_CLAIMS,
    NODES,
    PODS,
    VIRTUAL_MACHINES,
    VM_LEASES,
    Resource,
)

# The status for an object and for a kind that is not there.
_NOT_THERE: Final = 404


def take(api: Api) -> ClusterSnapshot:
    """The cluster as it is now. ApiError: a list is not complete, and nothing can be decided.

    What is referred to is listed after what refers to it: a lease is made after its VM and before its
    reservations, so that none of them is missing because it came in between. Of most kinds the metadata are
    asked for alone: a pod of KubeVirt's has 20 KiB, its metadata 2.
    """
    reservations = api.list(IP_RESERVATIONS).items
    leases = api.list(VM_LEASES).items
    pods = api.list(PODS, metadata_only=True).items
    instances = _of_kubevirt(api, INSTANCES)
    machines = _of_kubevirt(api, VIRTUAL_MACHINES)
    taken = snapshot.assemble(
        reservations=reservations,
        leases=leases,
        pods=pods,
        instances=instances or (),
        # Without instances it cannot be known that none of a VM runs.
        machines=machines if instances is not None else None,
        nodes=api.list(NODES).items,
    )
    return taken._replace(claims=_claims(api, taken))


def _of_kubevirt(api: Api, resource: Resource) -> tuple[snapshot.Document, ...] | None:
    """All objects of the kind; None where the cluster does not have it, which says nothing of any VM."""
    try:
        return api.list(resource, metadata_only=True).items
    except ApiError as e:
        if e.status == _NOT_THERE:
            return None
        raise


def _claims(api: Api, taken: ClusterSnapshot) -> frozenset[str]:
    claims: set[str] = set()
    for namespace, claim in snapshot.claims_asked_for(taken):
        try:
            claims.add(snapshot.uid_of(api.get(IPAM_CLAIMS, claim.name, namespace)))
        except ApiError as e:
            # Also where the cluster has no claims any more.
            if e.status != _NOT_THERE:
                raise
    return frozenset(claims)
