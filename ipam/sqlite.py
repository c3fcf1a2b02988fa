"""The embedded store: one SQLite file for all networks of a node, crash safe and shared by processes.

Every transaction is one fsync of the write-ahead log (synchronous=FULL). Writers queue on a lock file of
their own instead of polling the database; the same lock covers making the database, where SQLite itself may
answer "database is locked" at once. Besides the addresses the file keeps `runs`, the gapless stretches of
addresses in use: they make "the next free address" one look-up in an index, however many leases there are
and however full the pool is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from _thread import allocate_lock
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple

from cnvnet.cni.errors import IO_FAILURE, NOT_AVAILABLE, TRY_AGAIN_LATER, CNIError
from cnvnet.cni.fields import Address
from cnvnet.ipam.lease import Cooling, Holder, Key, Lease, in_order
from cnvnet.ipam.store import Change

if TYPE_CHECKING:
    # Imported when a database is opened: 2 ms that VERSION and a refused configuration do not pay.
    import sqlite3

# PRAGMA user_version. Raised with every change of the tables; `migrate` brings an older file up to it.
SCHEMA: Final = 1
# PRAGMA application_id, so that somebody else's leases.db is not taken for ours: "cnvL".
APPLICATION: Final = 0x636E764C

# How long one waits for the writers before it: a thousand of them take a few seconds.
_PATIENCE: Final = 60.0
# Pages of the write-ahead log before it is copied into the database. Every standalone process reads the log
# when it opens the file, so a short log is worth a copy every few dozen calls.
_LOG_PAGES: Final = 200
# How many addresses one ADD frees whose cooldown is over; more of them wait for the next.
_EXPIRED_AT_ONCE: Final = 32
# What must be left on the disk for STATUS to call the store writable.
_SPARE_BYTES: Final = 1 << 20

# Addresses are stored as one octet for the family and the address itself, so that they sort within their
# family.
_TABLES: Final = (
    """CREATE TABLE leases (
        id INTEGER PRIMARY KEY,
        network TEXT NOT NULL, namespace TEXT NOT NULL, vm TEXT NOT NULL, interface TEXT NOT NULL,
        vm_uid TEXT NOT NULL, mac TEXT, source TEXT NOT NULL,
        release TEXT NOT NULL, cooldown INTEGER NOT NULL, since INTEGER NOT NULL)""",
    "CREATE UNIQUE INDEX lease_by_key ON leases (network, namespace, vm, interface)",
    "CREATE UNIQUE INDEX lease_by_mac ON leases (network, mac)",
    # Of a lease, or (lease is null) cooling down after one.
    """CREATE TABLE addresses (
        network TEXT NOT NULL, ip BLOB NOT NULL, lease INTEGER,
        until INTEGER, namespace TEXT, vm TEXT, interface TEXT, vm_uid TEXT, mac TEXT,
        CHECK ((lease IS NULL) <> (until IS NULL)), PRIMARY KEY (network, ip)) WITHOUT ROWID""",
    "CREATE INDEX address_by_lease ON addresses (lease) WHERE lease IS NOT NULL",
    "CREATE INDEX cooling_by_time ON addresses (network, until) WHERE lease IS NULL",
    "CREATE INDEX cooling_by_key ON addresses (network, namespace, vm, interface) WHERE lease IS NULL",
    """CREATE TABLE holders (
        lease INTEGER NOT NULL, network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
        role TEXT NOT NULL, netns TEXT NOT NULL, inode INTEGER NOT NULL, boot_id TEXT NOT NULL,
        since INTEGER NOT NULL, PRIMARY KEY (network, container_id, ifname)) WITHOUT ROWID""",
    "CREATE INDEX holder_by_lease ON holders (lease)",
    """CREATE TABLE runs (
        network TEXT NOT NULL, first BLOB NOT NULL, last BLOB NOT NULL,
        PRIMARY KEY (network, first)) WITHOUT ROWID""",
)


class Sqlite:
    """`leases.db` in a folder. One object may serve all threads of a process: transactions take turns."""

    def __init__(self, folder: str) -> None:
        self.name = os.path.join(folder, "leases.db")
        self._folder = folder
        self._lock = os.path.join(folder, "leases.lock")
        self._turn = allocate_lock()
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)

    def exists(self) -> bool:
        try:
            os.stat(self.name)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as e:
            raise self._unusable(e) from e
        return True

    @contextmanager
    def transaction(self) -> Generator[SqliteLedger]:
        import sqlite3

        with self._locked():
            try:
                connection = self._open()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    # A newer program may have been here since the last call.
                    _schema(connection, self.name)
                    yield SqliteLedger(connection)
                    connection.execute("COMMIT")
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
            except sqlite3.Error as e:
                # A commit that could not be synced is in the log all the same: whoever next opened the file
                # as the only one would find it there. The last to close it puts an end to the log.
                self.close()
                raise _explained(self.name, e) from e

    def read_only(self) -> bool:
        try:
            return bool(os.statvfs(_nearest(self._folder)).f_flag & os.ST_RDONLY)
        except OSError:
            return False  # whatever it is, a transaction says so

    @contextmanager
    def reading(self) -> Generator[SqliteLedger]:
        import sqlite3

        if not self.read_only():
            with self.transaction() as ledger:
                yield ledger
            return
        try:
            with closing(self._open_for_reading()) as connection:
                yield SqliteLedger(connection)
        except sqlite3.Error as e:
            if self._log_size() and _primary_code(e) == sqlite3.SQLITE_CANTOPEN:
                text = (
                    "the file system is read-only, and without leases.db-shm so is leases.db-wal unreadable"
                )
                raise CNIError(IO_FAILURE, f"{self.name}: {text}: remount it") from e
            raise _explained(self.name, e) from e

    def ready(self) -> None:
        try:
            if self.exists():
                with self.transaction():
                    pass
            self._ensure_room()
        except CNIError as e:
            raise CNIError(NOT_AVAILABLE, e.msg, e.details) from e

    def close(self) -> None:
        """End the connection. A process that is about to end need not: the log is read by the next one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ensure_room(self) -> None:
        # The folder may not be there before the first ADD; what counts then is where it would be made.
        folder = _nearest(self._folder)
        if not os.path.isdir(folder):
            raise self._unusable(NotADirectoryError(errno.ENOTDIR, "not a directory"))
        try:
            space = os.statvfs(folder)
            if space.f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, "read-only")
            if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, "not writable")
        except OSError as e:
            raise self._unusable(e) from e
        if space.f_bavail * space.f_frsize < _SPARE_BYTES:
            raise CNIError(IO_FAILURE, f"{self.name}: the disk is full: make room below {folder}")

    @contextmanager
    def _locked(self) -> Generator[None]:
        """The writers' queue: held by one thread of one process, and let go by the kernel if that dies."""
        # The lock file would keep threads apart as well, but one that waits for it naps.
        if not self._turn.acquire(timeout=_PATIENCE):
            raise _locked_out(self._lock)
        try:
            with self._lock_file():
                yield
        finally:
            self._turn.release()

    @contextmanager
    def _lock_file(self) -> Generator[None]:
        try:
            _ensure_folder(self._folder)
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise self._unusable(e) from e
        try:
            self._wait_for(fd)
            yield
        finally:
            os.close(fd)

    def _wait_for(self, fd: int) -> None:
        # Asked again and again, since a blocking flock cannot be given up after a time in a thread.
        deadline = time.monotonic() + _PATIENCE
        pause = 0.0005
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _locked_out(self._lock) from None
                time.sleep(pause)
                pause = min(pause * 2, 0.004)

    def _open(self) -> sqlite3.Connection:
        """The connection to the file that has the name now; called with the lock held."""
        import sqlite3

        if self._connection is not None and self._identity == _identity(self.name):
            return self._connection
        self.close()
        try:
            # Made here so that nobody but root can read it; SQLite gives its -wal and -shm the same mode.
            # Never opened where it exists: closing any descriptor of the file drops SQLite's own locks on
            # it.
            os.close(os.open(self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except OSError as e:
            raise self._unusable(e) from e
        connection = sqlite3.connect(
            self.name, timeout=_PATIENCE, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection, self._identity = connection, _identity(self.name)
        return connection

    def _open_for_reading(self) -> sqlite3.Connection:
        import sqlite3
        from urllib.parse import quote

        # SQLite wants to make leases.db-shm even for reading, unless told that nobody writes. With something
        # in the log that would be wrong: the newest leases are there.
        mode = "mode=ro" if self._log_size() else "mode=ro&immutable=1"
        connection = sqlite3.connect(
            f"file:{quote(self.name)}?{mode}", uri=True, timeout=_PATIENCE, isolation_level=None
        )
        try:
            if _schema(connection, self.name) == 0:
                # Left by a process that was killed making it.
                connection.close()
                connection = sqlite3.connect(":memory:", isolation_level=None)
                migrate(connection)
            connection.execute("BEGIN")
        except BaseException:
            connection.close()
            raise
        return connection

    def _log_size(self) -> int:
        try:
            return os.stat(f"{self.name}-wal").st_size
        except OSError:
            return 0

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Whose file it is comes first: reading it changes nothing.
        found = _schema(connection, self.name)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            connection.execute("PRAGMA journal_mode=WAL")
        if found < SCHEMA:
            migrate(connection)

    def _unusable(self, e: OSError) -> CNIError:
        return CNIError(IO_FAILURE, f"{self.name}: {_reason(e.errno, e.strerror or str(e))}")


def _schema(connection: sqlite3.Connection, name: str) -> int:
    """The schema of a database of ours that we can read, 0 for one with nothing in it."""
    found = _number(connection, "PRAGMA user_version")
    if found > SCHEMA:
        text = f"{name}: written by a newer version (schema {found}, this one knows {SCHEMA})"
        raise CNIError(TRY_AGAIN_LATER, f"{text}: use that version; nothing was changed")
    empty = found == 0 and _number(connection, "SELECT count(*) FROM sqlite_master") == 0
    if not empty and _number(connection, "PRAGMA application_id") != APPLICATION:
        raise CNIError(IO_FAILURE, f"{name}: not a database of leases: move it away or set ipam.dataDir")
    return found


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database, a new one too, to the present schema: all at once or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION}")
    connection.execute(f"PRAGMA user_version={SCHEMA}")
    connection.execute("COMMIT")


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


def _ensure_folder(folder: str) -> None:
    if os.path.isdir(folder):
        return
    os.makedirs(folder, mode=0o700, exist_ok=True)
    # SQLite syncs what is in the folder; the folder itself is an entry of the one above.
    above = os.open(os.path.dirname(folder.rstrip("/")), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(above)
    finally:
        os.close(above)


def _nearest(folder: str) -> str:
    """The folder, or the one above it that exists."""
    if os.path.lexists(folder) or folder in ("/", ""):
        return folder
    return _nearest(os.path.dirname(folder))


def _identity(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _reason(number: int | None, text: str) -> str:
    if number == errno.ENOSPC:
        return "the disk is full: make room there"
    if number == errno.EROFS:
        return (
            "the file system is read-only: remount it, or set ipam.dataDir to a folder that can be written"
        )
    if number in (errno.EACCES, errno.EPERM):
        return "no permission to write: run as root, or set ipam.dataDir to a folder that can be written"
    return f"{text[:1].lower()}{text[1:]}: set ipam.dataDir to a folder that can be written"


def _locked_out(path: str) -> CNIError:
    text = f"{path}: another process has held it for {_PATIENCE:.0f} s (fuser -v shows which)"
    return CNIError(TRY_AGAIN_LATER, text)


def _primary_code(e: sqlite3.Error) -> int:
    # Extended codes have it in their low octet, a few errors of the module carry none: SQLITE_ERROR.
    return getattr(e, "sqlite_errorcode", 1) & 0xFF


def _explained(name: str, e: sqlite3.Error) -> CNIError:
    """What SQLite says, in the terms of whoever has to repair it."""
    import sqlite3

    code = _primary_code(e)
    if code == sqlite3.SQLITE_FULL:
        return CNIError(IO_FAILURE, f"{name}: {_reason(errno.ENOSPC, '')}")
    if code == sqlite3.SQLITE_READONLY:
        return CNIError(IO_FAILURE, f"{name}: {_reason(errno.EROFS, '')}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        remedy = "restore it from a backup, or move it away if no VM of this node is attached"
        return CNIError(IO_FAILURE, f"{name}: damaged ({e}): {remedy}; nothing was changed")
    if code == sqlite3.SQLITE_CANTOPEN:
        return CNIError(IO_FAILURE, f"{name}: {_reason(None, 'cannot be opened')}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return _locked_out(name)
    return CNIError(IO_FAILURE, f"{name}: {e}: look at the disk and the kernel's log; nothing was changed")


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
        self.changes: list[Change] = []

    def get(self, key: Key) -> Lease | None:
        return self._lease("network=? AND namespace=? AND vm=? AND interface=?", *key)

    def held_by(self, network: str, container_id: str, ifname: str) -> Lease | None:
        query = "SELECT lease FROM holders WHERE network=? AND container_id=? AND ifname=?"
        row = self._run(query, (network, container_id, ifname)).fetchone()
        return self._lease("id=?", row[0]) if row else None

    def holding(self, network: str) -> Iterator[Lease]:
        query = "SELECT DISTINCT lease FROM holders WHERE network=?"
        for (number,) in self._run(query, (network,)).fetchall():
            lease = self._lease("id=?", number)
            if lease is not None:
                yield lease

    def owner(self, network: str, ip: Address) -> Lease | Cooling | None:
        query = f"SELECT lease, {_COOLING} FROM addresses WHERE network=? AND ip=?"
        row = self._run(query, (network, _encoded(ip))).fetchone()
        if row is None:
            return None
        return _cooling(*row[1:]) if row[0] is None else self._lease("id=?", row[0])

    def owner_of_mac(self, network: str, mac: str) -> Lease | None:
        return self._lease("network=? AND mac=?", network, mac)

    def cooling(self, key: Key) -> tuple[Cooling, ...]:
        # Left to itself SQLite goes through all addresses of the network, since they are in the right order.
        query = f"""SELECT {_COOLING} FROM addresses INDEXED BY cooling_by_key WHERE lease IS NULL
            AND network=? AND namespace=? AND vm=? AND interface=? ORDER BY ip"""
        return tuple(_cooling(*row) for row in self._run(query, key))

    def next_free(self, network: str, first: Address, last: Address) -> Address | None:
        at = _encoded(first)
        run = self._run_before(network, at)
        if run is not None and run[1] >= at:
            # Runs are as long as they can be, so what follows one is free.
            at = _shifted(run[1], 1)
        return _decoded(at) if at <= _encoded(last) else None

    def cooldowns(self, network: str, first: Address, last: Address) -> tuple[int, int]:
        # Those that are cooling down are few beside those in use.
        query = """SELECT count(*), min(until) FROM addresses INDEXED BY cooling_by_time
            WHERE lease IS NULL AND network=? AND ip BETWEEN ? AND ?"""
        count, until = self._run(query, (network, _encoded(first), _encoded(last))).fetchone()
        return count, until or 0

    def expire(self, network: str, now: int, *, everything: bool) -> None:
        query = (
            "SELECT ip FROM addresses WHERE lease IS NULL AND network=? AND until<=? ORDER BY until LIMIT ?"
        )
        limit = -1 if everything else _EXPIRED_AT_ONCE
        for (ip,) in self._run(query, (network, now, limit)).fetchall():
            self._free(network, ip)

    def change(self, before: Lease | None, after: Lease | None, *, until: int) -> None:
        lease = after or before
        if lease is None or before == after:
            return
        network = lease.key.network
        number = self._number(before.key) if before else None
        had = set(before.ips if before else ())
        takes = set(after.ips if after else ())
        for ip in in_order(had - takes):
            if until and before:
                self._cool(before, _encoded(ip), until)
            else:
                self._free(network, _encoded(ip))
        number = self._write(number, after)
        cooled: list[Cooling] = []
        for ip in in_order(takes - had):
            if was := self._take(network, _encoded(ip), number):
                cooled.append(was)
        self._write_holders(
            number, network, before.holders if before else (), after.holders if after else ()
        )
        self.changes.append(Change(before, after, tuple(cooled)))

    def cool(self, cooling: Cooling) -> None:
        network, ip = cooling.key.network, _encoded(cooling.ip)
        self._occupy(network, ip)
        query = f"INSERT INTO addresses ({_COOLING}) VALUES (?,?,?,?,?,?,?,?)"
        self._run(query, (*cooling.key, ip, cooling.mac, cooling.vm_uid, cooling.until))

    # -- leases

    def _lease(self, where: str, *values: object) -> Lease | None:
        found = self._run(f"SELECT {_COLUMNS} FROM leases WHERE {where}", values).fetchone()
        if found is None:
            return None
        row = _Row(*found)
        ips = self._run("SELECT ip FROM addresses WHERE lease=?", (row.id,))
        holders = self._run(f"SELECT {_HOLDER} FROM holders WHERE lease=? ORDER BY 1, 2", (row.id,))
        return Lease(
            key=Key(row.network, row.namespace, row.vm, row.interface),
            ips=in_order(_decoded(ip) for (ip,) in ips),
            mac=row.mac or "",
            vm_uid=row.vm_uid,
            source=row.source,
            release=row.release,
            cooldown=row.cooldown,
            since=row.since,
            holders=tuple(Holder(*each) for each in holders),
        )

    def _number(self, key: Key) -> int:
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
                query = f"INSERT INTO holders (lease, network, {_HOLDER}) VALUES (?,?,?,?,?,?,?,?,?)"
                self._run(query, (number, network, *each))

    # -- addresses, and the runs that follow them

    def _take(self, network: str, ip: bytes, number: int) -> Cooling | None:
        """Returns what the address was, if not free."""
        query = f"SELECT {_COOLING} FROM addresses WHERE network=? AND ip=? AND lease IS NULL"
        cooling = self._run(query, (network, ip)).fetchone()
        if cooling is not None:
            # In a run already.
            self._run(
                "UPDATE addresses SET lease=?, until=NULL WHERE network=? AND ip=?", (number, network, ip)
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

    def _cool(self, lease: Lease, ip: bytes, until: int) -> None:
        query = """UPDATE addresses SET lease=NULL, until=?, namespace=?, vm=?, interface=?, vm_uid=?, mac=?
            WHERE network=? AND ip=?"""
        values = (until, *lease.key[1:], lease.vm_uid, lease.mac, lease.key.network, ip)
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
_COOLING: Final = "network, namespace, vm, interface, ip, mac, vm_uid, until"


def _cooling(
    network: str, namespace: str, vm: str, interface: str, ip: bytes, mac: str, vm_uid: str, until: int
) -> Cooling:
    return Cooling(Key(network, namespace, vm, interface), _decoded(ip), mac, vm_uid, until)


def _encoded(ip: Address) -> bytes:
    return bytes((ip.version,)) + ip.packed


def _decoded(stored: bytes) -> Address:
    return IPv4Address(stored[1:]) if stored[0] == 4 else IPv6Address(stored[1:])


def _shifted(stored: bytes, by: int) -> bytes:
    # The octet of the family takes the carry, so the ends of the address space need no care.
    return (int.from_bytes(stored, "big") + by).to_bytes(len(stored), "big")
