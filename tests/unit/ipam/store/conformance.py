"""The stores that the suites of leases run over, and what those suites share.

A second store gets its line in STORES: then tests/unit/ipam/store/test_conformance.py and
tests/unit/ipam/test_allocator*.py hold it to the same scenarios and the same texts of errors. On a real API
server tests/e2e/test_store_conformance.py runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam import allocator
from cnvnet.ipam.allocation import AddressRequest, Allocation, AllocationRequest, Policy
from cnvnet.ipam.lease import VM_DELETED, Cooldown, Holder, Lease, LeaseKey, in_order
from cnvnet.ipam.pool import Pool, Range, pool
from cnvnet.ipam.store.protocol import Store, Usage
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.vm.identity import ACTIVE
from tests.fakes.kubernetes_store import NODE, open_kubernetes
from tests.fakes.rerun import RerunSqlite


class ClosableStore(Store, Protocol):
    """A store whose connections a test ends."""

    def close(self) -> None: ...


# Opens the store of a folder: twice for one folder are two programs with one store.
Factory = Callable[[Path], ClosableStore]

STORES: Final[dict[str, Factory]] = {
    "sqlite": lambda folder: Sqlite(str(folder)),
    "sqlite-rerun": lambda folder: RerunSqlite(str(folder)),
    "kubernetes": open_kubernetes,
}


KEY = LeaseKey("net", "default", "vm1", "eth0")
HOLDER = Holder("c1", "eth0", ACTIVE, "/run/netns/c1", 4026530000, "boot", 5, NODE)
LEASE = Lease(
    KEY,
    in_order(map(ip_address, ("10.0.0.5", "fd00::5"))),
    mac="0a:63:00:00:00:01",
    vm_uid="uid-1",
    source="args.cni.ips",
    release="pod",
    cooldown=60,
    since=4,
    holders=(HOLDER,),
)


def lease(name: str, *ips: str, mac: str = "", network: str = "net") -> Lease:
    return Lease(LeaseKey(network, "default", name, "eth0"), in_order(map(ip_address, ips)), mac=mac)


PREFIX = b"\x0a\x63"


def a_pool(subnet: str = "10.0.0.0/29", *more: str) -> Pool:
    """One range set for each subnet, its first address the gateway."""
    networks = [ip_network(each) for each in (subnet, *more)]
    return pool([[Range(each, each[1], each[-1], each[1])] for each in networks], [])


def write(store: Store, *leases: Lease) -> None:
    """Store leases of keys that have none, each in a run of its own."""
    for each in leases:
        _write(store, each)


def _write(store: Store, new: Lease) -> None:
    store.run(lambda ledger: ledger.change(None, new, until=0))


class Desk:
    """An allocator with a store, a clock and the containers that died unnoticed."""

    def __init__(self, store: ClosableStore) -> None:
        self.store = store
        self.now = 1000
        self.dead: set[str] = set()

    def add(
        self,
        vm: str,
        container: str,
        uid: str = "",
        *,
        role: str = ACTIVE,
        ips: tuple[str, ...] = (),
        mac: str = "",
        release: str = VM_DELETED,
        cooldown: int = 0,
        given: Pool | None = None,
        prefix: bytes = PREFIX,
        key: LeaseKey | None = None,
        node: str = NODE,
        pod: str = "",
        pod_uid: str = "",
        kin: frozenset[str] = frozenset(),
    ) -> Allocation:
        asked = AllocationRequest(
            key=key or LeaseKey("net", "default", vm, "eth0"),
            vm_uid=uid,
            holder=Holder(
                container, "eth0", role, f"/run/netns/{container}", 1, "boot", self.now, node, pod, pod_uid
            ),
            pool=given or a_pool(),
            policy=Policy(prefix, release, cooldown),
            addresses=tuple(
                AddressRequest(ip_address(ip), f"args.cni.ips[{n}]", "args.cni.ips")
                for n, ip in enumerate(ips)
            ),
            mac=mac,
            mac_where="args.cni.mac",
            now=self.now,
            kin=kin,
        )
        return self.store.run(
            lambda ledger: allocator.acquire(ledger, asked, lambda each: each.container_id in self.dead)
        )

    def delete(self, container: str) -> None:
        self.store.run(lambda ledger: allocator.release(ledger, "net", container, "eth0", now=self.now))

    def collect(self, *valid: str, node: str = NODE) -> None:
        self.store.run(
            lambda ledger: allocator.collect(
                ledger, "net", {(each, "eth0") for each in valid}, node=node, now=self.now
            )
        )

    def revert(self, granted: Allocation, container: str) -> None:
        self.store.run(lambda ledger: allocator.revert(ledger, granted, container, "eth0", now=self.now))

    def free(self, vm: str, *, force: bool = False) -> Lease:
        return self.store.run(
            lambda ledger: allocator.free(
                ledger, LeaseKey("net", "default", vm, "eth0"), force=force, now=self.now
            )
        )

    def reserve(self, vm: str, *ips: str, mac: str = "", given: Pool | None = None) -> Lease:
        key, wanted = LeaseKey("net", "default", vm, "eth0"), tuple(map(ip_address, ips))
        return self.store.run(
            lambda ledger: allocator.reserve(ledger, key, ips=wanted, mac=mac, pool=given, now=self.now)
        )

    def lease(self, vm: str) -> Lease | None:
        return self.store.run(lambda ledger: ledger.get(LeaseKey("net", "default", vm, "eth0")))

    def refusal(self, vm: str, container: str, uid: str = "", **wanted: object) -> CNIError:
        """The error of an ADD that must be refused, and must have changed nothing."""
        before = self.contents()
        with pytest.raises(CNIError) as caught:
            self.add(vm, container, uid, **wanted)  # type: ignore[arg-type]  # the options of `add`
        assert self.contents() == before
        return caught.value

    def rows(self) -> Contents:
        """What the store says of leases, without cooldowns that are over and what a network has to give."""
        found = self.contents()
        return Contents(found.leases, [each for each in found.cooldowns if each.until > self.now], [])

    def contents(self) -> Contents:
        """Everything the store says."""
        return self.store.look(
            lambda ledger: Contents(
                list(ledger.leases()), list(ledger.cooldowns()), list(ledger.usage(now=self.now))
            )
        )


class Contents(NamedTuple):
    """What a store keeps of all networks."""

    leases: list[Lease]
    cooldowns: list[Cooldown]
    usage: list[Usage]


def roles(lease: Lease | None) -> dict[str, str]:
    return {each.container_id: each.role for each in lease.holders} if lease else {}
