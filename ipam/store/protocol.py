"""Where leases are kept: what the address manager asks of every store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from cnvnet.cni.errors import IO_FAILURE, CNIError
from cnvnet.cni.fields import Address
from cnvnet.ipam.lease import Cooldown, Lease, LeaseKey
from cnvnet.ipam.pool import Pool, Span

T = TypeVar("T")


class LeaseChange(NamedTuple):
    """One transition of one lease as it was written."""

    # None: the key had no lease.
    before: Lease | None
    # None: the lease has ended.
    after: Lease | None
    # The cooldowns of the addresses that the lease took.
    cooled: tuple[Cooldown, ...]


class Occupancy(NamedTuple):
    """How many addresses of a span are in which state."""

    # On the interface of a pod.
    active: int
    # Kept for a VM that does not run.
    stopped: int
    # Cooling down, and when the first of them is free again (0: there is none).
    cooling: int
    until: int


class KnownSet(NamedTuple):
    """Ranges of which a lease gets one address, as a network's last ADD had them: see pool.RangeSet."""

    name: str
    spans: tuple[Span, ...]

    def gives(self, ip: Address) -> bool:
        """Whether the set gives an address."""
        return any(first <= int(ip) <= last for first, last in self.spans)


class KnownRanges(NamedTuple):
    """What a network can give out of one family, as its last ADD had it."""

    sets: tuple[KnownSet, ...]

    @property
    def name(self) -> str:
        """What messages call it."""
        return ",".join(each.name for each in self.sets)

    @property
    def spans(self) -> tuple[Span, ...]:
        """First and last address of each stretch, as integers."""
        return tuple(span for each in self.sets for span in each.spans)

    @property
    def size(self) -> int:
        """How many addresses it gives."""
        return sum(last - first + 1 for first, last in self.spans)


class Usage(NamedTuple):
    """How many addresses of one family of a network are in which state."""

    network: str
    # 4 or 6.
    family: int
    # What messages call the ranges of the network's last ADD; "" where no ADD has come since the store was
    # made by an older version.
    pool: str
    # On the interface of a pod.
    active: int
    # Kept for a VM that does not run.
    stopped: int
    cooling: int
    # What those ranges can still give out; None where `pool` is "".
    free: int | None


class Ledger(Protocol):
    """The leases of all networks as one transaction sees them. `changes` is what `change` did, in order.

    A ledger of a cluster does not know all of them while it is changed: what it does not know counts as
    free, and the store runs the action again if its commit finds out that it is not.
    """

    changes: list[LeaseChange]

    def get(self, key: LeaseKey) -> Lease | None:
        """The lease of this key."""
        ...

    def held_by(self, network: str, container_id: str, ifname: str) -> Lease | None:
        """The lease this pod's interface is a holder of."""
        ...

    def held_leases(self, network: str) -> Iterator[Lease]:
        """All leases of a network that have a holder, in no particular order."""
        ...

    def owner_of(self, network: str, ip: Address) -> Lease | Cooldown | None:
        """The lease that has the address, or the cooldown that keeps it from others; None: it is free."""
        ...

    def owner_of_mac(self, network: str, mac: str) -> Lease | None:
        """The lease that has the MAC."""
        ...

    def cooldowns_of(self, key: LeaseKey) -> tuple[Cooldown, ...]:
        """What this key had and can have again."""
        ...

    def next_free(self, network: str, first: Address, last: Address) -> Address | None:
        """The first address of the span that no lease has and that is not cooling down."""
        ...

    def occupancy(self, network: str, first: Address, last: Address, *, now: int) -> Occupancy:
        """What takes the addresses of the span. All of it is counted: for a pool that is full."""
        ...

    def longest_stopped(self, network: str, first: Address, last: Address, *, limit: int) -> Iterator[Lease]:
        """So many of the leases without holders that have an address of the span, longest stopped first."""
        ...

    def expire(self, network: str, now: int, *, everything: bool) -> None:
        """Make addresses whose cooldown is over free; a few of them, or all."""
        ...

    def change(self, before: Lease | None, after: Lease | None, *, until: int, since: int = 0) -> None:
        """One transition of one lease (both have the same key). None is no lease.

        Addresses that `after` no longer has cool down from `since` to `until`, 0 for not at all; those it
        takes are free or cooling, the caller has looked.
        """
        ...

    def restore_cooldown(self, cooldown: Cooldown) -> None:
        """Keep a free address from other keys again, as it was before an ADD took it."""
        ...

    def record_pool(self, network: str, pool: Pool) -> None:
        """Store what the network has to give, for `recorded_pools` and `usage`."""
        ...

    def recorded_pools(self, network: str) -> dict[int, KnownRanges]:
        """What `record_pool` last stored of the network, by family; {} where no ADD has come yet."""
        ...

    def leases(self, network: str | None = None) -> Iterator[Lease]:
        """All leases, of one network or (None) of all, held or not, in the order of their keys."""
        ...

    def cooldowns(self, network: str | None = None) -> Iterator[Cooldown]:
        """All addresses that are cooling down, of one network or (None) of all, in the order of addresses.

        Also those whose `until` is past: they are free, and forgotten when an ADD needs room.
        """
        ...

    def usage(self, network: str | None = None, *, now: int) -> Iterator[Usage]:
        """The counts of one network or (None) of all, in the order of networks and families."""
        ...


class LeasesLost(CNIError):
    """A store has kept leases and has not all of them any more: nothing is given out until it has (code 5).

    `what` is the matter with it; `otherwise` is what `cnvctl leases init` would do.
    """

    def __init__(self, what: str, otherwise: str, network: str = "") -> None:
        command = "cnvctl leases init" + (f" --network {network}" if network else "")
        super().__init__(IO_FAILURE, f"{what}: restore it, or {command} {otherwise}")
        self._text = (what, otherwise)

    def of(self, network: str) -> LeasesLost:
        """The same for a call of this network."""
        return LeasesLost(*self._text, network)


class Store(Protocol):
    """A place for leases. `name` is what messages call it.

    An action is a function of a ledger. A store may call it several times, each time with a ledger that
    knows nothing of the call before: a store that learns of concurrent changes only at the end begins again.
    So an action has no effect but on its ledger, and does not return what reads it later, as generators do.
    """

    name: str

    def run(self, action: Callable[[Ledger], T], /) -> T:
        """What the action returns, when all its changes are stored: all of them or, if it raises, none.

        No other call's changes come in between. Makes the store where it does not exist yet. Raises
        LeasesLost, or another CNIError of code 5 or 11 for a store that cannot be used.
        """
        ...

    def look(self, action: Callable[[Ledger], T], /) -> T:
        """Like `run`, for looking only: makes nothing, keeps nothing, works where nothing can be written."""
        ...

    def knows(self, network: str, container_id: str, ifname: str) -> bool:
        """Whether this interface of a pod of this node holds anything, by what is on this node alone.

        For DEL, which has nothing to do where it is False. Raises what `look` raises.
        """
        ...

    def ready(self) -> None:
        """Return if an ADD on this node could be served, else raise CNIError 50 with what the node lacks.

        A full pool or another machine that does not answer is nothing that this node lacks.
        """
        ...
