"""The leases inside one transaction of the embedded store, as rows of its tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple

from cnvnet.cni.fields import Address
from cnvnet.ipam.lease import Cooldown, Holder, Lease, LeaseKey, in_order
from cnvnet.ipam.pool import Pool, Span, as_address
from cnvnet.ipam.store.protocol import KnownRanges, KnownSet, LeaseChange, Occupancy, Usage

if TYPE_CHECKING:
    # Imported when a database is opened: 2 ms that VERSION and a refused configuration do not pay.
    import sqlite3

# How many addresses one ADD frees whose cooldown is over; more of them wait for the next.
_EXPIRED_AT_ONCE: Final = 32


class _Row(NamedTuple):
    """A row of `leases`."""

    id: int
    network: str
    namespace: str
    vm: str
    interface: str
    vm_uid: str
    mac: str | None
    source: str
    release: str
    cooldown: int
    since: int


class SqliteLedger:
    """The leases inside one transaction of the embedded store; see `store.Ledger`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._run = connection.execute
        self.changes: list[LeaseChange] = []

    def get(self, key: LeaseKey) -> Lease | None:
        """The lease with this key."""
        return self._lease("network=? AND namespace=? AND vm=? AND interface=?", *key)

    def held_by(self, network: str, container_id: str, ifname: str) -> Lease | None:
        """The lease that an interface of a container holds in a network."""
        number = self._holding(network, container_id, ifname)
        return self._lease("id=?", number) if number is not None else None

    def is_held_by(self, network: str, container_id: str, ifname: str) -> bool:
        """Whether this pod's interface is a holder of anything."""
        return self._holding(network, container_id, ifname) is not None

    def held_leases(self, network: str) -> Iterator[Lease]:
        """The leases of a network that containers hold."""
        query = "SELECT DISTINCT lease FROM holders WHERE network=?"
        for (number,) in self._run(query, (network,)).fetchall():
            lease = self._lease("id=?", number)
            if lease is not None:
                yield lease

    def owner_of(self, network: str, ip: Address) -> Lease | Cooldown | None:
        """What an address belongs to: a lease, a cooldown, or None: it is free."""
        query = f"SELECT lease, {_COOLING} FROM addresses WHERE network=? AND ip=?"
        row = self._run(query, (network, _encoded(ip))).fetchone()
        if row is None:
            return None
        return _cooling(*row[1:]) if row[0] is None else self._lease("id=?", row[0])

    def owner_of_mac(self, network: str, mac: str) -> Lease | None:
        """The lease with this MAC address."""
        return self._lease("network=? AND mac=?", network, mac)

    def cooldowns_of(self, key: LeaseKey) -> tuple[Cooldown, ...]:
        """The addresses that cool down for a key, in their order."""
        # Left to itself SQLite goes through all addresses of the network, since they are in the right order.
        query = f"""SELECT {_COOLING} FROM addresses INDEXED BY cooling_by_key WHERE lease IS NULL
            AND network=? AND namespace=? AND vm=? AND interface=? ORDER BY ip"""
        return tuple(_cooling(*row) for row in self._run(query, key))

    def next_free(self, network: str, first: Address, last: Address) -> Address | None:
        """The first free address from `first` to `last`; None if all are in use."""
        at = _encoded(first)
        run = self._run_before(network, at)
        if run is not None and run[1] >= at:
            # Runs are as long as they can be, so what follows one is free.
            at = _shifted(run[1], 1)
        return _decoded(at) if at <= _encoded(last) else None

    def occupancy(self, network: str, first: Address, last: Address, *, now: int) -> Occupancy:
        """How many addresses from `first` to `last` are in use, by state."""
        which = f"{_USED} AND network=? AND ip BETWEEN ? AND ?"
        query = f"SELECT {_STATES}, coalesce(min(until), 0) FROM ({which})"
        return Occupancy(*self._run(query, (now, network, _encoded(first), _encoded(last))).fetchone())

    def longest_stopped(self, network: str, first: Address, last: Address, *, limit: int) -> Iterator[Lease]:
        """The leases without a holder with an address from `first` to `last`.

        The longest stopped come first.
        """
        query = """SELECT id FROM leases WHERE NOT EXISTS (SELECT 1 FROM holders WHERE lease=id)
            AND id IN (SELECT lease FROM addresses WHERE network=? AND ip BETWEEN ? AND ?)
            ORDER BY since, id LIMIT ?"""
        values = (network, _encoded(first), _encoded(last), limit)
        for (number,) in self._run(query, values).fetchall():
            lease = self._lease("id=?", number)
            if lease is not None:
                yield lease

    def expire(self, network: str, now: int, *, everything: bool) -> None:
        """Free addresses whose cooldown is over: a few, or everything."""
        query = (
            "SELECT ip FROM addresses WHERE lease IS NULL AND network=? AND until<=? ORDER BY until LIMIT ?"
        )
        limit = -1 if everything else _EXPIRED_AT_ONCE
        for (ip,) in self._run(query, (network, now, limit)).fetchall():
            self._free(network, ip)

    def change(self, before: Lease | None, after: Lease | None, *, until: int, since: int = 0) -> None:
        """Replace a lease by another, by None: delete it.

        Addresses given up cool down until `until`, if that is not 0.
        """
        lease = after or before
        if lease is None or before == after:
            return
        network = lease.key.network
        number = self._number(before.key) if before else None
        had = set(before.ips if before else ())
        takes = set(after.ips if after else ())
        for ip in in_order(had - takes):
            if until and before:
                self._cool(before, _encoded(ip), since, until)
            else:
                self._free(network, _encoded(ip))
        number = self._write(number, after)
        taken = [self._take(network, _encoded(ip), number) for ip in in_order(takes - had)]
        self._write_holders(
            number, network, before.holders if before else (), after.holders if after else ()
        )
        self.changes.append(LeaseChange(before, after, tuple(filter(None, taken))))

    def restore_cooldown(self, cooldown: Cooldown) -> None:
        """Keep a free address from other keys again, as it was before an ADD took it."""
        network, ip = cooldown.key.network, _encoded(cooldown.ip)
        self._occupy(network, ip)
        query = f"INSERT INTO addresses ({_COOLING}) VALUES (?,?,?,?,?,?,?,?,?)"
        self._run(query, (*cooldown.key, ip, cooldown.mac, cooldown.vm_uid, cooldown.until, cooldown.since))

    def record_pool(self, network: str, pool: Pool) -> None:
        """Note what a network's pool gives, for `usage`."""
        query = "SELECT family, name, spans FROM pools WHERE network=?"
        known = {family: (name, spans) for family, name, spans in self._run(query, (network,))}
        given = {family: _written(pool, family) for family in {each.version for each in pool.sets}}
        if known != given:
            self._run("DELETE FROM pools WHERE network=?", (network,))
            for family, (name, spans) in given.items():
                self._run("INSERT INTO pools VALUES (?,?,?,?)", (network, family, name, spans))

    def recorded_pools(self, network: str) -> dict[int, KnownRanges]:
        """What a network's pool gives, by version of IP."""
        rows = self._run("SELECT family, name, spans FROM pools WHERE network=?", (network,))
        return {family: _read(name, spans) for family, name, spans in rows}

    # -- all of them, for those who look on

    def leases(self, network: str | None = None) -> Iterator[Lease]:
        """The leases of one network or of all, in the order of their keys."""
        query = (
            f"SELECT {_COLUMNS} FROM leases WHERE {_OF_NETWORK} ORDER BY network, namespace, vm, interface"
        )
        rows = [_Row(*row) for row in self._run(query, (network,))]
        ips: defaultdict[int, list[Address]] = defaultdict(list)
        query = f"SELECT lease, ip FROM addresses WHERE lease IS NOT NULL AND {_OF_NETWORK}"
        for number, ip in self._run(query, (network,)):
            ips[number].append(_decoded(ip))
        holders: defaultdict[int, list[Holder]] = defaultdict(list)
        query = f"SELECT lease, {_HOLDER} FROM holders WHERE {_OF_NETWORK} ORDER BY container_id, ifname"
        for number, *columns in self._run(query, (network,)):
            holders[number].append(Holder(*columns))
        for row in rows:
            yield _as_lease(row, ips[row.id], holders[row.id])

    def cooldowns(self, network: str | None = None) -> Iterator[Cooldown]:
        """The addresses that cool down, of one network or of all, in their order."""
        query = f"""SELECT {_COOLING} FROM addresses WHERE lease IS NULL AND {_OF_NETWORK}
            ORDER BY network, ip"""
        for row in self._run(query, (network,)).fetchall():
            yield _cooling(*row)

    def usage(self, network: str | None = None, *, now: int) -> Iterator[Usage]:
        """How much of each pool is in use, of one network or of all."""
        # The family is the first octet of an address.
        query = f"""SELECT network, CASE substr(ip, 1, 1) WHEN x'04' THEN 4 ELSE 6 END, {_STATES}
            FROM ({_USED} AND {_OF_NETWORK}) GROUP BY 1, 2"""
        counts = {row[:2]: row[2:] for row in self._run(query, (now, network))}
        query = f"SELECT network, family FROM pools WHERE {_OF_NETWORK}"
        for name, family in sorted({*counts, *self._run(query, (network,))}):
            given = self.recorded_pools(name).get(family)
            active, stopped, cooling = counts.get((name, family), (0, 0, 0))
            free = self._free_of(name, family, given, now) if given is not None else None
            yield Usage(
                name, family, given.name if given is not None else "", active, stopped, cooling, free
            )

    def _free_of(self, network: str, family: int, given: KnownRanges, now: int) -> int:
        free = 0
        for first, last in given.spans:
            ends = (as_address(family, first), as_address(family, last))
            free += last - first + 1 - sum(self.occupancy(network, *ends, now=now)[:3])
        return free

    # -- leases

    def _lease(self, where: str, *values: object) -> Lease | None:
        columns = self._run(f"SELECT {_COLUMNS} FROM leases WHERE {where}", values).fetchone()
        if columns is None:
            return None
        row = _Row(*columns)
        ips = self._run("SELECT ip FROM addresses WHERE lease=?", (row.id,))
        holders = self._run(f"SELECT {_HOLDER} FROM holders WHERE lease=? ORDER BY 1, 2", (row.id,))
        return _as_lease(row, (_decoded(ip) for (ip,) in ips), (Holder(*each) for each in holders))

    def _holding(self, network: str, container_id: str, ifname: str) -> int | None:
        query = "SELECT lease FROM holders WHERE network=? AND container_id=? AND ifname=?"
        row: tuple[int] | None = self._run(query, (network, container_id, ifname)).fetchone()
        return row[0] if row is not None else None

    def _number(self, key: LeaseKey) -> int:
        query = "SELECT id FROM leases WHERE network=? AND namespace=? AND vm=? AND interface=?"
        return int(self._run(query, key).fetchone()[0])

    def _write(self, number: int | None, lease: Lease | None) -> int:
        """Insert, update or (None) delete the lease's own row; returns its number."""
        if lease is None:
            self._run("DELETE FROM leases WHERE id=?", (number,))
            return number or 0
        row = _Row(
            number or 0,
            *lease.key,
            vm_uid=lease.vm_uid,
            mac=lease.mac or None,
            source=lease.source,
            release=lease.release,
            cooldown=lease.cooldown,
            since=lease.since,
        )
        if number is None:
            values = (None, *row[1:])
            marks = ",".join("?" * len(values))
            return self._run(f"INSERT INTO leases ({_COLUMNS}) VALUES ({marks})", values).lastrowid or 0
        columns = ",".join(f"{column}=?" for column in _Row._fields[1:])
        self._run(f"UPDATE leases SET {columns} WHERE id=?", (*row[1:], number))
        return number

    def _write_holders(
        self, number: int, network: str, before: tuple[Holder, ...], after: tuple[Holder, ...]
    ) -> None:
        for each in before:
            if each not in after:
                query = "DELETE FROM holders WHERE network=? AND container_id=? AND ifname=?"
                self._run(query, (network, each.container_id, each.ifname))
        for each in after:
            if each not in before:
                query = f"INSERT INTO holders (lease, network, {_HOLDER}) VALUES ({_HOLDER_MARKS})"
                self._run(query, (number, network, *each))

    # -- addresses, and the runs that follow them

    def _take(self, network: str, ip: bytes, number: int) -> Cooldown | None:
        """Returns what the address was, if not free."""
        query = f"SELECT {_COOLING} FROM addresses WHERE network=? AND ip=? AND lease IS NULL"
        cooling = self._run(query, (network, ip)).fetchone()
        if cooling is not None:
            # In a run already.
            self._run(
                "UPDATE addresses SET lease=?, until=NULL, since=NULL WHERE network=? AND ip=?",
                (number, network, ip),
            )
            return _cooling(*cooling)
        self._run("INSERT INTO addresses (network, ip, lease) VALUES (?,?,?)", (network, ip, number))
        self._occupy(network, ip)
        return None

    def _occupy(self, network: str, ip: bytes) -> None:
        """Make an address that was free part of a run."""
        first = last = ip
        left = self._run_before(network, ip)
        if left is not None and left[1] == _shifted(ip, -1):
            first = left[0]
        right = self._run(
            "SELECT last FROM runs WHERE network=? AND first=?", (network, _shifted(ip, 1))
        ).fetchone()
        if right is not None:
            last = right[0]
            self._run("DELETE FROM runs WHERE network=? AND first=?", (network, _shifted(ip, 1)))
        self._write_run(network, first, last)

    def _cool(self, lease: Lease, ip: bytes, since: int, until: int) -> None:
        query = """UPDATE addresses SET lease=NULL, since=?, until=?, namespace=?, vm=?, interface=?,
            vm_uid=?, mac=? WHERE network=? AND ip=?"""
        values = (since, until, *lease.key[1:], lease.vm_uid, lease.mac, lease.key.network, ip)
        self._run(query, values)

    def _free(self, network: str, ip: bytes) -> None:
        self._run("DELETE FROM addresses WHERE network=? AND ip=?", (network, ip))
        run = self._run_before(network, ip)
        if run is None:
            return
        first, last = run
        if first < ip:
            self._write_run(network, first, _shifted(ip, -1))
        else:
            self._run("DELETE FROM runs WHERE network=? AND first=?", (network, first))
        if last > ip:
            self._write_run(network, _shifted(ip, 1), last)

    def _run_before(self, network: str, ip: bytes) -> tuple[bytes, bytes] | None:
        """The last run that begins at the address or before it."""
        query = "SELECT first, last FROM runs WHERE network=? AND first<=? ORDER BY first DESC LIMIT 1"
        row: tuple[bytes, bytes] | None = self._run(query, (network, ip)).fetchone()
        return row

    def _write_run(self, network: str, first: bytes, last: bytes) -> None:
        self._run(
            "INSERT OR REPLACE INTO runs (network, first, last) VALUES (?,?,?)", (network, first, last)
        )


