"""The speculative ledger of the Kubernetes store: what is not known counts as free, the commit finds out.

An ADD reads one object, its lease, and no cache. What pods of this node hold comes from the hold files; what
else stands in the way was learned by an earlier attempt of the same run. Where an action looks only, nothing
will find out later what was guessed: then the ledger is exact, and asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Final

from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.cni.fields import Address
from cnvnet.ipam import refusals
from cnvnet.ipam.lease import POD, Cooldown, Holder, Lease, LeaseKey, in_order
from cnvnet.ipam.pool import Pool, as_address
from cnvnet.ipam.store import holds, object_names, objects
from cnvnet.ipam.store.holds import Hold
from cnvnet.ipam.store.kubernetes_facts import Facts, number
from cnvnet.ipam.store.kubernetes_reservations import TryAgain
from cnvnet.ipam.store.kubernetes_survey import LeaseSurvey
from cnvnet.ipam.store.kubernetes_work import Work, interface, interfaces, only_ends_holders
from cnvnet.ipam.store.objects import StoredLease
from cnvnet.ipam.store.protocol import KnownRanges, LeaseChange, Occupancy, Usage
from cnvnet.kube.api import deadline

# Conflicts over addresses before one block is listed: until then a guess costs less. In a network that is
# half full, and of which nothing is known, one ADD in 4,096 has so many.
_GUESSES: Final = 12
# An odd number far from any fraction of a span: guesses that it parts fall all over it, and none twice.
_STRIDE: Final = 0x9E3779B97F4A7C15F39CC0605CEDC835
# Seconds that a DEL waits for the API.
RELEASE_SECONDS: Final = 1.5


class KubernetesLedger:
    """The leases of the cluster inside one attempt of a run; see `protocol.Ledger`."""

    def __init__(
        self,
        facts: Facts,
        held: holds.Holds,
        *,
        exact: bool,
        over: Mapping[str, int],
        survey: LeaseSurvey,
    ) -> None:
        """`over` says by network which cooldowns are over: those that end no later."""
        self.changes: list[LeaseChange] = []
        # By key, in the order of their first changes.
        self.works: dict[LeaseKey, Work] = {}
        # Leases that the action has confirmed as they are.
        self.confirmed: list[Lease] = []
        self.pools: dict[str, Pool] = {}
        self.over = dict(over)
        # Whether an answer was a guess.
        self.has_guessed = False
        # The interfaces that the action asked for: its own.
        self.own: set[tuple[str, str]] = set()
        # Leases whose holders of this node the action found by the hold files: they end without the API.
        self.from_holds: set[LeaseKey] = set()
        self._facts = facts
        self._holds = held
        self._exact = exact
        self._survey = survey
        self._looks_through = exact
        self._stubs: dict[LeaseKey, tuple[Lease, list[Hold]]] = {}

    # -- what a key has

    def get(self, key: LeaseKey) -> Lease | None:
        """The VM's lease with those of its addresses that are reserved for it, or the container's."""
        if key in self.works:
            return self.works[key].after
        if not key.is_vm:
            hold = self._hold(key.network, key.vm, key.interface)
            if hold is None or hold.lease.key != key:
                return self._elsewhere(key)
            self.from_holds.add(key)
            # Of an ADD that was not answered nothing is known to be reserved; of a release that was begun
            # nothing is known to be so still.
            return hold.lease if hold.state == holds.HELD else None
        stored = self._facts.lease(key)
        return self._countable(stored) if stored is not None else None

    def held_by(self, network: str, container_id: str, ifname: str) -> Lease | None:
        """The lease that an interface of a pod of this node holds, by its hold file."""
        self.own.add((container_id, ifname))
        for work in self.works.values():
            after = work.after if work.key.network == network else None
            if after is not None and after.holder(container_id, ifname) is not None:
                return after
        hold = self._hold(network, container_id, ifname)
        if hold is None:
            return None
        if hold.lease.key in self.works:
            return None  # its holder has ended in this action
        return self._held(hold.lease.key, [hold])

    def held_leases(self, network: str) -> Iterator[Lease]:
        """The leases that pods of this node hold in a network, by the hold files."""
        by_key: dict[LeaseKey, list[Hold]] = {}
        for hold in self._holds.all(network):
            is_being_added = hold.state == holds.ADDING and self._holds.is_in_use(hold)
            if hold.state != holds.COOLING and not is_being_added:
                by_key.setdefault(hold.lease.key, []).append(hold)
        for key, held in by_key.items():
            if key not in self.works:
                yield self._held(key, held)
            elif (after := self.works[key].after) is not None and after.holders:
                yield after

    def _hold(self, network: str, container_id: str, ifname: str) -> Hold | None:
        hold = self._holds.get(network, container_id, ifname)
        return hold if hold is not None and hold.state != holds.COOLING else None

    def _held(self, key: LeaseKey, held: list[Hold]) -> Lease:
        """A lease as hold files have it, unless it ends with its holders: other nodes may have some, too."""
        self.from_holds.add(key)
        newest = max(held, key=lambda each: each.lease.since)
        if key.is_vm and newest.lease.release == POD and not self._exact:
            stored = None
            with suppress(CNIError), deadline(RELEASE_SECONDS):  # else the hold waits for the API
                stored = self._facts.lease(key)
            lease = stored.lease if stored is not None else None
            if lease is not None and any(lease.holder(each.container_id, each.ifname) for each in held):
                return lease
        holders = tuple(each.holder for each in held if each.holder is not None)
        lease = newest.lease._replace(holders=tuple(sorted(holders, key=interface)))
        self._stubs[key] = (lease, held)
        return lease

    def _elsewhere(self, key: LeaseKey) -> Lease | None:
        """The lease of a container that has no hold file here: found by a look, or by who has listed all."""
        if not (self._exact or self._survey.has_listed(key.network)):
            return None
        return next((each for each in self._survey.leases(key.network) if each.key == key), None)

    def _countable(self, stored: StoredLease) -> Lease | None:
        """A lease without the addresses that another one has reserved in the meantime."""
        lease = stored.lease
        lost = self.lost(stored)
        if lease is None or not lost:
            return lease
        ips = tuple(ip for ip in lease.ips if str(ip) not in lost)
        return lease._replace(ips=ips, mac="" if lease.mac in lost else lease.mac)

    def lost(self, stored: StoredLease) -> set[str]:
        """The addresses that a VMLease lists and that are reserved for another one."""
        network, key = stored.key.network, stored.key
        return {
            each
            for each in stored.pending
            if each in stored.listed
            and (owner := self._facts.owner(network, each)) is not None
            and owner.key != key
        }

    # -- whose an address is

    def owner_of(self, network: str, ip: Address) -> Lease | Cooldown | None:
        """What an address belongs to, as far as it is known."""
        for key, work in self.works.items():
            if key.network == network:
                if work.after is not None and ip in work.after.ips:
                    return work.after
                cooling = next((each for each in work.cooling if each.ip == ip), None)
                if cooling is not None:
                    return cooling
                if work.before is not None and ip in work.before.ips:
                    return None
        return self._owner(network, str(ip))

    def owner_of_mac(self, network: str, mac: str) -> Lease | None:
        """The lease with this MAC address, as far as it is known."""
        for key, work in self.works.items():
            if key.network == network:
                if work.after is not None and work.after.mac == mac:
                    return work.after
                if work.before is not None and work.before.mac == mac:
                    return None
        owner = self._owner(network, mac)
        return owner if isinstance(owner, Lease) else None

    def _owner(self, network: str, address: str) -> Lease | Cooldown | None:
        for stored in self._facts.known_leases():
            if stored.key.network == network and stored.key not in self.works:
                if address in stored.listed and address not in stored.pending:
                    return stored.lease
                for each in stored.cooling:
                    if str(each.ip) == address and not self._facts.knows_owner(network, address):
                        return None if self._is_over(each) else each
        if not self._exact and not self._facts.knows_owner(network, address):
            self.has_guessed = True
            return None
        owner = self._facts.owner(network, address)
        return None if isinstance(owner, Cooldown) and self._is_over(owner) else owner

    def cooldowns_of(self, key: LeaseKey) -> tuple[Cooldown, ...]:
        """What a key had and that cools down, unless another key has taken it since."""
        if key in self.works:
            cooling = self.works[key].cooling
        elif key.is_vm:
            stored = self._facts.lease(key)
            cooling = stored.cooling if stored is not None else ()
        else:
            cooling = self._pod_cooling(key)
        returning = [each for each in cooling if not self._is_over(each) and self._may_return(each)]
        return tuple(sorted(returning, key=lambda each: number(each.ip)))

    def _pod_cooling(self, key: LeaseKey) -> tuple[Cooldown, ...]:
        hold = self._holds.get(key.network, key.vm, key.interface)
        if hold is None or hold.state != holds.COOLING:
            return ()
        lease = hold.lease
        return tuple(Cooldown(key, ip, lease.mac, lease.vm_uid, hold.until, hold.since) for ip in lease.ips)

    def _may_return(self, cooldown: Cooldown) -> bool:
        network, address = cooldown.key.network, str(cooldown.ip)
        if not self._facts.knows_owner(network, address):
            return True
        owner = self._facts.owner(network, address)
        return owner is None or owner.key == cooldown.key

    def _is_over(self, cooldown: Cooldown) -> bool:
        return cooldown.until <= self.over.get(cooldown.key.network, 0)

    # -- what is free

    def next_free(self, network: str, first: Address, last: Address) -> Address | None:
        """The first address of the span that is not known to be taken."""
        self.has_guessed = self.has_guessed or not self._looks_through
        low, size = int(first), int(last) - int(first) + 1
        # What is taken lies close together, so the next guess is made elsewhere.
        start = 0 if self._looks_through else self._facts.conflicts * _STRIDE % size
        for offset in chain(range(start, size), range(start)):
            ip = as_address(first.version, low + offset)
            if not self._is_taken(network, ip):
                return ip
        return None

    def _is_taken(self, network: str, ip: Address) -> bool:
        for key, work in self.works.items():
            if key.network == network:
                if work.after is not None and ip in work.after.ips:
                    return True
                if any(each.ip == ip and not self._is_over(each) for each in work.cooling):
                    return True
                if work.before is not None and ip in work.before.ips:
                    return False
        if self._looks_through:
            owner = self._facts.state(network, ip).owners.get(number(ip))
            return isinstance(owner, Lease) or (owner is not None and not self._is_over(owner))
        for stored in self._facts.known_leases():
            if stored.key.network == network and stored.key not in self.works:
                cooling = {each.ip for each in stored.cooling if not self._is_over(each)}
                if str(ip) in stored.listed or ip in cooling:
                    return True
        if self._facts.knows_owner(network, str(ip)):
            return self._owner(network, str(ip)) is not None
        if self._facts.taken.has(network, ip):
            return True
        return self._facts.conflicts >= _GUESSES and number(ip) in self._facts.names(network, ip)

    def expire(self, network: str, now: int, *, everything: bool) -> None:
        """From now on cooldowns are over by this time. `everything`: guesses have found no free address."""
        self.over[network] = now
        if everything:
            self._looks_through = True

    def occupancy(self, network: str, first: Address, last: Address, *, now: int) -> Occupancy:
        """How many addresses from `first` to `last` are in use, by state: block by block."""
        active = stopped = 0
        ends: list[int] = []
        for _, owner in self._owners(network, first, last):
            if isinstance(owner, Cooldown):
                ends += [owner.until] if owner.until > now else []
            elif owner.holders:
                active += 1
            else:
                stopped += 1
        return Occupancy(active, stopped, len(ends), min(ends, default=0))

    def longest_stopped(self, network: str, first: Address, last: Address, *, limit: int) -> Iterator[Lease]:
        """The leases without a holder with an address from `first` to `last`, longest stopped first."""
        stopped = {
            owner.key: owner
            for _, owner in self._owners(network, first, last)
            if isinstance(owner, Lease) and not owner.holders
        }
        yield from sorted(stopped.values(), key=lambda each: (each.since, each.key))[:limit]

    def _owners(
        self, network: str, first: Address, last: Address
    ) -> Iterator[tuple[Address, Lease | Cooldown]]:
        at, end = int(first), int(last)
        while at <= end:
            ip = as_address(first.version, at)
            following = min(object_names.block_end(ip), end)
            owners = self._facts.state(network, ip).owners
            for value in range(at, following + 1):
                ip = as_address(first.version, value)
                owner = self._own_owner(network, ip) or owners.get(number(ip))
                if owner is not None:
                    yield ip, owner
            at = following + 1

    def _own_owner(self, network: str, ip: Address) -> Lease | None:
        for key, work in self.works.items():
            if key.network == network and work.after is not None and ip in work.after.ips:
                return work.after
        return None

    # -- changes

    def change(self, before: Lease | None, after: Lease | None, *, until: int, since: int = 0) -> None:
        """Replace a lease by another, by None: delete it; see `protocol.Ledger`."""
        lease = after or before
        if lease is None:
            return
        if before == after:
            if self.own & interfaces(lease):
                self.confirmed.append(lease)
            return
        work = self.works.get(lease.key) or self._begin(lease.key, before, after)
        if work.stored is not None:
            self._ensure_changeable(work.stored, before, after)
        had = set(before.ips if before else ())
        takes = set(after.ips if after else ())
        cooled = tuple(each for each in work.cooling if each.ip in takes - had)
        cooling = [each for each in work.cooling if each.ip not in takes | had]
        if until and before is not None:
            cooling += [
                Cooldown(before.key, ip, before.mac, before.vm_uid, until, since)
                for ip in in_order(had - takes)
            ]
        work.cooling = tuple(cooling)
        work.after = after
        self.changes.append(LeaseChange(before, after, cooled))

    def _begin(self, key: LeaseKey, before: Lease | None, after: Lease | None) -> Work:
        nothing: tuple[Lease | None, list[Hold]] = (None, [])
        stub, held = self._stubs.get(key, nothing)
        if before is not None and before == stub and only_ends_holders(before, after):
            work = Work(key, before, (), None, held)
        elif key.is_vm:
            stored = self._facts.lease(key)
            work = Work(key, before, stored.cooling if stored is not None else (), stored, [])
        else:
            hold = self._hold(key.network, key.vm, key.interface)
            work = Work(key, before, self._pod_cooling(key), None, [hold] if hold is not None else [])
        self.works[key] = work
        return work

    def _ensure_changeable(self, stored: StoredLease, before: Lease | None, after: Lease | None) -> None:
        if after is None or not self.is_gaining(before, after):
            return
        others = [
            each
            for each in (stored.lease.holders if stored.lease is not None else ())
            if interface(each) not in self.own
        ]
        if stored.is_deleted:
            if not others and self._facts.may_wait(stored.key):
                raise TryAgain  # a DEL is about to end it
            ips = (
                ", ".join(map(str, stored.lease.ips if stored.lease is not None else ())) or "its addresses"
            )
            text = f"{stored.key}: its former lease is being deleted and still has {ips}"
            raise CNIError(TRY_AGAIN_LATER, f"{text} in {refusals.user(others[0])}" if others else text)
        lost = self.lost(stored)
        if lost and others:
            text = f"{stored.key}: {', '.join(sorted(lost))} is another one's, and cannot be replaced while"
            raise CNIError(TRY_AGAIN_LATER, f"{text} {refusals.user(others[0])} is being added")

    def is_gaining(self, before: Lease | None, after: Lease | None) -> bool:
        """Whether a change gives the lease a holder or an address, or the action's own interface has it."""
        if after is None:
            return False
        had, has = interfaces(before), interfaces(after)
        known = set(objects.addresses_of(before))
        return bool(has - had | has & self.own) or not known.issuperset(objects.addresses_of(after))

    def gaining_holders(self, work: Work, node: str) -> list[Holder]:
        """The holders of this node that the action makes, or that are its own."""
        had = interfaces(work.before)
        return [
            each
            for each in (work.after.holders if work.after is not None else ())
            if each.is_on(node) and (interface(each) not in had or interface(each) in self.own)
        ]

    def restore_cooldown(self, cooldown: Cooldown) -> None:
        """Keep a free address from other keys again, if its last key is one that this action has changed.

        A cooldown of another key was over when its address was taken.
        """
        work = self.works.get(cooldown.key)
        if work is not None:
            rest = (each for each in work.cooling if each.ip != cooldown.ip)
            work.cooling = tuple(sorted((*rest, cooldown), key=lambda each: number(each.ip)))

    def record_pool(self, network: str, pool: Pool) -> None:
        """Note what a network's pool gives: it is kept on this node."""
        self.pools[network] = pool

    def recorded_pools(self, network: str) -> dict[int, KnownRanges]:
        """What a network's pool gives, by version of IP, as this node's last ADD had it."""
        return self._survey.pools(network)

    # -- all of them, for those who look on

    def leases(self, network: str | None = None) -> Iterator[Lease]:
        """The leases of one network or of all, in the order of their keys."""
        known = {each.key: each for each in self._survey.leases(network)}
        for key, work in self.works.items():
            known.pop(key, None)
            if work.after is not None and network in (None, key.network):
                known[key] = work.after
        yield from (known[key] for key in sorted(known))

    def cooldowns(self, network: str | None = None) -> Iterator[Cooldown]:
        """The addresses that cool down, of one network or of all, in their order."""
        cooldowns = [each for each in self._survey.cooldowns(network) if each.key not in self.works]
        for key, work in self.works.items():
            cooldowns += work.cooling if network in (None, key.network) else ()
        yield from sorted(cooldowns, key=lambda each: (each.key.network, number(each.ip)))

    def usage(self, network: str | None = None, *, now: int) -> Iterator[Usage]:
        """How much of each pool is in use, of one network or of all."""
        return self._survey.usage(network, now=now)
