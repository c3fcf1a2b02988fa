"""What an import would do with a network: which leases are new, are there, or cannot be. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from cnvnet.cni.fields import Address
from cnvnet.ipam import refusals
from cnvnet.ipam.lease import Cooldown, Lease, LeaseKey
from cnvnet.ipam.store.protocol import KnownRanges, Ledger


class ImportPlan(NamedTuple):
    """Of one network. `conflicts` is a line each."""

    new: tuple[Lease, ...]
    known: tuple[Lease, ...]
    conflicts: tuple[str, ...]


def plan(ledger: Ledger, network: str, leases: Iterable[Lease], now: int) -> ImportPlan:
    """The plan of a network's leases, against what the store has of it."""
    there = {each.key: each for each in ledger.leases(network)}
    cooling = [each for each in ledger.cooldowns(network) if each.until > now]
    taken = _Taken(there.values(), cooling)
    ranges = ledger.recorded_pools(network)
    new: list[Lease] = []
    known: list[Lease] = []
    conflicts: list[str] = []
    seen: dict[LeaseKey, Lease] = {}
    for lease in leases:
        former = seen.setdefault(lease.key, lease)
        if former is not lease:
            if _without_time(former) != _without_time(lease):
                conflicts.append(
                    f"{lease.key}: it stands there twice, with {_has(former)} and {_has(lease)}"
                )
            continue
        stored = there.get(lease.key)
        problems = [*taken.problems(lease), *_outside(lease, ranges)]
        if stored is not None and (
            stored.ips != lease.ips or (lease.mac and stored.mac not in ("", lease.mac))
        ):
            problems.append(
                f"{lease.key}: {_has(lease)} is to be imported, and it has {_has(stored)} already"
            )
        conflicts += problems
        if not problems:
            (new if stored is None else known).append(lease)
            taken.add(lease)
    return ImportPlan(tuple(new), tuple(known), tuple(conflicts))


class _Taken:
    """Whose addresses and MACs are, those among them that are to be imported."""

    def __init__(self, leases: Iterable[Lease], cooling: Iterable[Cooldown]) -> None:
        self._ips: dict[Address, Lease | Cooldown] = {each.ip: each for each in cooling}
        self._macs: dict[str, Lease] = {}
        for lease in leases:
            self.add(lease)

    def add(self, lease: Lease) -> None:
        """These are taken."""
        self._ips |= dict.fromkeys(lease.ips, lease)
        if lease.mac:
            self._macs[lease.mac] = lease

    def problems(self, lease: Lease) -> Iterator[str]:
        """What of a lease is another key's."""
        for ip in lease.ips:
            owner = self._ips.get(ip)
            if owner is not None and owner.key != lease.key:
                kept = f"kept free for a while after {owner.key}" if isinstance(owner, Cooldown) else ""
                yield f"{ip} of {lease.key} is {kept or refusals.taken(_as_lease(owner), '')}"
        owner = self._macs.get(lease.mac) if lease.mac else None
        if owner is not None and owner.key != lease.key:
            yield f"{lease.mac} of {lease.key} is {refusals.taken(owner, '')}"


def _as_lease(owner: Lease | Cooldown) -> Lease:
    return owner if isinstance(owner, Lease) else Lease(owner.key, (owner.ip,))


def _outside(lease: Lease, ranges: Mapping[int, KnownRanges]) -> Iterator[str]:
    for ip in lease.ips:
        known = ranges.get(ip.version)
        if known is not None and not any(each.gives(ip) for each in known.sets):
            yield f"{ip} of {lease.key}: network {lease.key.network} does not give it out ({known.name})"


def _differ(stored: Lease, lease: Lease) -> bool:
    return stored.ips != lease.ips or (bool(lease.mac) and stored.mac not in ("", lease.mac))


def _without_time(lease: Lease) -> Lease:
    return lease._replace(since=0)


def _has(lease: Lease) -> str:
    return ", ".join(filter(None, (*map(str, lease.ips), lease.mac)))
