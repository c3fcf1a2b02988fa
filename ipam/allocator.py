"""One ADD, DEL or GC as it changes the leases: decided by `lease` and `selection`, written to a ledger.

Every function runs inside one transaction of a store and has no effect but on its ledger, so a store may
call it again on another one. What executables, the agent, tests and every store decide is the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError, InvalidConfig
from cnvnet.cni.fields import Address
from cnvnet.ipam import refusals
from cnvnet.ipam.allocation import AddressRequest, Allocation, AllocationRequest, IsDead, Policy
from cnvnet.ipam.lease import (
    LEAVING,
    NEVER,
    VM_DELETED,
    Cooldown,
    Holder,
    Lease,
    LeaseKey,
    hold,
    in_order,
    leave,
    without,
)
from cnvnet.ipam.pool import Pool
from cnvnet.ipam.selection import choose_addresses, choose_mac, ensure_free, ensure_mac_free, two_of_one
from cnvnet.ipam.store.protocol import KnownSet, LeaseChange, Ledger
from cnvnet.vm.identity import ACTIVE, TARGET


def acquire(ledger: Ledger, request: AllocationRequest, is_dead: IsDead) -> Allocation:
    """Make the pod a holder of its key's lease; the lease is made, moved or taken over as needed.

    Raises CNIError 7 for a request that cannot be met, 11 for what may work later; the store then rolls the
    ledger back.
    """
    known = len(ledger.changes)
    lease = _acquire(ledger, request, is_dead)
    ledger.record_pool(request.key.network, request.pool)
    return Allocation(lease, tuple(ledger.changes[known:]), tuple(_ignored(request, lease)))


def _acquire(ledger: Ledger, request: AllocationRequest, is_dead: IsDead) -> Lease:
    _end_former_use(ledger, request)
    stored = ledger.get(request.key)
    if request.holder.role == TARGET:
        return _join_as_target(ledger, request, stored)
    base, lease = stored, None
    if stored is not None:
        lease = without(stored, is_dead, now=request.now)
        if not request.is_of(stored):
            base, lease = _replace_vm(ledger, request, stored, lease)
    try:
        after = _lease_for(ledger, request, lease)
    except CNIError:
        # Not before, since it means looking at every holder.
        if not _reap_dead(ledger, request.key.network, is_dead, now=request.now, spared=request.key):
            raise
        after = _lease_for(ledger, request, lease)
    until = request.now + after.cooldown if after.cooldown else 0
    ledger.change(base, after, until=until, since=request.now)
    return after


def release(ledger: Ledger, network: str, container_id: str, ifname: str, *, now: int) -> None:
    """End the pod's hold, and no other: a late DEL never harms a newer pod."""
    lease = ledger.held_by(network, container_id, ifname)
    if lease is not None:
        end_hold(ledger, lease, container_id, ifname, now=now)


def end_hold(ledger: Ledger, lease: Lease, container_id: str, ifname: str, *, now: int) -> None:
    """End the pod's hold of this lease."""
    _write_release(ledger, lease, leave(lease, container_id, ifname, now=now), now)


def collect(ledger: Ledger, network: str, valid: set[tuple[str, str]], *, node: str, now: int) -> None:
    """End every hold in the network that is this node's, but those of these (container id, ifname)."""

    def is_left_over(each: Holder) -> bool:
        return each.is_on(node) and (each.container_id, each.ifname) not in valid

    for lease in ledger.held_leases(network):
        _write_release(ledger, lease, without(lease, is_left_over, now=now), now)


def revert(ledger: Ledger, allocation: Allocation, container_id: str, ifname: str, *, now: int) -> None:
    """Undo the ADD that got this allocation, as if it had never come, unless other calls came in between."""
    for change in reversed(allocation.changes):
        if not _undo(ledger, change) and change.after == allocation.lease:
            release(ledger, allocation.lease.key.network, container_id, ifname, now=now)


