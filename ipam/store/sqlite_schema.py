"""The tables of the embedded store, and how a file of an older version gets them."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from cnvnet.cni.errors import IO_FAILURE, TRY_AGAIN_LATER, CNIError

if TYPE_CHECKING:
    import sqlite3

# PRAGMA user_version. Raised with every change of the tables; `migrate` brings an older file up to it.
SCHEMA: Final = 2
# PRAGMA application_id, so that another program's leases.db is not taken for ours: "cnvL".
APPLICATION: Final = 0x636E764C

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
# What makes schema 2 of schema 1.
_SECOND: Final = (
    "ALTER TABLE holders ADD COLUMN node TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE holders ADD COLUMN pod TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE holders ADD COLUMN pod_uid TEXT NOT NULL DEFAULT ''",
    # When an address began to cool down: a clock that is set back must not keep it for years.
    "ALTER TABLE addresses ADD COLUMN since INTEGER",
    "CREATE INDEX cooling_by_start ON addresses (since) WHERE lease IS NULL",
    # What the configuration of a network's last ADD had to give, one row for each family: for those who
    # count what is free.
    """CREATE TABLE pools (
        network TEXT NOT NULL, family INTEGER NOT NULL, name TEXT NOT NULL, spans TEXT NOT NULL,
        PRIMARY KEY (network, family)) WITHOUT ROWID""",
    # How many transactions have changed the file.
    "CREATE TABLE generation (number INTEGER NOT NULL)",
    "INSERT INTO generation VALUES (0)",
)


def schema_of(connection: sqlite3.Connection, name: str) -> int:
    """The schema of a database of ours that we can read, 0 for one with nothing in it."""
    schema = _number(connection, "PRAGMA user_version")
    if schema > SCHEMA:
        text = f"{name}: written by a newer version (schema {schema}, this one knows {SCHEMA})"
        raise CNIError(TRY_AGAIN_LATER, f"{text}: use that version; nothing was changed")
    empty = schema == 0 and _number(connection, "SELECT count(*) FROM sqlite_master") == 0
    if not empty and _number(connection, "PRAGMA application_id") != APPLICATION:
        raise CNIError(IO_FAILURE, f"{name}: not a database of leases: move it away or set ipam.dataDir")
    return schema


def migrate(connection: sqlite3.Connection, schema: int = 0) -> None:
    """Bring a database from the schema it has (0: nothing) to the present one: all at once or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    if schema < 1:
        _run(connection, _TABLES)
        connection.execute(f"PRAGMA application_id={APPLICATION}")
    if schema < 2:
        _run(connection, _SECOND)
        # Schema 1 does not say when it was; what matters is that it is not in the future.
        connection.execute("UPDATE addresses SET since=? WHERE lease IS NULL", (int(time.time()),))
    connection.execute(f"PRAGMA user_version={SCHEMA}")
    connection.execute("COMMIT")


def empty() -> sqlite3.Connection:
    """A database in memory with no leases."""
    import sqlite3

    made = sqlite3.connect(":memory:", isolation_level=None)
    migrate(made)
    return made


def upgraded_copy(connection: sqlite3.Connection, schema: int) -> sqlite3.Connection:
    """A copy in memory, brought to the present schema there; closes the database it is made of."""
    import sqlite3

    copy = sqlite3.connect(":memory:", isolation_level=None)
    try:
        with closing(connection):
            connection.backup(copy)
        migrate(copy, schema)
    except BaseException:
        copy.close()
        raise
    return copy


def _run(connection: sqlite3.Connection, statements: tuple[str, ...]) -> None:
    for statement in statements:
        connection.execute(statement)


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])
