"""A network that changes its store: an ADD takes the VM's lease over from the one in which it was before.

The lease is made in the new store first, in the same transaction as what the ADD wants, and ended in the
former one behind that. A process that is killed in between leaves it in both, with the same addresses: the
next ADD ends it, and nothing else gets them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cnvnet.call_context import log
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.ipam import allocator, refusals
from cnvnet.ipam.allocation import AllocationRequest, IsDead
from cnvnet.ipam.lease import Lease, LeaseKey, same_vm, without
from cnvnet.ipam.store import data_dirs
from cnvnet.ipam.store.protocol import Ledger, Store
from cnvnet.ipam.store.ref import SQLITE, StoreRef
from cnvnet.vm.identity import TARGET

if TYPE_CHECKING:
    from cnvnet.ipam.store.kubernetes import KubernetesStore


class Former(NamedTuple):
    """What a VM has in the store that its network had before."""

    store: Store
    # As it stands there.
    stored: Lease
    # As the new store gets it; None where it is of no use any more.
    lease: Lease | None
    # Whether it stays there: a pod of another node still has it.
    stays: bool = False

    def adopt(self, ledger: Ledger, now: int) -> None:
        """Make it the new store's. CNIError 11 where that cannot be."""
        if self.lease is not None:
            allocator.adopt(ledger, self.lease, origin=self.store.name, now=now)

    def end(self, target: Store, now: int) -> None:
        """End it in its store, now that the new one has it: if not now, the next ADD does."""
        if self.stays:
            return
        try:
            gone = settle(self.store, target, self.stored, now)
        except CNIError as e:
            log(f"{e.msg}: {self.stored.key} is in {self.store.name} still, with the same addresses")
            return
        if gone:
            log(f"{self.stored.key}: {_addresses(self.stored)} taken over from {self.store.name}")


def settle(former: Store, target: Store, stored: Lease, now: int) -> bool:
    """End a lease in its former store, now that the target has it; whether it has ended. CNIError.

    One that has changed meanwhile stays for the next time; a pod whose DEL has come in between holds nothing
    in the target, either.
    """

    def end(ledger: Ledger) -> tuple[Lease | None, bool]:
        return ledger.get(stored.key), allocator.drop(ledger, stored)

    current, gone = former.run(end)
    for each in stored.holders:
        interface = (each.container_id, each.ifname)
        if current is None or current.holder(*interface) is None:
            _release(target, stored.key.network, interface, now)
    return gone


def _release(store: Store, network: str, interface: tuple[str, str], now: int) -> None:
    if store.knows(network, *interface):
        store.run(lambda ledger: allocator.release(ledger, network, *interface, now=now))


class Switch(NamedTuple):
    """An ADD of a VM's pod that may find its lease in the other kind of store."""

    wanted: AllocationRequest
    is_dead: IsDead
    # The role that the API says; an embedded store takes a migration's target for an active pod.
    role: str

    @property
    def key(self) -> LeaseKey:
        """Whose lease it is."""
        return self.wanted.key

    def from_folders(
        self, target: Store, open_store: Callable[[StoreRef], Store], usual: str
    ) -> Former | None:
        """What a folder of this node has of the VM whose leases are the cluster's now. CNIError.

        `usual` is the folder that has the list of all others.
        """
        for folder in dict.fromkeys((usual, *data_dirs.read(usual).folders)):
            store = open_store(StoreRef(SQLITE, folder))
            if not os.path.exists(store.name):
                continue
            stored = store.look(lambda ledger: ledger.get(self.key))
            if stored is not None:
                return self._former(store, stored, target)
        return None

    def from_cluster(self, target: Store, store: KubernetesStore, node: str) -> Former | None:
        """What the cluster has of the VM whose leases are this node's now. CNIError."""
        if not store.is_connected:
            log(f"{self.key}: no credentials for the API that may have its address")
            return None
        stored = store.look(lambda ledger: ledger.get(self.key))
        if stored is None:
            return None
        others = [each for each in stored.holders if not each.is_on(node)]
        if others and self.role != TARGET:
            raise CNIError(
                TRY_AGAIN_LATER,
                f"{self.key}: {_addresses(stored)} is in {store.name} still the address of "
                f"{refusals.user(others[0])} on node {others[0].node}",
            )
        former = self._former(store, stored._replace(holders=() if others else stored.holders), target)
        return former._replace(stored=stored, stays=bool(others))

    def _former(self, store: Store, stored: Lease, target: Store) -> Former:
        """What of the lease goes on: nothing of another VM's of this name, and nothing that is older."""
        own = self.wanted.holder
        lease = without(stored, lambda each: each.is_of(own.container_id, own.ifname), now=stored.since)
        lease = without(lease, self.is_dead, now=lease.since)
        holders = tuple(each._replace(node=each.node or own.node) for each in lease.holders)
        lease = lease._replace(holders=holders)
        if not same_vm(stored.vm_uid, self.wanted.vm_uid):
            return Former(store, stored, None, stays=bool(lease.holders))
        known = target.look(lambda ledger: ledger.get(self.key))
        if known is not None and not lease.holders and known.since > lease.since:
            return Former(store, stored, None)  # the VM has run since with what the new store has
        return Former(store, stored, lease)


def _addresses(lease: Lease) -> str:
    return ", ".join(map(str, lease.ips))