def _undo(ledger: Ledger, change: LeaseChange) -> bool:
    """Take one change back, if everything is still as it left it."""
    before, after = change.before, change.after
    lease = after or before
    if (
        lease is None
        or ledger.get(lease.key) != after
        or not (before is None or _can_return(ledger, before))
    ):
        return False
    # No guest has used what the ADD took, so that need not cool down; what had been cooling down goes on.
    ledger.change(after, before, until=0)
    for each in change.cooled:
        if ledger.owner_of(each.key.network, each.ip) is None:
            ledger.restore_cooldown(each)
    return True


def free(ledger: Ledger, key: LeaseKey, *, force: bool, now: int) -> Lease:
    """End a key's lease, whatever its policy, and return it as it was; also what cools down after one.

    Addresses cool down as long as their policy says from when the VM was stopped. Code 7 where there is
    nothing to free, 11 where a pod holds it; `force` takes it from the pod all the same: its guest goes on
    using the addresses until it is stopped, its DEL finds nothing to end, and its CHECK reports it.
    """
    lease = ledger.get(key)
    if lease is None:
        cooling = ledger.cooldowns_of(key)
        if not cooling:
            raise InvalidConfig(f"{key} has no lease in network {key.network}")
        lease = Lease(key, in_order(each.ip for each in cooling), cooling[0].mac, cooling[0].vm_uid)
        # Taken and given back, it is free.
        ledger.change(None, lease, until=0)
        ledger.change(lease, None, until=0)
        return lease
    if lease.holders and not force:
        ips = ", ".join(map(str, lease.ips))
        user = refusals.user(lease.holders[0])
        text = f"{key} is held by {user}: stop it first (--force takes {ips} from a running guest)"
        raise CNIError(TRY_AGAIN_LATER, text)
    since = now if lease.holders else min(lease.since, now)
    until = since + lease.cooldown
    ledger.change(lease, None, until=until if until > now else 0, since=since)
    return lease


def reserve(
    ledger: Ledger,
    key: LeaseKey,
    *,
    ips: tuple[Address, ...],
    mac: str,
    pool: Pool | None,
    now: int,
    data_dir: str = "",
) -> Lease:
    """Make a lease for a VM before it exists; the VM's first ADD, with any UID, finds it.

    With a `pool` each range set gives one address, `ips` among them. Without one the lease has `ips` alone,
    which must be in the ranges that the network's last ADD had, if one has come. `mac` "" leaves the MAC to
    the first ADD. `data_dir` is as in AllocationRequest. Code 7 where something of it is taken or cannot be
    given.
    """
    known = ledger.get(key)
    if known is not None:
        ips_of_it = ", ".join(map(str, known.ips))
        raise InvalidConfig(f"{key} has a lease in network {key.network} already: {ips_of_it}")
    if not ips and pool is None:
        raise InvalidConfig(f"{key}: no address to reserve")
    given = pool if pool is not None else Pool(())
    # A reservation has no pod: the policy is the mildest one, and the VM's first ADD brings its own.
    no_holder = Holder("", "", ACTIVE, "", 0, "", now)
    addresses = tuple(AddressRequest(ip, "--ip", "cnvctl") for ip in ips)
    policy = Policy(b"", VM_DELETED, 0)
    request = AllocationRequest(key, "", no_holder, given, policy, addresses, mac, "--mac", now, data_dir)
    if pool is None:
        _ensure_can_be_given(ledger, request)
        chosen = in_order(ips)
    else:
        chosen, _ = choose_addresses(ledger, request, None)
    if mac:
        ensure_mac_free(ledger, request)
    lease = Lease(key, chosen, mac, source="cnvctl" if ips else "", since=now)
    ledger.change(None, lease, until=0)
    return lease


