"""Where leases are kept: what the address manager asks of a store, whichever it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from cnvnet.cni.fields import Address
from cnvnet.ipam.lease import Cooling, Key, Lease


class Change(NamedTuple):
    """One transition of one lease as it was written. `cooled` is what its new addresses were until then."""

    before: Lease | None
    after: Lease | None
    cooled: tuple[Cooling, ...]


class Ledger(Protocol):
    """The leases of all networks as one transaction sees them. `changes` is what `change` did, in order."""

    changes: list[Change]

    def get(self, key: Key) -> Lease | None:
        """The lease of this key."""
        ...

    def held_by(self, network: str, container_id: str, ifname: str) -> Lease | None:
        """The lease this pod's interface is a holder of."""
        ...

    def holding(self, network: str) -> Iterator[Lease]:
        """All leases of a network that have a holder, in no particular order."""
        ...

    def owner(self, network: str, ip: Address) -> Lease | Cooling | None:
        """Who has the address, or had it and keeps others from it; None when it is free."""
        ...

    def owner_of_mac(self, network: str, mac: str) -> Lease | None:
        """Who has the MAC."""
        ...

    def cooling(self, key: Key) -> tuple[Cooling, ...]:
        """What this key had and can have again."""
        ...

    def next_free(self, network: str, first: Address, last: Address) -> Address | None:
        """The first address of the span that nobody has and that is not cooling down."""
        ...

    def cooldowns(self, network: str, first: Address, last: Address) -> tuple[int, int]:
        """How many addresses of the span are cooling down, and when the first is free again; 0 for none."""
        ...

    def expire(self, network: str, now: int, *, everything: bool) -> None:
        """Make addresses whose cooldown is over free; a few of them, or all."""
        ...

    def change(self, before: Lease | None, after: Lease | None, *, until: int) -> None:
        """One transition of one lease (both have the same key). None is no lease.

        Addresses that `after` no longer has cool down `until` then, 0 for not at all; those it takes are
        free or cooling, the caller has looked.
        """
        ...

    def cool(self, cooling: Cooling) -> None:
        """Keep an address that is free from everybody else, as it was before somebody took it."""
        ...


class Store(Protocol):
    """A place for leases. `name` is what messages call it."""

    name: str

    def exists(self) -> bool:
        """Whether anything was ever stored; if not there is nothing to delete or check."""
        ...

    def transaction(self) -> AbstractContextManager[Ledger]:
        """All or nothing, and nobody else in between. Makes the store where it does not exist yet."""
        ...

    def read_only(self) -> bool:
        """Whether it is on a file system that is mounted read-only; `transaction` would not work then."""
        ...

    def reading(self) -> AbstractContextManager[Ledger]:
        """For looking only: like `transaction`, but where nothing can be written it works too."""
        ...

    def ready(self) -> None:
        """Nothing, or a CNIError of code 50 that says why the store cannot be written."""
        ...
