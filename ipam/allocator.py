"""One ADD, DEL or GC as it changes the leases: decided by `lease` and `pool`, written through a ledger.

Every function runs inside one transaction of a store and touches nothing else, so what an executable, the
agent and a test see is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from cnvnet import diagnostics
from cnvnet.cni.errors import INTERNAL, TRY_AGAIN_LATER, CNIError, InvalidConfig
from cnvnet.cni.fields import Address
from cnvnet.ipam.lease import (
    NEVER,
    Cooling,
    Holder,
    Key,
    Lease,
    derive_mac,
    hold,
    in_order,
    leave,
    same_vm,
    without,
)
from cnvnet.ipam.pool import Pool, RangeSet, probing_order
from cnvnet.ipam.store import Change, Ledger
from cnvnet.vm.identity import TARGET

# Whether a holder surely is no more.
Gone = Callable[[Holder], bool]


class Wish(NamedTuple):
    """An address somebody asked for. `where` is the key that asks, `source` the place it stands in."""

    ip: Address
    where: str
    source: str


class Policy(NamedTuple):
    """How a network treats its leases. `mac_prefix` is empty where MACs are nobody's business."""

    mac_prefix: bytes
    release: str
    cooldown: int


class Asked(NamedTuple):
    """What one ADD asks for. `wishes` come strongest first; `mac` is "" when nobody asked for one."""

    key: Key
    vm_uid: str
    holder: Holder
    pool: Pool
    policy: Policy
    wishes: tuple[Wish, ...]
    mac: str
    mac_where: str
    now: int


class Granted(NamedTuple):
    """What it got; `changes` is what `revert` takes back."""

    lease: Lease
    changes: tuple[Change, ...]


def acquire(ledger: Ledger, asked: Asked, gone: Gone) -> Granted:
    """Make the pod a holder of its key's lease; the lease is made, moved or taken over as needed.

    Raises CNIError 7 for what cannot be asked for, 11 for what may work later; the ledger is to be rolled
    back.
    """
    known = len(ledger.changes)
    lease = _acquire(ledger, asked, gone)
    return Granted(lease, tuple(ledger.changes[known:]))


def _acquire(ledger: Ledger, asked: Asked, gone: Gone) -> Lease:
    _end_former_use(ledger, asked)
    stored = ledger.get(asked.key)
    if asked.holder.role == TARGET:
        return _join_as_target(ledger, asked, stored)
    base, lease = stored, None
    if stored is not None:
        lease = without(stored, gone, now=asked.now)
        if not same_vm(stored.vm_uid, asked.vm_uid):
            base, lease = _succeed(ledger, asked, stored, lease)
    try:
        after = _lease_for(ledger, asked, lease)
    except CNIError:
        # Not before, since it means looking at every holder.
        if not _bury(ledger, asked.key.network, gone, now=asked.now, spared=asked.key):
            raise
        after = _lease_for(ledger, asked, lease)
    until = asked.now + after.cooldown if after.cooldown else 0
    ledger.change(base, after, until=until)
    return after


def release(ledger: Ledger, network: str, container_id: str, ifname: str, *, now: int) -> None:
    """The pod holds nothing any more. Only its own hold ends: a late call never harms a newer pod."""
    lease = ledger.held_by(network, container_id, ifname)
    if lease is not None:
        _settle(ledger, lease, leave(lease, container_id, ifname, now=now), now)


def collect(ledger: Ledger, network: str, valid: set[tuple[str, str]], *, now: int) -> None:
    """End every hold in the network but those of these (container id, ifname)."""
    for lease in ledger.holding(network):
        kept = without(lease, lambda each: (each.container_id, each.ifname) not in valid, now=now)
        _settle(ledger, lease, kept, now)


