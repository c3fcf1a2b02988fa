"""What an action makes of one lease, until it is committed."""

from __future__ import annotations

from cnvnet.ipam.lease import Cooldown, Holder, Lease, LeaseKey
from cnvnet.ipam.store import object_names, objects
from cnvnet.ipam.store.holds import Hold
from cnvnet.ipam.store.objects import StoredLease


class Work:
    """What an action makes of one lease."""

    def __init__(
        self,
        key: LeaseKey,
        before: Lease | None,
        cooling: tuple[Cooldown, ...],
        stored: StoredLease | None,
        holds: list[Hold],
    ) -> None:
        self.key = key
        # As the action has seen it first, and as it is to be.
        self.before = before
        self.after = before
        self.cooling = cooling
        # The VMLease; None where there is none, or where holders of this node end: it is not looked at then.
        self.stored = stored
        # Those of this node's pods whose hold is all that is known of the lease; [] where `stored` is.
        self.holds = holds


def interface(holder: Holder) -> tuple[str, str]:
    """The container and the interface of a holder."""
    return holder.container_id, holder.ifname


def interfaces(lease: Lease | None) -> set[tuple[str, str]]:
    """Those of all holders."""
    return {interface(each) for each in lease.holders} if lease is not None else set()


def only_ends_holders(before: Lease, after: Lease | None) -> bool:
    """Whether a change does nothing but end holders, of which the last may end the lease."""
    if after is None:
        return True
    return interfaces(after) < interfaces(before) and before._replace(holders=(), since=0) == after._replace(
        holders=(), since=0
    )


def makes_way(work: Work, gaining: list[Work]) -> bool:
    """Whether what one lease gives up in an action is what another one gets: an address or an interface."""
    before, after = work.before, work.after
    if before is None:
        return False
    freed = {*objects.addresses_of(before)} - {*objects.addresses_of(after)}
    for each in gaining:
        if freed & {*objects.addresses_of(each.after)} - {*objects.addresses_of(each.before)}:
            return True
        if interfaces(before) & interfaces(each.after):
            return True
    return False


def pod_addresses(lease: Lease) -> list[str]:
    """What is reserved for a pod that is no VM: its addresses, and a MAC that does not follow from them."""
    derived = objects.is_derived(lease)
    return [each for each in objects.addresses_of(lease) if not (object_names.is_mac(each) and derived)]
