"""What an ADD says that gets no address: who has them, and what an operator can do."""

from __future__ import annotations

from typing import Final

from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError, InvalidConfig
from cnvnet.ipam.lease import Holder, Lease
from cnvnet.ipam.pool import RangeSet, as_address
from cnvnet.ipam.store.clock import timestamp
from cnvnet.ipam.store.protocol import Ledger, Occupancy

# How many stopped VMs a message names.
_NAMED: Final = 3
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))


class AddressTaken(InvalidConfig):
    """An address that is asked for is another key's."""


class MacTaken(InvalidConfig):
    """A MAC that is asked for is another key's."""


class PoolFull(CNIError):
    """No address of a set is free (code 11)."""

    def __init__(self, msg: str, details: str) -> None:
        super().__init__(TRY_AGAIN_LATER, msg, details)


def taken(lease: Lease, data_dir: str) -> str:
    """Whose an address or a MAC is that another one asks for, as a message ends with it."""
    if not lease.holders:
        return f"held by {lease.key}, which is stopped ({release_command(lease, data_dir)} frees it)"
    holder = lease.holders[0]
    if lease.key.is_vm:
        return f"held by {lease.key} in {user(holder)}"
    # A container that is no VM is its own holder.
    return f"held by {lease.key}" + (f" of pod {holder.pod}" if holder.pod else "")


def user(holder: Holder) -> str:
    """The pod or the container that has the addresses."""
    return f"pod {holder.pod}" if holder.pod else f"container {holder.container_id}"


def release_command(lease: Lease, data_dir: str) -> str:
    """What an operator types to free what a stopped VM keeps; `data_dir` as in `AllocationRequest`."""
    command = f"cnvctl leases release {lease.key.namespace}/{lease.key.vm} --network {lease.key.network}"
    return f"{command} --data-dir {data_dir}" if data_dir else command


def full(ledger: Ledger, network: str, given: RangeSet, now: int, data_dir: str) -> PoolFull:
    """Every address of the set is taken, with what takes them and how to get one.

    The details are what host-local says, which is what people and programs search logs for.
    """
    used = _occupancy(ledger, network, given, now)
    stopped = _longest_stopped(ledger, network, given)
    parts = [f"{used.active} in use"]
    if used.stopped:
        parts.append(f"{used.stopped} kept for {_stopped_vms(used.stopped, stopped, now)}")
    if used.cooling:
        parts.append(f"{used.cooling} cooling down (the first until {timestamp(used.until)})")
    remedy = "give the network a wider range"
    if stopped:
        remedy = f"{release_command(stopped[0], data_dir)} frees one, or {remedy}"
    every = (
        f"all {given.size} addresses of {given.name} are"
        if given.size > 1
        else f"the only address of {given.name} is"
    )
    text = f"network {network}: {every} taken: {', '.join(parts)}: {remedy}"
    return PoolFull(text, f"no IP addresses available in range set: {given.name}")


def _occupancy(ledger: Ledger, network: str, given: RangeSet, now: int) -> Occupancy:
    counts = [
        ledger.occupancy(network, as_address(given.version, first), as_address(given.version, last), now=now)
        for first, last in given.spans
    ]
    active, stopped, cooling, _ = (sum(each) for each in zip(*counts, strict=True))
    return Occupancy(active, stopped, cooling, min((each.until for each in counts if each.until), default=0))


def _longest_stopped(ledger: Ledger, network: str, given: RangeSet) -> list[Lease]:
    """The first few of the leases without holders, the longest stopped first."""
    stopped = [
        lease
        for first, last in given.spans
        for lease in ledger.longest_stopped(
            network, as_address(given.version, first), as_address(given.version, last), limit=_NAMED
        )
    ]
    return sorted(stopped, key=lambda each: (each.since, each.key))[:_NAMED]


def _stopped_vms(count: int, named: list[Lease], now: int) -> str:
    names = [f"{each.key.namespace}/{each.key.vm} since {_duration(now - each.since)}" for each in named]
    if count > len(names):
        names.append("…")
    return f"{'a stopped VM' if count == 1 else 'stopped VMs'} ({', '.join(names)})"


def _duration(seconds: int) -> str:
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{max(seconds, 0)} s"