def adopt(ledger: Ledger, lease: Lease, *, origin: str, now: int) -> Lease:
    """Make a lease of another store this one's as it is, its holders included; `origin` names that store.

    A key that has a lease with the same addresses already gets the holders. Raises CNIError 11 where it has
    others, or where another key has one of the addresses.
    """
    network, key = lease.key.network, lease.key
    ledger.expire(network, now, everything=False)
    known = ledger.get(key)
    if known is not None and (known.ips != lease.ips or (known.mac and lease.mac not in ("", known.mac))):
        has, had = (", ".join(filter(None, (*map(str, each.ips), each.mac))) for each in (known, lease))
        text = f"{key} has {has}, and {had} in {origin}: release one of them (cnvctl leases release --store)"
        raise CNIError(TRY_AGAIN_LATER, text)
    after = known or lease._replace(holders=())
    for ip in lease.ips:
        owner = ledger.owner_of(network, ip)
        if owner is not None and owner.key != key:
            raise _taken(lease, str(ip), origin, owner)
    if lease.mac:
        owner = ledger.owner_of_mac(network, lease.mac)
        if owner is not None and owner.key != key:
            raise _taken(lease, lease.mac, origin, owner)
        after = after._replace(mac=lease.mac)
    for holder in lease.holders:
        newer = any(each.role == ACTIVE and each.since > holder.since for each in after.holders)
        after = hold(after, holder._replace(role=LEAVING) if newer and holder.role == ACTIVE else holder)
    ledger.change(known, after, until=0)
    return after


def drop(ledger: Ledger, lease: Lease) -> bool:
    """End a lease that another store has adopted, unless it has changed since; whether it is gone.

    Its addresses do not cool down, for they are in use.
    """
    current = ledger.get(lease.key)
    if current == lease:
        ledger.change(current, None, until=0)
    return current in (None, lease)


def _taken(lease: Lease, address: str, origin: str, owner: Lease | Cooldown) -> CNIError:
    whose = (
        refusals.taken(owner, "") if isinstance(owner, Lease) else f"kept free for a while after {owner.key}"
    )
    return CNIError(TRY_AGAIN_LATER, f"{lease.key} has {address} in {origin}, and here it is {whose}")


def _ensure_can_be_given(ledger: Ledger, request: AllocationRequest) -> None:
    pools = ledger.recorded_pools(request.key.network)
    for index, wanted in enumerate(request.addresses):
        if not _is_of_a_host(wanted.ip):
            raise InvalidConfig(f"{wanted.where}: {wanted.ip} cannot be the address of an interface")
        if wanted in request.addresses[:index]:
            raise InvalidConfig(f"{wanted.where}: {wanted.ip} is asked for twice")
    first_of: dict[KnownSet, AddressRequest] = {}
    for wanted in request.addresses:
        known = pools.get(wanted.ip.version)
        if known is not None:
            of_set = next((each for each in known.sets if each.gives(wanted.ip)), None)
            if of_set is None:
                text = f"network {request.key.network} does not give out {wanted.ip} ({known.name})"
                raise InvalidConfig(f"{wanted.where}: {text}")
            first = first_of.setdefault(of_set, wanted)
            if first is not wanted:
                raise two_of_one(wanted, first, of_set.name)
        ensure_free(ledger, request, wanted)


def _is_of_a_host(ip: Address) -> bool:
    return not (ip.is_multicast or ip.is_unspecified or ip.is_loopback or str(ip) == "255.255.255.255")


def _reap_dead(
    ledger: Ledger, network: str, is_dead: IsDead, *, now: int, spared: LeaseKey | None = None
) -> bool:
    """End the holds of dead holders, but for the lease of `spared`; whether there were any."""
    reaped = False
    for lease in ledger.held_leases(network):
        alive = without(lease, is_dead, now=now)
        if alive != lease and lease.key != spared:
            _write_release(ledger, lease, alive, now)
            reaped = True
    return reaped


def _end_former_use(ledger: Ledger, request: AllocationRequest) -> None:
    # The same interface of the same container may come back as another VM: a retry with another identity.
    holder, network = request.holder, request.key.network
    former = ledger.held_by(network, holder.container_id, holder.ifname)
    if former is not None and former.key != request.key:
        release(ledger, network, holder.container_id, holder.ifname, now=request.now)


def _write_release(ledger: Ledger, before: Lease, after: Lease, now: int) -> None:
    """Write a lease that lost holders; if that was the last one, it ends or waits as its policy says."""
    ends = not after.holders and after.ends_with_its_holders
    until = now + before.cooldown if before.cooldown else 0
    ledger.change(before, None if ends else after, until=until, since=now)


