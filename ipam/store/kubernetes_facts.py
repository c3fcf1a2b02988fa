"""What one run of the Kubernetes store has learned of the API, and what a process remembers between runs."""

from __future__ import annotations

import time
from _thread import allocate_lock
from collections import OrderedDict
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final, NamedTuple

from cnvnet.cni.fields import Address
from cnvnet.ipam.lease import Cooldown, Lease, LeaseKey, in_order
from cnvnet.ipam.store import object_names, objects
from cnvnet.ipam.store.objects import StoredLease, StoredReservation
from cnvnet.kube.api import Api, NotFound
from cnvnet.kube.resources import IP_RESERVATIONS, VM_LEASES

# What an address belongs to; None: it is free, whatever object still stands for it.
AddressOwner = Lease | Cooldown | None

# Seconds for which an address that was taken is not tried while there are others.
_MEMORY: Final = 60.0
# Pauses for a lease that is being deleted and has no holder.
_WAITS: Final = 8
# Addresses of a network that are remembered: more of them only make the first guess of an ADD worse.
_REMEMBERED: Final = 4096


class TakenAddresses:
    """Addresses that were taken not long ago, for all threads of a process: hints for guesses, no truth."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._networks: dict[str, OrderedDict[int, float]] = {}

    def add(self, network: str, ips: Iterable[Address]) -> None:
        """These are taken."""
        end = time.monotonic() + _MEMORY
        with self._lock:
            known = self._networks.setdefault(network, OrderedDict[int, float]())
            for ip in ips:
                known[number(ip)] = end
                known.move_to_end(number(ip))
            while len(known) > _REMEMBERED:
                known.popitem(last=False)

    def discard(self, network: str, ips: Iterable[Address]) -> None:
        """These are free, or are going to be."""
        with self._lock:
            known = self._networks.get(network, OrderedDict[int, float]())
            for ip in ips:
                known.pop(number(ip), None)

    def has(self, network: str, ip: Address) -> bool:
        """Whether the address was taken not long ago."""
        known = self._networks.get(network)
        end = known.get(number(ip)) if known is not None else None
        return end is not None and end > time.monotonic()


class BlockState(NamedTuple):
    """What every address of a block that is not free belongs to."""

    owners: dict[int, Lease | Cooldown]


class Facts:
    """What a run knows. It is kept when the action begins anew, but for what was found to have changed."""

    def __init__(self, api: Api, taken: TakenAddresses) -> None:
        self._api = api
        self.taken = taken
        # Requests for an address that was not free.
        self.conflicts = 0
        self._waits = 0
        self._leases: dict[LeaseKey, StoredLease | None] = {}
        self._owners: dict[tuple[str, str], AddressOwner] = {}
        # Addresses that the controller has to free.
        self._left: dict[tuple[str, str], Lease] = {}
        self._seen: dict[tuple[str, str], StoredReservation | None] = {}
        self._names: dict[tuple[str, str], set[int]] = {}
        self._states: dict[tuple[str, str], BlockState] = {}

    def lease(self, key: LeaseKey) -> StoredLease | None:
        """The VMLease of a VM's key. ApiError."""
        if key not in self._leases:
            self._leases[key] = self.read_lease(key.namespace, object_names.lease_name(key))
        return self._leases[key]

    def known_leases(self) -> list[StoredLease]:
        """The VMLeases that were read."""
        return [each for each in self._leases.values() if each is not None]

    def set_lease(self, key: LeaseKey, stored: StoredLease | None) -> None:
        """The VMLease is another one than was read."""
        self._leases[key] = stored

    def forget(self, key: LeaseKey) -> None:
        """The VMLease has to be read again."""
        self._leases.pop(key, None)

    def is_current(self, stored: StoredLease) -> bool:
        """Whether a VMLease is still as it was read; it is read again. ApiError."""
        now = self.read_lease(stored.key.namespace, stored.name)
        self._leases[stored.key] = now
        return now is not None and now.version == stored.version

    def may_wait(self, key: LeaseKey) -> bool:
        """Whether a lease that is being deleted may be waited for; it is read again then."""
        self._waits += 1
        self.forget(key)
        return self._waits <= _WAITS

    def read_lease(self, namespace: str, name: str) -> StoredLease | None:
        """A VMLease as it is now. ApiError."""
        try:
            return objects.read_lease(self._api.get(VM_LEASES, name, namespace))
        except NotFound:
            return None

    def read_reservation(self, network: str, address: str) -> StoredReservation | None:
        """An address' IPReservation as it is now. ApiError."""
        try:
            name = object_names.reservation_name(network, address)
            return objects.read_reservation(self._api.get(IP_RESERVATIONS, name))
        except NotFound:
            return None

    def knows_owner(self, network: str, address: str) -> bool:
        """Whether it is known what an address belongs to."""
        return (network, address) in self._owners

    def owner(self, network: str, address: str) -> AddressOwner:
        """What an address belongs to, read if it is not known. ApiError."""
        if (network, address) not in self._owners:
            reservation = self.read_reservation(network, address)
            self._seen[network, address] = reservation
            self._owners[network, address] = self._resolved(reservation)
        return self._owners[network, address]

    def seen(self, network: str, address: str) -> StoredReservation | None:
        """The IPReservation by which `owner` has answered in this run; None if there was none."""
        self.owner(network, address)
        return self._seen.get((network, address))

    def _resolved(self, reservation: StoredReservation | None) -> AddressOwner:
        if reservation is None:
            return None
        known = next((each for each in self.known_leases() if each.uid == reservation.lease_uid), None)
        return _of_lease(reservation, known) if known is not None else self.owner_by(reservation)

    def learn(self, network: str, address: str, owner: AddressOwner) -> None:
        """What an address belongs to."""
        self._owners[network, address] = owner
        if owner is not None and not object_names.is_mac(address):
            ip = ip_address(address)
            self.taken.add(network, [ip])
            # What was listed is older: it is listed again.
            self._states.pop((network, object_names.block_of(ip)), None)

    def leave(self, network: str, address: str, owner: Lease) -> None:
        """An address is nothing's that this node may not free: for this run it has this owner."""
        self._left[network, address] = owner
        self.learn(network, address, owner)

    def owner_by(self, reservation: StoredReservation) -> AddressOwner:
        """What an IPReservation says that its address belongs to. ApiError.

        An address that its lease does not list is free: a lease lists an address before it is reserved, and
        no longer lists it before it is freed. That of a lease that is gone is not: its VM may still run.
        """
        if reservation.pod is not None:
            return _of_pod(reservation, reservation.pod)
        return _of_lease(reservation, self.read_lease(reservation.namespace, reservation.lease_name))

    def names(self, network: str, ip: Address) -> set[int]:
        """The numbers of the addresses that have an IPReservation, of the block of this one. ApiError."""
        block = (network, object_names.block_of(ip))
        if block not in self._names:
            listed = self._api.list(
                IP_RESERVATIONS, labels=object_names.reserved_in_block(*block), metadata_only=True
            )
            names = (object_names.reserved_ip(network, each["metadata"]["name"]) for each in listed.items)
            reserved = [each for each in names if each is not None]
            self.taken.add(network, reserved)
            self._names[block] = {number(each) for each in reserved}
        return self._names[block]

    def state(self, network: str, ip: Address) -> BlockState:
        """What the addresses of the block of this one belong to. ApiError."""
        block = (network, object_names.block_of(ip))
        if block not in self._states:
            reserved = self._api.list(IP_RESERVATIONS, labels=object_names.reserved_in_block(*block))
            # Read after the reservations: a lease lists an address before it is reserved.
            leases = self._api.list(VM_LEASES, labels=object_names.in_block(*block))
            by_name = {
                (each.key.namespace, each.name): each for each in map(objects.read_lease, leases.items)
            }
            owners: dict[int, Lease | Cooldown] = {}
            for each in map(objects.read_reservation, reserved.items):
                if each.pod is not None:
                    owner: AddressOwner = _of_pod(each, each.pod)
                else:
                    lease = by_name.get((each.namespace, each.lease_name))
                    owner = _of_lease(each, lease) if lease is not None else self.owner_by(each)
                if owner is not None:
                    owners[number(ip_address(each.address))] = owner
            left = (each for each in self._left.items() if not object_names.is_mac(each[0][1]))
            owners |= {number(ip_address(each)): owner for (of, each), owner in left if of == network}
            self._states[block] = BlockState(owners)
        return self._states[block]


def _of_pod(reservation: StoredReservation, pod: Lease) -> Lease | Cooldown:
    if not reservation.until or not pod.ips:
        return pod
    times = (reservation.until, reservation.since)
    return Cooldown(pod.key, pod.ips[0], pod.mac, pod.vm_uid, *times)


def _of_lease(reservation: StoredReservation, stored: StoredLease | None) -> AddressOwner:
    address = reservation.address
    if stored is None or stored.uid != reservation.lease_uid:
        vm = reservation.lease_name.rpartition("-")[0]
        key = LeaseKey(reservation.network, reservation.namespace, vm, "its lease is gone")
        ips = () if object_names.is_mac(address) else (ip_address(address),)
        return Lease(key, in_order(ips), address if object_names.is_mac(address) else "")
    if address in stored.listed:
        return stored.lease
    return next((each for each in stored.cooling if str(each.ip) == address), None)


def number(ip: Address) -> int:
    """An address as a number of its own, whatever its family."""
    # The families apart: 0.0.0.5 is not ::5.
    return int(ip) | (ip.version << 128)
