"""Files of older versions: what commit 378e07b wrote is read, used and counted as if it were ours."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Generator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import LEAVING, LeaseKey
from cnvnet.ipam.store import sqlite_schema
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.ipam.store.sqlite_schema import SCHEMA, migrate
from cnvnet.vm.identity import ACTIVE, TARGET

# Made by leases_378e07b.sh beside it.
OLD = Path(__file__).parents[3] / "data" / "leases_378e07b.db"


@pytest.fixture
def store(tmp_path: Path) -> Generator[Sqlite]:
    shutil.copy(OLD, tmp_path / "leases.db")
    made = Sqlite(str(tmp_path))
    yield made
    made.close()


def dump(path: str | Path) -> list[str]:
    with closing(sqlite3.connect(path)) as reader:
        return list(reader.iterdump())


def described(connection: sqlite3.Connection) -> dict[str, object]:
    """Every table and index with its columns, however the file has come to it."""
    names = connection.execute(
        "SELECT name, type FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
    ).fetchall()
    return {
        name: connection.execute(f"PRAGMA {kind}_{'x' * (kind == 'index')}info({name})").fetchall()
        for name, kind in names
    }


def test_the_leases_of_378e07b_are_there_after_the_migration(store: Sqlite) -> None:
    leases = store.run(lambda ledger: {each.key.vm: each for each in ledger.leases()})
    cooling = store.run(lambda ledger: list(ledger.cooldowns()))
    assert {
        name: [(each.container_id, each.role) for each in one.holders] for name, one in leases.items()
    } == {
        "running": [("run-1", ACTIVE)],
        "moving": [("move-1", ACTIVE), ("move-2", TARGET)],
        "restarted": [("again-1", LEAVING), ("again-2", ACTIVE)],
        "stopped": [],
        "plain-1": [("plain-1", ACTIVE)],
        "pod-1": [("pod-1", ACTIVE)],
        "both": [("both-1", ACTIVE)],
    }
    running = leases["running"]
    assert (running.ips, running.mac, running.vm_uid, running.source) == (
        (ip_address("10.1.0.10"),),
        "0a:63:00:00:00:10",
        "uid-1",
        "CNI_ARGS IP",
    )
    assert leases["stopped"].key == LeaseKey("blue", "prod", "stopped", "eth0")
    assert len(leases["both"].ips) == 2
    assert {each.node or each.pod or each.pod_uid for one in leases.values() for each in one.holders} == {""}
    assert [each.key.vm for each in cooling] == ["cooling"]


def test_what_was_written_by_378e07b_is_all_still_there(store: Sqlite) -> None:
    inserted = {line for line in dump(OLD) if line.startswith("INSERT") and '"holders"' not in line}
    store.run(lambda _: None)
    after = "\n".join(dump(store.name))
    kept = {line for line in inserted if line.removesuffix(");") in after}
    assert kept == inserted


def test_a_lease_of_378e07b_is_found_again_by_its_vm_and_ended_by_its_container(store: Sqlite) -> None:
    lease = store.run(lambda ledger: ledger.held_by("blue", "run-1", "eth0"))
    assert lease is not None
    stopped = lease._replace(holders=())
    store.run(lambda ledger: ledger.change(lease, stopped, until=0))
    assert store.run(lambda ledger: ledger.held_by("blue", "run-1", "eth0")) is None
    assert store.run(lambda ledger: ledger.owner_of("blue", ip_address("10.1.0.10"))) == stopped


def test_a_migrated_file_has_the_tables_of_a_new_one(store: Sqlite, tmp_path: Path) -> None:
    migrated = store.run(lambda ledger: described(ledger.connection))
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        assert migrated == described(connection)
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA,)


def test_a_migration_that_fails_leaves_the_file_as_it_was(
    store: Sqlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dump(store.name)
    refused = ("ALTER TABLE holders ADD COLUMN node TEXT", "INSERT INTO nowhere VALUES (1)")
    monkeypatch.setattr(sqlite_schema, "_SECOND", refused)
    with pytest.raises(CNIError, match="no such table: nowhere"):
        store.run(lambda _: None)
    assert dump(store.name) == before
    monkeypatch.undo()
    assert store.run(lambda ledger: len(list(ledger.leases()))) == 7


def test_an_older_file_is_read_where_nothing_can_be_written(
    store: Sqlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path(store.name).read_bytes()

    def mounted_read_only(_: str) -> bool:
        return True

    monkeypatch.setattr("cnvnet.ipam.store.sqlite.is_read_only", mounted_read_only)
    assert store.look(lambda ledger: len(list(ledger.leases()))) == 7
    assert Path(store.name).read_bytes() == before
    assert os.listdir(os.path.dirname(store.name)) == ["leases.db"]


def test_the_next_schema_is_refused_in_a_connection_that_was_opened_before_it_came(store: Sqlite) -> None:
    """What the older of two programs does whose newer one migrates the file under it."""
    store.run(lambda _: None)
    with closing(sqlite3.connect(store.name, isolation_level=None)) as newer:
        newer.execute(f"PRAGMA user_version={SCHEMA + 1}")
    with pytest.raises(CNIError, match="written by a newer version") as caught:
        store.run(lambda _: None)
    assert caught.value.code == 11