_COLUMNS: Final = ",".join(_Row._fields)
_HOLDER: Final = ",".join(Holder._fields)
_HOLDER_MARKS: Final = ",".join("?" * (2 + len(Holder._fields)))
# Rows of one network, or of all for NULL.
_OF_NETWORK: Final = "ifnull(network=?, 1)"
# The addresses that are not free at a time, and how many of them are in which state.
_USED: Final = """SELECT *, EXISTS (SELECT 1 FROM holders WHERE lease=addresses.lease) AS held
    FROM addresses WHERE (lease IS NOT NULL OR until>?)"""
_STATES: Final = """count(*) FILTER (WHERE held), count(*) FILTER (WHERE lease IS NOT NULL AND NOT held),
    count(*) FILTER (WHERE lease IS NULL)"""
_COOLING: Final = "network, namespace, vm, interface, ip, mac, vm_uid, until, since"


def _as_lease(row: _Row, ips: Iterable[Address], holders: Iterable[Holder]) -> Lease:
    return Lease(
        key=LeaseKey(row.network, row.namespace, row.vm, row.interface),
        ips=in_order(ips),
        mac=row.mac or "",
        vm_uid=row.vm_uid,
        source=row.source,
        release=row.release,
        cooldown=row.cooldown,
        since=row.since,
        holders=tuple(holders),
    )