def revert(ledger: Ledger, granted: Granted, container_id: str, ifname: str, *, now: int) -> None:
    """Undo an ADD that was granted this: as if it had never been asked, unless others came in between."""
    for change in reversed(granted.changes):
        if not _undo(ledger, change) and change.after == granted.lease:
            release(ledger, granted.lease.key.network, container_id, ifname, now=now)


def _undo(ledger: Ledger, change: Change) -> bool:
    """Take one change back, if everything is still as it left it."""
    before, after = change.before, change.after
    lease = after or before
    if (
        lease is None
        or ledger.get(lease.key) != after
        or not (before is None or _can_return(ledger, before))
    ):
        return False
    # Nobody has used what it took, so that need not cool down; what had been cooling down goes on.
    ledger.change(after, before, until=0)
    for each in change.cooled:
        if ledger.owner(each.key.network, each.ip) is None:
            ledger.cool(each)
    return True


def ensure_room(ledger: Ledger, network: str, pool: Pool, gone: Gone, *, now: int) -> None:
    """Code 11 if a new VM could not get an address of each range set."""
    for given in pool.sets:
        if _next(ledger, network, given, b"", now) is not None:
            continue
        _bury(ledger, network, gone, now=now)
        if _next(ledger, network, given, b"", now) is None:
            raise _full(ledger, network, given)


def _bury(ledger: Ledger, network: str, gone: Gone, *, now: int, spared: Key | None = None) -> bool:
    """End what holders have that are gone; whether there were any."""
    found = False
    for lease in ledger.holding(network):
        alive = without(lease, gone, now=now)
        if alive != lease and lease.key != spared:
            _settle(ledger, lease, alive, now)
            found = True
    return found


def _end_former_use(ledger: Ledger, asked: Asked) -> None:
    # The same interface of the same container may come back as somebody else: a retry with another identity.
    holder, network = asked.holder, asked.key.network
    former = ledger.held_by(network, holder.container_id, holder.ifname)
    if former is not None and former.key != asked.key:
        release(ledger, network, holder.container_id, holder.ifname, now=asked.now)


def _settle(ledger: Ledger, before: Lease, after: Lease, now: int) -> None:
    """Write a lease that lost holders; if that was the last one, it ends or waits as its policy says."""
    ends = not after.holders and after.ends_with_its_holders
    until = now + before.cooldown if before.cooldown else 0
    ledger.change(before, None if ends else after, until=until)


def _can_return(ledger: Ledger, before: Lease) -> bool:
    network = before.key.network
    owners = [ledger.owner(network, ip) for ip in before.ips]
    if before.mac:
        owners.append(ledger.owner_of_mac(network, before.mac))
    owners.extend(ledger.held_by(network, each.container_id, each.ifname) for each in before.holders)
    return all(owner is None or owner.key == before.key for owner in owners)


def _join_as_target(ledger: Ledger, asked: Asked, lease: Lease | None) -> Lease:
    """The target of a migration gets what the source has: nothing else, and nothing before the source."""
    if lease is None or not lease.holders:
        raise InvalidConfig(f"role target: {asked.key} runs nowhere in network {asked.key.network}")
    if not same_vm(lease.vm_uid, asked.vm_uid):
        known = f"has the UID {lease.vm_uid} in container {lease.holders[0].container_id}"
        raise InvalidConfig(f"role target: {asked.key} {known}, not {asked.vm_uid}")
    for wish in asked.wishes:
        if wish.ip not in lease.ips:
            diagnostics.say(
                f"{wish.where}: {wish.ip} ignored: {asked.key} is migrating and keeps its addresses"
            )
    if asked.mac and lease.mac not in ("", asked.mac):
        diagnostics.say(f"{asked.mac_where}: {asked.mac} ignored: {asked.key} is migrating with {lease.mac}")
    after = hold(lease, asked.holder)._replace(vm_uid=lease.vm_uid or asked.vm_uid)
    ledger.change(lease, after, until=0)
    return after


