"""What an ADD asks of the leases, and what it gets: values only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cnvnet.cni.fields import Address
from cnvnet.ipam.lease import Holder, Lease, LeaseKey, same_vm
from cnvnet.ipam.pool import Pool
from cnvnet.ipam.store.protocol import LeaseChange

# Whether a holder has certainly ended without a DEL (lease.is_dead, on what this node sees).
IsDead = Callable[[Holder], bool]


class AddressRequest(NamedTuple):
    """An address that the runtime or the pod asks for."""

    ip: Address
    # The full path of the key that asks, for messages: "args.cni.ips[0]".
    where: str
    # The list that the key stands in, by which requests are ranked and recorded: "args.cni.ips".
    source: str
    # Whether it counts for a key without a lease only: what was reported of a former one.
    is_fallback: bool = False


class Policy(NamedTuple):
    """How a network treats its leases, from its configuration."""

    # The first octets of the MACs that the network gives out; empty where it manages none.
    mac_prefix: bytes
    # One of lease.POLICIES.
    release: str
    # Seconds.
    cooldown: int


class AllocationRequest(NamedTuple):
    """What one ADD asks for."""

    key: LeaseKey
    # Of the VM; "" where the request does not say, or there is no VM.
    vm_uid: str
    # The pod that is going to hold the lease.
    holder: Holder
    pool: Pool
    policy: Policy
    # The strongest first. Each range set gives the first one that is in its ranges.
    addresses: tuple[AddressRequest, ...]
    # "" when none is asked for.
    mac: str
    # The key that asks for the MAC, for messages.
    mac_where: str
    # Seconds since 1970.
    now: int
    # The folder of the leases where it is not the node's usual one, else "". Messages name it: when all VMs
    # of the network are stopped no record does, and cnvctl needs it.
    data_dir: str = ""
    # Whether another MAC will do where another key has the one that is asked for.
    mac_yields: bool = False
    # The UIDs of pods that run the same instance, where that has lost its VM: its UID is none of the VM's.
    kin: frozenset[str] = frozenset()

    def is_of(self, lease: Lease) -> bool:
        """Whether the lease may be that of the VM that asks."""
        return same_vm(lease.vm_uid, self.vm_uid) or any(each.pod_uid in self.kin for each in lease.holders)

    def addresses_for(self, lease: Lease | None) -> tuple[AddressRequest, ...]:
        """The requests that count for a key with this lease (None: it has none), the strongest first."""
        return self.addresses if lease is None else tuple(e for e in self.addresses if not e.is_fallback)


class Allocation(NamedTuple):
    """What an ADD has got."""

    # As it is stored now, with the pod as a holder.
    lease: Lease
    # What the ADD has written; `allocator.revert` takes it back.
    changes: tuple[LeaseChange, ...]
    # Lines for stderr, about what was asked for and not done.
    remarks: tuple[str, ...] = ()