def _cooling(
    network: str,
    namespace: str,
    vm: str,
    interface: str,
    ip: bytes,
    mac: str,
    vm_uid: str,
    until: int,
    since: int | None,
) -> Cooldown:
    key = LeaseKey(network, namespace, vm, interface)
    return Cooldown(key, _decoded(ip), mac, vm_uid, until, since or 0)


def _written(pool: Pool, family: int) -> tuple[str, str]:
    """What the pool has of a family, as `pools` keeps it: names of ranges, and "first-last,…" in numbers.

    Sets are parted by ";".
    """
    sets = [each for each in pool.sets if each.version == family]
    spans = (",".join(f"{first}-{last}" for first, last in each.spans) for each in sets)
    return ";".join(each.name for each in sets), ";".join(spans)


def _read(names: str, spans: str) -> KnownRanges:
    both = zip(names.split(";"), spans.split(";"), strict=True)
    return KnownRanges(tuple(KnownSet(name, tuple(_spans(of_set))) for name, of_set in both))


def _spans(written: str) -> Iterator[Span]:
    for each in written.split(","):
        first, _, last = each.partition("-")
        yield Span(int(first), int(last))


def _encoded(ip: Address) -> bytes:
    return bytes((ip.version,)) + ip.packed


def _decoded(stored: bytes) -> Address:
    return IPv4Address(stored[1:]) if stored[0] == 4 else IPv6Address(stored[1:])


def _shifted(stored: bytes, by: int) -> bytes:
    # The octet of the family takes the carry, so the ends of the address space need no care.
    return (int.from_bytes(stored, "big") + by).to_bytes(len(stored), "big")