def _others(lease: Lease, holder: Holder) -> tuple[Holder, ...]:
    return tuple(each for each in lease.holders if not each.is_of(holder.container_id, holder.ifname))


def _succeed(ledger: Ledger, asked: Asked, stored: Lease, alive: Lease) -> tuple[Lease | None, Lease | None]:
    """Another VM has come under the same name: what it inherits of the lease, as stored and as it is now."""
    others = _others(alive, asked.holder)
    if others:
        ips = ", ".join(map(str, stored.ips))
        user = f"another VM of this name (UID {stored.vm_uid}) still has {ips}"
        raise CNIError(TRY_AGAIN_LATER, f"{asked.key}: {user} in container {others[0].container_id}")
    if stored.release == NEVER:
        return stored, alive
    ledger.change(stored, None, until=asked.now + stored.cooldown if stored.cooldown else 0)
    return None, None


def _lease_for(ledger: Ledger, asked: Asked, lease: Lease | None) -> Lease:
    """What the key is to have after this ADD, given what it has."""
    ips, former_mac = _addresses(ledger, asked, lease)
    mac = _mac(ledger, asked, lease.mac if lease is not None else former_mac, ips)
    if lease is not None and (others := _others(lease, asked.holder)):
        lost = [str(ip) for ip in lease.ips if ip not in ips]
        if lease.mac not in ("", mac):
            lost.append(lease.mac)
        if lost:
            # Freed now, it could be another VM's while the old pod still uses it.
            user = f"container {others[0].container_id} has it"
            text = f"{asked.key}: {', '.join(lost)} cannot be given up while {user}"
            raise CNIError(TRY_AGAIN_LATER, text)
    source = ", ".join(dict.fromkeys(wish.source for wish in asked.wishes))
    if not source and lease is not None and lease.ips == ips:
        source = lease.source
    base = lease if lease is not None else Lease(asked.key, ips)
    changed = base._replace(
        ips=ips,
        mac=mac,
        vm_uid=asked.vm_uid or base.vm_uid,
        source=source,
        release=asked.policy.release,
        cooldown=asked.policy.cooldown,
    )
    return hold(changed, asked.holder)


def _addresses(ledger: Ledger, asked: Asked, lease: Lease | None) -> tuple[tuple[Address, ...], str]:
    """One address of each set, and the MAC that went with them if they are the key's own from before."""
    network = asked.key.network
    ledger.expire(network, asked.now, everything=False)
    wished = _wished(asked)
    kept = _kept(asked.pool, lease.ips if lease is not None else ())
    old = [each for each in ledger.cooling(asked.key) if same_vm(each.vm_uid, asked.vm_uid)]
    returning = {} if lease is not None else _kept(asked.pool, tuple(each.ip for each in old))
    chosen: list[Address] = []
    for index, given in enumerate(asked.pool.sets):
        wish = wished.get(index)
        if wish is not None:
            _ensure_free(ledger, asked, wish)
        seed = "\0".join((*asked.key, str(index))).encode()
        ip = wish.ip if wish is not None else kept.get(index) or returning.get(index)
        ip = ip or _next(ledger, network, given, seed, asked.now)
        if ip is None:
            raise _full(ledger, network, given)
        chosen.append(ip)
    mac = next((each.mac for each in old if each.ip in chosen and each.mac), "")
    return in_order(chosen), mac


def _wished(asked: Asked) -> dict[int, Wish]:
    """The wish that counts for each range set; what cannot be had there at all is refused."""
    found: dict[int, Wish] = {}
    for wish in asked.wishes:
        index = asked.pool.set_of(wish.ip)
        purpose = asked.pool.purpose_of(wish.ip)
        if purpose:
            raise InvalidConfig(f"{wish.where}: {wish.ip} is {purpose} of network {asked.key.network}")
        if index is None:
            where = f"in no range of network {asked.key.network} ({asked.pool.name})"
            raise InvalidConfig(f"{wish.where}: {wish.ip} is {where}")
        if not asked.pool.sets[index].gives(wish.ip):
            raise InvalidConfig(f"{wish.where}: {wish.ip} is excluded in network {asked.key.network}")
        first = found.setdefault(index, wish)
        if first.source == wish.source and first.ip != wish.ip:
            raise InvalidConfig(
                f"{wish.where}: {wish.ip} and {first.ip} are both of range {asked.pool.sets[index].name}, "
                "which gives one address each"
            )
    return found


