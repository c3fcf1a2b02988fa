"""Which addresses and which MAC a lease gets: what is asked for, what it had, what is free."""

from __future__ import annotations

from cnvnet.cni.errors import INTERNAL, CNIError, InvalidConfig
from cnvnet.cni.fields import Address
from cnvnet.ipam import refusals
from cnvnet.ipam.allocation import AddressRequest, AllocationRequest
from cnvnet.ipam.lease import Cooldown, Lease, derive_mac, in_order, same_vm
from cnvnet.ipam.pool import Pool, RangeSet, probing_order
from cnvnet.ipam.refusals import AddressTaken, MacTaken
from cnvnet.ipam.store.protocol import Ledger


def choose_addresses(
    ledger: Ledger, request: AllocationRequest, lease: Lease | None
) -> tuple[tuple[Address, ...], str]:
    """One address of each set, and the MAC that went with them if they are the key's own from before.

    An address that is asked for comes first, then those of `lease` (None: the key has none), then those the
    key had and that still cool down, then the next free one. Raises CNIError 7 for a request that cannot be
    met, 11 for a set that is full.
    """
    network = request.key.network
    ledger.expire(network, request.now, everything=False)
    requested = _requested(request, request.addresses_for(lease))
    kept = _kept(request.pool, lease.ips if lease is not None else ())
    old = [each for each in ledger.cooldowns_of(request.key) if same_vm(each.vm_uid, request.vm_uid)]
    returning = {} if lease is not None else _kept(request.pool, tuple(each.ip for each in old))
    chosen: list[Address] = []
    for index, given in enumerate(request.pool.sets):
        wanted = requested.get(index)
        if wanted is not None:
            ensure_free(ledger, request, wanted)
        seed = "\0".join((*request.key, str(index))).encode()
        ip = wanted.ip if wanted is not None else kept.get(index) or returning.get(index)
        ip = ip or _next_free(ledger, network, given, seed, request.now)
        if ip is None:
            raise refusals.full(ledger, network, given, request.now, request.data_dir)
        chosen.append(ip)
    mac = next((each.mac for each in old if each.ip in chosen and each.mac), "")
    return in_order(chosen), mac


def _requested(
    request: AllocationRequest, addresses: tuple[AddressRequest, ...]
) -> dict[int, AddressRequest]:
    """The request that counts for each range set; what cannot be had there at all is refused."""
    requested: dict[int, AddressRequest] = {}
    for wanted in addresses:
        index = request.pool.set_of(wanted.ip)
        purpose = request.pool.purpose_of(wanted.ip)
        if purpose:
            raise InvalidConfig(f"{wanted.where}: {wanted.ip} is {purpose} of network {request.key.network}")
        if index is None:
            where = f"in no range of network {request.key.network} ({request.pool.name})"
            raise InvalidConfig(f"{wanted.where}: {wanted.ip} is {where}")
        if not request.pool.sets[index].gives(wanted.ip):
            raise InvalidConfig(f"{wanted.where}: {wanted.ip} is excluded in network {request.key.network}")
        first = requested.setdefault(index, wanted)
        if first.source == wanted.source and first.ip != wanted.ip:
            raise two_of_one(wanted, first, request.pool.sets[index].name)
    return requested


def two_of_one(wanted: AddressRequest, first: AddressRequest, name: str) -> InvalidConfig:
    """A lease has one address of each range set; the name is the set's."""
    text = f"{wanted.ip} and {first.ip} are both of range {name}, which gives one address each"
    return InvalidConfig(f"{wanted.where}: {text}")


def ensure_free(ledger: Ledger, request: AllocationRequest, wanted: AddressRequest) -> None:
    """CNIError 7 if another key has the address, or gave it up less than its cooldown ago."""
    owner = ledger.owner_of(request.key.network, wanted.ip)
    if owner is None or (isinstance(owner, Lease) and owner.key == request.key):
        return
    if isinstance(owner, Cooldown):
        if owner.until <= request.now or (
            owner.key == request.key and same_vm(owner.vm_uid, request.vm_uid)
        ):
            return
        left = f"was given up by {owner.key} and is kept free for another {owner.until - request.now} s"
        raise AddressTaken(f"{wanted.where}: {wanted.ip} {left}")
    raise AddressTaken(f"{wanted.where}: {wanted.ip} is {refusals.taken(owner, request.data_dir)}")


def _kept(pool: Pool, ips: tuple[Address, ...]) -> dict[int, Address]:
    """Which of these addresses serve which set: by range, else (the ranges were narrowed) by subnet."""
    left = [ip for ip in ips if not pool.purpose_of(ip)]
    kept: dict[int, Address] = {}
    for ip in tuple(left):
        index = pool.set_of(ip)
        if index is not None and index not in kept:
            kept[index] = ip
            left.remove(ip)
    for index, given in enumerate(pool.sets):
        ip_of_subnet = next((ip for ip in left if given.range_of(ip) is not None), None)
        if index not in kept and ip_of_subnet is not None:
            kept[index] = ip_of_subnet
            left.remove(ip_of_subnet)
    return kept


def _next_free(ledger: Ledger, network: str, given: RangeSet, seed: bytes, now: int) -> Address | None:
    """A free address of the set. Cooldowns are looked through only when there is none."""
    for attempt in range(2):
        for first, last in probing_order(given, seed):
            ip = ledger.next_free(network, first, last)
            if ip is not None:
                return ip
        if attempt == 0:
            ledger.expire(network, now, everything=True)
    return None


def choose_mac(ledger: Ledger, request: AllocationRequest, has: str, ips: tuple[Address, ...]) -> str:
    """The MAC of the lease: the one asked for, else the one it has, else one derived from an address."""
    network, prefix = request.key.network, request.policy.mac_prefix
    if not prefix:
        return ""
    if request.mac:
        owner = ledger.owner_of_mac(network, request.mac) if request.mac_yields else None
        if owner is None or owner.key == request.key:
            ensure_mac_free(ledger, request)
            return request.mac
    for salt in range(256):
        mac = has or derive_mac(prefix, network, ips[0], salt)
        owner = ledger.owner_of_mac(network, mac)
        if owner is None or owner.key == request.key:
            return mac
        has = ""
    raise CNIError(INTERNAL, f"network {network}: no free MAC address for {ips[0]}")


def ensure_mac_free(ledger: Ledger, request: AllocationRequest) -> None:
    """CNIError 7 if another key has the MAC that is asked for."""
    owner = ledger.owner_of_mac(request.key.network, request.mac)
    if owner is not None and owner.key != request.key:
        raise MacTaken(f"{request.mac_where}: {request.mac} is {refusals.taken(owner, request.data_dir)}")
