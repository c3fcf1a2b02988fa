"""The object with which a VMLease goes. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from cnvnet.ipam.lease import NEVER, Lease
from cnvnet.kube.api import Document


class LeaseOwner(NamedTuple):
    """The object with which a lease goes: the IPAMClaim, the VirtualMachine or the stand-alone instance."""

    api_version: str
    kind: str
    name: str
    uid: str


def references(owner: LeaseOwner, lease: Lease) -> list[Document] | None:
    """The lease's `metadata.ownerReferences`; None for one that is never released."""
    if lease.release == NEVER:
        return None
    return [{"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid}]


def is_missing(owner: LeaseOwner, lease: Lease, owners: Collection[str]) -> bool:
    """Whether a lease is to have this owner, and has the ones with these UIDs.

    No node changes the owner of a lease that another one's pod holds.
    """
    is_ours = len({each.node for each in lease.holders}) == 1
    return is_ours and lease.release != NEVER and owner.uid not in owners