def _ensure_free(ledger: Ledger, asked: Asked, wish: Wish) -> None:
    owner = ledger.owner(asked.key.network, wish.ip)
    if owner is None or (isinstance(owner, Lease) and owner.key == asked.key):
        return
    if isinstance(owner, Cooling):
        if owner.until <= asked.now or (owner.key == asked.key and same_vm(owner.vm_uid, asked.vm_uid)):
            return
        left = f"was given up by {owner.key} and is kept free for another {owner.until - asked.now} s"
        raise InvalidConfig(f"{wish.where}: {wish.ip} {left}")
    raise InvalidConfig(f"{wish.where}: {wish.ip} is held by {_described(owner)}")


def _kept(pool: Pool, ips: tuple[Address, ...]) -> dict[int, Address]:
    """Which of these addresses serve which set: by range, else (the ranges were narrowed) by subnet."""
    left = [ip for ip in ips if not pool.purpose_of(ip)]
    found: dict[int, Address] = {}
    for ip in tuple(left):
        index = pool.set_of(ip)
        if index is not None and index not in found:
            found[index] = ip
            left.remove(ip)
    for index, given in enumerate(pool.sets):
        ip_of_subnet = next((ip for ip in left if given.range_of(ip) is not None), None)
        if index not in found and ip_of_subnet is not None:
            found[index] = ip_of_subnet
            left.remove(ip_of_subnet)
    return found


def _next(ledger: Ledger, network: str, given: RangeSet, seed: bytes, now: int) -> Address | None:
    """A free address of the set. Cooldowns are looked through only when there is none."""
    for attempt in range(2):
        for first, last in probing_order(given, seed):
            ip = ledger.next_free(network, first, last)
            if ip is not None:
                return ip
        if attempt == 0:
            ledger.expire(network, now, everything=True)
    return None


def _mac(ledger: Ledger, asked: Asked, has: str, ips: tuple[Address, ...]) -> str:
    """The MAC of the lease: the one asked for, else the one it has, else one derived from an address."""
    network, prefix = asked.key.network, asked.policy.mac_prefix
    if not prefix:
        return ""
    if asked.mac:
        owner = ledger.owner_of_mac(network, asked.mac)
        if owner is not None and owner.key != asked.key:
            raise InvalidConfig(f"{asked.mac_where}: {asked.mac} is held by {_described(owner)}")
        return asked.mac
    for salt in range(256):
        mac = has or derive_mac(prefix, network, ips[0], salt)
        owner = ledger.owner_of_mac(network, mac)
        if owner is None or owner.key == asked.key:
            return mac
        has = ""
    raise CNIError(INTERNAL, f"network {network}: no free MAC address for {ips[0]}")


def _described(lease: Lease) -> str:
    if not lease.holders:
        return f"{lease.key}, which is stopped"
    return f"{lease.key} in container {lease.holders[0].container_id}"


def _full(ledger: Ledger, network: str, given: RangeSet) -> CNIError:
    text = f"no IP addresses available in range set: {given.name}"
    cooling = [ledger.cooldowns(network, part.first, part.last) for part in given.ranges]
    untils = [until for _, until in cooling if until]
    if untils:
        first = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(untils)))
        count = sum(number for number, _ in cooling)
        text += f": {count} cool{'s' if count == 1 else ''} down, the first until {first}"
    return CNIError(TRY_AGAIN_LATER, f"network {network}: {text}")
