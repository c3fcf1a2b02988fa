"""The embedded store: one SQLite file for all networks of a node, crash safe and shared by processes.

Every transaction is one fsync of the write-ahead log (synchronous=FULL). Writers queue on a lock file of
their own instead of polling the database; the same lock covers making the database, where SQLite itself may
answer "database is locked" at once. Besides the addresses the file keeps `runs`, the gapless stretches of
addresses in use: they make "the next free address" one look-up in an index, however many leases there are
and however full the pool is.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeVar

from cnvnet.cni.errors import IO_FAILURE, NOT_AVAILABLE, CNIError, InvalidConfig
from cnvnet.ipam.store.clock import now
from cnvnet.ipam.store.mark import Mark
from cnvnet.ipam.store.protocol import LeasesLost
from cnvnet.ipam.store.ref import SQLITE, StoreRef
from cnvnet.ipam.store.sqlite_errors import explained, locked_out, lost, primary_code, unusable
from cnvnet.ipam.store.sqlite_files import (
    ensure_folder,
    ensure_regular,
    ensure_room,
    identity,
    is_read_only,
    is_there,
)
from cnvnet.ipam.store.sqlite_ledger import SqliteLedger
from cnvnet.ipam.store.sqlite_schema import SCHEMA, empty, migrate, schema_of, upgraded_copy
from cnvnet.kernel import flock

if TYPE_CHECKING:
    # Imported when a database is opened: 2 ms that VERSION and a refused configuration do not pay.
    import sqlite3

# Seconds that a writer waits for those before it: a thousand of them take a few seconds.
_PATIENCE: Final = 60.0
# Seconds between two tries to get the lock.
_LONGEST_PAUSE: Final = 0.004
# Pages of the write-ahead log before it is copied into the database. Every standalone process reads the log
# when it opens the file, so a short log is worth a copy every few dozen calls.
_LOG_PAGES: Final = 200
# Addresses that began to cool down later than now, and how they are made to have begun now.
_LATER: Final = "SELECT 1 FROM addresses WHERE lease IS NULL AND since>? LIMIT 1"
_FROM_NOW: Final = "UPDATE addresses SET until=?+until-since, since=? WHERE lease IS NULL AND since>?"

# Connections that must not be closed before the process ends.
_abandoned: list[sqlite3.Connection] = []

T = TypeVar("T")


class _Mode(Enum):
    """What a transaction is for."""

    WRITE = "write"
    LOOK = "look"  # whatever it writes is rolled back
    START_OVER = "start over"


class Sqlite:
    """`leases.db` in a folder: a Store. One object may serve all threads of a process, one at a time.

    Beyond what every store has, it knows whether it exists on this node and how to go on after a loss.
    """

    def __init__(self, folder: str, now: Callable[[], int] = now) -> None:
        self.name = os.path.join(folder, "leases.db")
        self.ref = StoreRef(SQLITE, folder)
        self._now = now
        self._folder = folder
        self._mark = Mark(folder)
        self._log_name = f"{self.name}-wal"
        self._log: tuple[int, int] | None = None
        self._lock = os.path.join(folder, "leases.lock")
        self._turn = allocate_lock()
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)

    def exists(self) -> bool:
        """Whether leases were ever stored there. CNIError."""
        try:
            return is_there(self.name) or is_there(self._mark.path)
        except OSError as e:
            raise unusable(self.name, e) from e

    def run(self, action: Callable[[SqliteLedger], T], /) -> T:
        """Run the action in a transaction, made durable at its end.

        CNIError, and then nothing has changed.
        """
        with self._transaction(_Mode.WRITE) as ledger:
            return action(ledger)

    def look(self, action: Callable[[SqliteLedger], T], /) -> T:
        """Run an action that changes nothing; without a file it sees an empty store. CNIError."""
        if not self.exists():
            with closing(empty()) as connection:
                return action(SqliteLedger(connection))
        if is_read_only(self._folder):
            return self._look_read_only(action)
        with self._transaction(_Mode.LOOK) as ledger:
            return action(ledger)

    def knows(self, network: str, container_id: str, ifname: str) -> bool:
        """Whether an interface of a container holds a lease; writers are not waited for if that can be.

        CNIError.
        """
        interface = (network, container_id, ifname)
        answer = self._asked_beside_writers(interface)
        if answer is not None:
            return answer
        return self.exists() and self.look(lambda ledger: ledger.is_held_by(*interface))

    def _asked_beside_writers(self, interface: tuple[str, str, str]) -> bool | None:
        """`knows` by the open connection, None if there is none that can be used.

        It takes a quarter of the time of a transaction, which a DEL would otherwise pay twice.
        """
        import sqlite3

        if not self._turn.acquire(timeout=_PATIENCE):
            raise locked_out(self._lock, _PATIENCE)
        try:
            connection = self._connection
            if connection is None or not self._is_current() or schema_of(connection, self.name) != SCHEMA:
                return None
            return SqliteLedger(connection).is_held_by(*interface)
        except sqlite3.Error:
            return None  # a transaction says what it is
        finally:
            self._turn.release()

    def start_over(self, action: Callable[[SqliteLedger], T], /) -> T:
        """Like `run`, in a store that has lost leases: from now on it is whole with what it has.

        Code 7 if it has lost nothing.
        """
        with self._transaction(_Mode.START_OVER) as ledger:
            return action(ledger)

    def glance(self, action: Callable[[SqliteLedger], T], /) -> T | None:
        """Like `look`, at what was last committed: it neither waits for a writer nor keeps one waiting.

        None where an older version has left the store: the next `run` brings it up to date.
        """
        import sqlite3

        self._ensure_file()
        try:
            with closing(self._connect_for_reading("mode=ro")) as connection:
                if schema_of(connection, self.name) != SCHEMA:
                    return None
                # One statement after the other would see what is committed between them.
                connection.execute("BEGIN")
                return action(SqliteLedger(connection))
        except sqlite3.Error as e:
            raise explained(self.name, e, _PATIENCE) from e

    @contextmanager
    def _transaction(self, mode: _Mode) -> Generator[SqliteLedger]:
        import sqlite3

        with self._locked():
            try:
                connection = self._open_anew() if mode is _Mode.START_OVER else self._open()
                self._begin(connection)
                try:
                    known = connection.total_changes
                    yield SqliteLedger(connection)
                    count = self._counted(connection, known, mode)
                    connection.execute("ROLLBACK" if mode is _Mode.LOOK else "COMMIT")
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                if count:
                    self._mark.count(count)
                self._log = self._log or identity(self._log_name)
            except sqlite3.Error as e:
                # A commit that could not be synced is in the log all the same: the next process that opens
                # the file alone would find it there. Closing the last connection puts an end to the log.
                self.close()
                raise explained(self.name, e, _PATIENCE) from e

    def _begin(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # A newer program may have been here since the last call.
            schema_of(connection, self.name)
            now = self._now()
            if connection.execute(_LATER, (now,)).fetchone() is not None:
                # The clock was set back. It is done for good, whatever becomes of the call.
                connection.execute(_FROM_NOW, (now, now, now))
                connection.execute("COMMIT")
                connection.execute("BEGIN IMMEDIATE")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _counted(self, connection: sqlite3.Connection, known: int, mode: _Mode) -> int:
        """What the mark has to count once this transaction is committed, 0 if that changes nothing."""
        if mode is _Mode.LOOK or (connection.total_changes == known and mode is not _Mode.START_OVER):
            return 0
        marked = (self._mark.read() or 0) if mode is _Mode.START_OVER else 0
        count = 1 + max(_generation(connection), marked)
        connection.execute("UPDATE generation SET number=?", (count,))
        return count

    def _look_read_only(self, action: Callable[[SqliteLedger], T]) -> T:
        import sqlite3

        count = self._ensure_file()
        try:
            with closing(self._open_for_reading(count)) as connection:
                return action(SqliteLedger(connection))
        except sqlite3.Error as e:
            if self._log_size() and primary_code(e) == sqlite3.SQLITE_CANTOPEN:
                text = (
                    "the file system is read-only, and without leases.db-shm so is leases.db-wal unreadable"
                )
                raise CNIError(IO_FAILURE, f"{self.name}: {text}: remount it") from e
            raise explained(self.name, e, _PATIENCE) from e

    def ready(self) -> None:
        """CNIError (50) if a transaction could not be done now."""
        try:
            if self.exists():
                self.run(lambda _: None)
            ensure_room(self._folder, self.name)
        except CNIError as e:
            raise CNIError(NOT_AVAILABLE, e.msg, e.details) from e

    def close(self) -> None:
        """End the connection. A process that is about to end need not: the log is read by the next one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _locked(self) -> Generator[None]:
        """The writers' queue: one thread of one process has it; the kernel releases it if that one dies."""
        # The lock file would keep threads apart as well, but a thread that waits for it sleeps meanwhile.
        if not self._turn.acquire(timeout=_PATIENCE):
            raise locked_out(self._lock, _PATIENCE)
        try:
            with self._lock_file():
                yield
        finally:
            self._turn.release()

    @contextmanager
    def _lock_file(self) -> Generator[None]:
        try:
            ensure_folder(self._folder)
            fd = os.open(
                self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
            )
        except OSError as e:
            raise unusable(self.name, e) from e
        try:
            try:
                # Each of the writers before this one takes about a millisecond: so short are the pauses.
                flock.acquire(fd, _PATIENCE, longest_pause=_LONGEST_PAUSE)
            except TimeoutError:
                raise locked_out(self._lock, _PATIENCE) from None
            yield
        finally:
            os.close(fd)

    def _open(self) -> sqlite3.Connection:
        """The connection to the file that has the name now; called with the lock held."""
        if self._connection is not None and self._is_current():
            return self._connection
        if self._connection is not None and self._identity == identity(self.name):
            self._rescue_log(self._connection)
        elif self._connection is not None:
            self._forget_emptied()
        self.close()
        return self._connect(self._ensure_file())

    def _is_current(self) -> bool:
        """Whether the connection is to the file and the log that have the names now."""
        return self._identity == identity(self.name) and self._log in (None, identity(self._log_name))

    def _open_anew(self) -> sqlite3.Connection:
        """The connection to a store that has lost leases, with what it has of them."""
        self.close()
        count = self._kept()
        loss = self._lost_file()
        if not loss:
            try:
                self._connect(count)
            except LeasesLost:
                loss = "incomplete"
            else:
                raise InvalidConfig(f"{self.name} has lost nothing: nothing was changed")
        if self._log_size():
            # Of a database that is gone: it may be all there is left of the leases.
            os.rename(self._log_name, f"{self._log_name}.lost")
        return self._connect(None)

    def _connect(self, count: int | None) -> sqlite3.Connection:
        """`count` is the mark's; with None the store is whole with what it has."""
        import sqlite3

        try:
            # Made here so that only root can read it; SQLite gives its -wal and -shm the same mode.
            # Never opened where it exists: closing any descriptor of the file drops SQLite's own locks on
            # it.
            os.close(os.open(self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except OSError as e:
            raise unusable(self.name, e) from e
        ensure_regular(self.name)
        connection = sqlite3.connect(
            self.name, timeout=_PATIENCE, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            self._prepare(connection, count)
        except BaseException:
            connection.close()
            raise
        self._connection, self._identity, self._log = connection, identity(self.name), None
        return connection

    def _rescue_log(self, connection: sqlite3.Connection) -> None:
        """The log was deleted under us: what is in it goes into the database, or is seen to be lost."""
        if self._log_size():
            # Another process has begun a new one, and what is in ours is no more of this database. To close
            # the connection would write it there all the same.
            _abandoned.append(connection)
            self._connection = None
        else:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _forget_emptied(self) -> None:
        """Remove a file that was emptied under us: closing it, SQLite would write into it what the log has.

        That is not all of it, and would look like a database that is damaged. The log stays as it is.
        """
        with suppress(OSError):
            if os.stat(self.name).st_size == 0:
                os.unlink(self.name)

    def _kept(self) -> int | None:
        try:
            return self._mark.read()
        except OSError as e:
            raise unusable(self.name, e) from e

    def _ensure_file(self) -> int | None:
        """What the mark counts; LeasesLost if there is one without a database."""
        count = self._kept()
        if count is not None and (loss := self._lost_file()):
            raise lost(loss)
        return count

    def _lost_file(self) -> str:
        """What is the matter with a database that has to be there, "" for nothing; before SQLite sees it.

        It would take an empty file for a new database, and delete the log of the old one.
        """
        try:
            size = os.stat(self.name).st_size
        except FileNotFoundError:
            return f"{self.name} is missing"
        except OSError as e:
            raise unusable(self.name, e) from e
        return "" if size else f"{self.name} is empty"

    def _open_for_reading(self, count: int | None) -> sqlite3.Connection:
        # SQLite wants to make leases.db-shm even for reading, unless `immutable` promises that no process
        # writes. With something in the log that would be wrong: the newest leases are there.
        mode = "mode=ro" if self._log_size() else "mode=ro&immutable=1"
        connection = self._connect_for_reading(mode)
        try:
            schema = schema_of(connection, self.name)
            _ensure_whole(connection, self.name, schema, count)
            if schema < SCHEMA:
                # Left empty by a process that was killed making it, or an older program's.
                connection = upgraded_copy(connection, schema)
            connection.execute("BEGIN")
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_for_reading(self, mode: str) -> sqlite3.Connection:
        import sqlite3
        from urllib.parse import quote

        ensure_regular(self.name)
        name = f"file:{quote(self.name)}?{mode}"
        return sqlite3.connect(name, uri=True, timeout=_PATIENCE, isolation_level=None)

    def _log_size(self) -> int:
        try:
            return os.stat(self._log_name).st_size
        except OSError:
            return 0

    def _prepare(self, connection: sqlite3.Connection, count: int | None) -> None:
        # Whose file it is comes first: reading it changes nothing.
        schema = schema_of(connection, self.name)
        _ensure_whole(connection, self.name, schema, count)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            connection.execute("PRAGMA journal_mode=WAL")
        if schema < SCHEMA:
            migrate(connection, schema)
            # A copy of the file alone has the tables, and all that an older version has kept.
            connection.execute("PRAGMA wal_checkpoint").fetchall()
        if count is None and self._mark.read() is None:
            try:
                self._mark.make(_generation(connection))
            except OSError as e:
                raise unusable(self.name, e) from e


def _ensure_whole(connection: sqlite3.Connection, name: str, schema: int, count: int | None) -> None:
    """LeasesLost if a database of this schema has lost what its mark counts."""
    if count is None:
        return
    if schema == 0:
        raise lost(f"{name} has no tables")
    missing = count - (_generation(connection) if schema >= 2 else 0)
    if missing > 0:
        lacks = "the last change" if missing == 1 else f"the last {missing} changes"
        what = f"{name} lacks {lacks} to the leases that were kept here, which leases.db-wal may have had"
        raise LeasesLost(what, "goes on with what it has")


def _generation(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT number FROM generation").fetchone()[0])