def _can_return(ledger: Ledger, before: Lease) -> bool:
    network = before.key.network
    owners = [ledger.owner_of(network, ip) for ip in before.ips]
    if before.mac:
        owners.append(ledger.owner_of_mac(network, before.mac))
    owners.extend(ledger.held_by(network, each.container_id, each.ifname) for each in before.holders)
    return all(owner is None or owner.key == before.key for owner in owners)


def _join_as_target(ledger: Ledger, request: AllocationRequest, lease: Lease | None) -> Lease:
    """The target of a migration gets what the source has: nothing else, and nothing before the source."""
    if lease is None or not lease.holders:
        raise InvalidConfig(f"role target: {request.key} runs nowhere in network {request.key.network}")
    if not request.is_of(lease):
        known = f"has the UID {lease.vm_uid} in {refusals.user(lease.holders[0])}"
        raise InvalidConfig(f"role target: {request.key} {known}, not {request.vm_uid}")
    after = hold(lease, request.holder)._replace(vm_uid=lease.vm_uid or request.vm_uid)
    ledger.change(lease, after, until=0)
    return after


def _ignored(request: AllocationRequest, lease: Lease) -> Iterator[str]:
    """What is asked for and not given, by a migration's target or a MAC that yields: one line each."""
    key = request.key
    if request.holder.role != TARGET:
        if request.mac_yields and lease.mac not in ("", request.mac):
            taken = f"{request.mac} is another one's in network {key.network}"
            yield f"{request.mac_where}: {taken}: {key} gets {lease.mac}"
        return
    for wanted in request.addresses:
        if wanted.ip not in lease.ips:
            yield f"{wanted.where}: {wanted.ip} ignored: {key} is migrating and keeps its addresses"
    if request.mac and lease.mac not in ("", request.mac):
        yield f"{request.mac_where}: {request.mac} ignored: {key} is migrating with {lease.mac}"


def _other_holders(lease: Lease, holder: Holder) -> tuple[Holder, ...]:
    return tuple(each for each in lease.holders if not each.is_of(holder.container_id, holder.ifname))


def _replace_vm(
    ledger: Ledger, request: AllocationRequest, stored: Lease, alive: Lease
) -> tuple[Lease | None, Lease | None]:
    """Another VM has come under the same name: what it inherits of the lease, as stored and as it is now.

    Raises CNIError 11 while a pod of the former VM holds it.
    """
    others = _other_holders(alive, request.holder)
    if others:
        ips = ", ".join(map(str, stored.ips))
        user = f"another VM of this name (UID {stored.vm_uid}) still has {ips} in {refusals.user(others[0])}"
        raise CNIError(TRY_AGAIN_LATER, f"{request.key}: {user}")
    if stored.release == NEVER:
        return stored, alive
    until = request.now + stored.cooldown if stored.cooldown else 0
    ledger.change(stored, None, until=until, since=request.now)
    return None, None


def _lease_for(ledger: Ledger, request: AllocationRequest, lease: Lease | None) -> Lease:
    """What the key is to have after this ADD, given what it has."""
    ips, former_mac = choose_addresses(ledger, request, lease)
    mac = choose_mac(ledger, request, lease.mac if lease is not None else former_mac, ips)
    if lease is not None and (others := _other_holders(lease, request.holder)):
        lost = [str(ip) for ip in lease.ips if ip not in ips]
        if lease.mac not in ("", mac):
            lost.append(lease.mac)
        if lost:
            # Freed now, it could be another VM's while the old pod still uses it.
            user = refusals.user(others[0])
            text = f"{request.key}: {', '.join(lost)} cannot be given up while {user} has it"
            raise CNIError(TRY_AGAIN_LATER, text)
    source = ", ".join(dict.fromkeys(wanted.source for wanted in request.addresses_for(lease)))
    if not source and lease is not None and lease.ips == ips:
        source = lease.source
    base = lease if lease is not None else Lease(request.key, ips)
    changed = base._replace(
        ips=ips,
        mac=mac,
        vm_uid=request.vm_uid or base.vm_uid,
        source=source,
        release=request.policy.release,
        cooldown=request.policy.cooldown,
    )
    return hold(changed, request.holder)
