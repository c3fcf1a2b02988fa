"""The embedded store as a file: shared, safe, migrated, and every trouble has a name."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import Lease
from cnvnet.ipam.store.mark import Mark
from cnvnet.ipam.store.protocol import LeasesLost, Ledger
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.ipam.store.sqlite_schema import SCHEMA
from tests.unit.ipam.store.conformance import KEY, LEASE, lease, write
from tests.unit.ipam.store.test_sqlite_ledger import store

__all__ = ["store"]  # a fixture


def broken_off(ledger: Ledger) -> None:
    """Changes something, and is interrupted."""
    ledger.change(None, lease("vm9", "10.0.0.9"), until=0)
    raise KeyboardInterrupt


def test_a_transaction_that_fails_leaves_nothing(store: Sqlite) -> None:
    with suppress(KeyboardInterrupt):
        store.run(broken_off)
    assert store.run(lambda ledger: list(ledger.leases())) == []


# -- trouble


def failing(store: Sqlite) -> CNIError:
    with pytest.raises(CNIError) as caught:
        store.run(lambda _: None)
    return caught.value


def test_a_newer_schema_is_refused_and_left_as_it_was(store: Sqlite) -> None:
    store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    store.close()
    with sqlite3.connect(store.name, isolation_level=None) as writer:
        writer.execute(f"PRAGMA user_version={SCHEMA + 1}")
    writer.close()
    before = Path(store.name).read_bytes()
    error = failing(store)
    assert error.code == 11
    assert error.msg.startswith(f"{store.name}: written by a newer version (schema {SCHEMA + 1}")
    assert Path(store.name).read_bytes() == before


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["leases.db", "leases.db-wal", "leases.db-shm", "leases.db-journal"])
def test_a_fifo_in_the_place_of_a_file_makes_no_call_wait(store: Sqlite, name: str) -> None:
    store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    store.close()
    path = Path(store.name).with_name(name)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    if name == "leases.db":  # with the mark it is one that has lost its leases
        path.with_name("leases.kept").unlink()
    with pytest.raises(CNIError) as caught:
        store.glance(lambda _: None)
    for error in (caught.value, failing(store)):
        assert (error.code, error.msg) == (5, f"{path}: not a regular file: nothing was changed")


def test_a_link_in_the_place_of_the_lock_is_not_followed(store: Sqlite, tmp_path: Path) -> None:
    store.run(lambda _: None)
    store.close()
    lock = Path(store.name).with_name("leases.lock")
    lock.unlink()
    lock.symlink_to(tmp_path / "made")
    assert failing(store).code == 5
    assert not (tmp_path / "made").exists()


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "leases.db") as writer:
        writer.execute("CREATE TABLE dhcp (ip TEXT)")
    writer.close()
    before = (tmp_path / "leases.db").read_bytes()
    error = failing(Sqlite(str(tmp_path)))
    assert (error.code, error.msg) == (
        5,
        f"{tmp_path}/leases.db: not a database of leases: move it away or set ipam.dataDir",
    )
    assert (tmp_path / "leases.db").read_bytes() == before


def test_a_damaged_database_is_named_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "leases.db").write_bytes(b"nonsense " * 1000)
    error = failing(Sqlite(str(tmp_path)))
    assert error.code == 5
    assert error.msg.startswith(f"{tmp_path}/leases.db: damaged (file is not a database): restore it")
    assert (tmp_path / "leases.db").read_bytes() == b"nonsense " * 1000


def test_a_database_damaged_inside_is_named(store: Sqlite) -> None:
    write(store, *(lease(f"vm{number}", f"10.0.0.{number}") for number in range(200)))
    store.close()
    content = bytearray(Path(store.name).read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    Path(store.name).write_bytes(content)
    with pytest.raises(CNIError) as caught:
        store.run(lambda ledger: ledger.get(KEY))
    assert caught.value.code == 5
    assert "damaged (database disk image is malformed)" in caught.value.msg


def test_an_empty_file_left_by_a_killed_process_becomes_the_database(tmp_path: Path) -> None:
    (tmp_path / "leases.db").touch()
    store = Sqlite(str(tmp_path))
    store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    assert store.run(lambda ledger: ledger.get(KEY)) == LEASE
    store.close()


def test_a_folder_that_is_a_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    store = Sqlite(str(tmp_path / "state"))
    assert not store.exists()
    error = failing(store)
    assert error.code == 5
    assert error.msg.startswith(f"{tmp_path}/state/leases.db: not a directory: set ipam.dataDir to a folder")


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 2_100], ids=["name", "path"])
def test_a_folder_whose_name_is_too_long_has_nothing(tmp_path: Path, name: str) -> None:
    store = Sqlite(str(tmp_path / name))
    assert not store.exists()
    assert failing(store).code == 5


def test_a_lock_that_is_never_released_is_reported_in_the_end(
    store: Sqlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnvnet.ipam.store.sqlite._PATIENCE", 0.05)
    other = Sqlite(os.path.dirname(store.name))
    error = store.run(lambda _: failing(other))
    assert error.code == 11
    assert error.msg.startswith(f"{os.path.dirname(store.name)}/leases.lock: another process has held it")


def replace(store: Sqlite) -> None:
    """A copy of the file, made while no process used it, is restored."""
    copy = sqlite3.connect(f"{store.name}.copy")
    with closing(copy), closing(sqlite3.connect(store.name)) as original:
        original.backup(copy)
    os.rename(f"{store.name}.copy", store.name)
    for end in ("-wal", "-shm"):
        Path(f"{store.name}{end}").unlink()


def test_a_database_that_was_replaced_is_opened_anew(store: Sqlite) -> None:
    store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    replace(store)
    assert store.run(lambda ledger: ledger.get(KEY)) == LEASE
    store.run(lambda ledger: ledger.change(LEASE, None, until=0))
    with closing(sqlite3.connect(store.name)) as reader:
        assert reader.execute("SELECT * FROM leases").fetchall() == []


def test_only_root_can_read_the_leases(store: Sqlite) -> None:
    store.run(lambda _: None)
    folder = Path(store.name).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("leases.db", "leases.db-shm", "leases.db-wal", "leases.kept", "leases.lock"), 0o600
    )


def test_every_commit_is_on_the_disk_before_it_is_reported(store: Sqlite) -> None:
    assert store.run(lambda ledger: ledger.connection.execute("PRAGMA journal_mode").fetchone()) == ("wal",)
    assert store.run(lambda ledger: ledger.connection.execute("PRAGMA synchronous").fetchone()) == (2,)


def test_nothing_is_made_by_asking_whether_it_is_there_or_could_be(tmp_path: Path) -> None:
    store = Sqlite(str(tmp_path / "a" / "b"))
    assert not store.exists()
    store.ready()
    assert list(tmp_path.iterdir()) == []


# -- leases that are lost


def remove(*ends: str) -> Callable[[Path], None]:
    def lose(database: Path) -> None:
        for end in ends:
            Path(f"{database}{end}").unlink(missing_ok=True)

    return lose


def truncate(*ends: str) -> Callable[[Path], None]:
    def lose(database: Path) -> None:
        for end in ends:
            os.truncate(f"{database}{end}", 0)

    return lose


def truncate_database_alone(database: Path) -> None:
    truncate("")(database)
    remove("-shm")(database)


LOSSES: dict[str, Callable[[Path], None]] = {
    "leases.db": remove(""),
    "leases.db-wal": remove("-wal"),
    "leases.db-wal and -shm": remove("-wal", "-shm"),
    "leases.db, -wal and -shm": remove("", "-wal", "-shm"),
    "leases.db emptied": truncate(""),
    "leases.db emptied, without -shm": truncate_database_alone,
    "leases.db-wal emptied": truncate("-wal"),
    "leases.db and -wal emptied": truncate("", "-wal"),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}


def do_nothing(*_: object) -> None:
    pass


def killed(folder: Path, *leases: Lease) -> None:
    """Leases are written by a process that ends as executables and killed agents do: the log stays."""
    pid = os.fork()
    if not pid:
        try:
            writer = Sqlite(str(folder))
            write(writer, *leases)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("what", LOSSES)
def test_a_store_that_has_lost_leases_gives_none_out(tmp_path: Path, what: str) -> None:
    killed(tmp_path, LEASE, lease("vm2", "10.0.0.6"))
    LOSSES[what](tmp_path / "leases.db")
    before = contents(tmp_path)
    store = Sqlite(str(tmp_path))
    for _ in range(2):
        with pytest.raises(LeasesLost, match="restore it, or cnvctl leases init") as caught:
            store.run(lambda _: None)
        with pytest.raises(LeasesLost):
            store.look(lambda _: None)
        assert caught.value.code == 5
        assert store.exists()
    after = contents(tmp_path)
    assert {name: after.get(name, b"") for name in before} == before


def test_what_is_lost_is_said_with_the_remedy(tmp_path: Path) -> None:
    store = Sqlite(str(tmp_path))
    killed(tmp_path, LEASE, lease("vm2", "10.0.0.6"))
    Path(f"{store.name}-wal").rename(tmp_path / "saved")
    with pytest.raises(LeasesLost) as caught:
        store.run(lambda _: None)
    assert caught.value.of("net").msg == (
        f"{store.name} lacks the last 2 changes to the leases that were kept here, which leases.db-wal "
        "may have had: restore it, or cnvctl leases init --network net goes on with what it has"
    )
    (tmp_path / "leases.db").rename(tmp_path / "moved")
    with pytest.raises(LeasesLost) as caught:
        store.run(lambda _: None)
    assert caught.value.msg == (
        f"{store.name} is missing, but leases were kept here: "
        "restore it, or cnvctl leases init starts an empty one"
    )


def test_what_was_lost_can_be_restored(tmp_path: Path) -> None:
    killed(tmp_path, LEASE)
    store = Sqlite(str(tmp_path))
    for name in ("leases.db", "leases.db-wal"):
        (tmp_path / name).rename(tmp_path / f"{name}.away")
    assert failing(store).code == 5
    for name in ("leases.db", "leases.db-wal"):
        (tmp_path / f"{name}.away").rename(tmp_path / name)
    assert store.run(lambda ledger: ledger.get(KEY)) == LEASE
    store.close()


def test_an_older_copy_of_the_database_is_known(tmp_path: Path) -> None:
    store = Sqlite(str(tmp_path))
    store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    with (
        closing(sqlite3.connect(store.name)) as now,
        closing(sqlite3.connect(tmp_path / "backup")) as backup,
    ):
        now.backup(backup)
    store.run(lambda ledger: ledger.change(None, lease("vm2", "10.0.0.6"), until=0))
    store.close()
    shutil.copy(tmp_path / "backup", store.name)
    assert "lacks the last change to the leases" in failing(store).msg
    assert store.start_over(lambda ledger: [each.key.vm for each in ledger.leases()]) == ["vm1"]
    store.run(lambda ledger: ledger.change(None, lease("vm3", "10.0.0.7"), until=0))
    store.close()


@pytest.mark.parametrize("what", LOSSES)
def test_a_store_that_starts_over_is_whole_again(tmp_path: Path, what: str) -> None:
    killed(tmp_path, LEASE)
    LOSSES[what](tmp_path / "leases.db")
    store = Sqlite(str(tmp_path))
    assert failing(store).code == 5
    store.start_over(lambda ledger: ledger.change(None, lease("vm9", "10.0.0.9"), until=0))
    store.close()
    assert store.run(lambda ledger: [each.key.vm for each in ledger.leases()]) == ["vm9"]
    with pytest.raises(CNIError, match="has lost nothing: nothing was changed"):
        store.start_over(lambda _: None)
    store.close()


def test_a_log_without_its_database_is_put_aside_when_starting_over(tmp_path: Path) -> None:
    killed(tmp_path, LEASE)
    log = Path(tmp_path, "leases.db-wal").read_bytes()
    os.truncate(tmp_path / "leases.db", 0)
    store = Sqlite(str(tmp_path))
    store.start_over(lambda _: None)
    assert Path(tmp_path, "leases.db-wal.lost").read_bytes() == log
    store.close()


def test_a_log_that_is_deleted_under_a_process_that_stays_is_written_into_the_database(
    store: Sqlite,
) -> None:
    store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    Path(f"{store.name}-wal").unlink()
    assert store.run(lambda ledger: ledger.get(KEY)) == LEASE
    store.run(lambda ledger: ledger.change(None, lease("vm2", "10.0.0.6"), until=0))
    other = Sqlite(os.path.dirname(store.name))
    assert other.run(lambda ledger: [each.key.vm for each in ledger.leases()]) == ["vm1", "vm2"]
    other.close()


def test_a_database_that_is_emptied_under_a_process_that_stays_is_lost(store: Sqlite) -> None:
    store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    log = Path(f"{store.name}-wal").read_bytes()
    os.truncate(store.name, 0)
    for _ in range(2):
        with pytest.raises(LeasesLost, match="is missing, but leases were kept here"):
            store.run(lambda _: None)
    assert Path(f"{store.name}-wal").read_bytes() == log


def test_a_store_of_378e07b_is_marked_when_it_is_first_used(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[3] / "data/leases_378e07b.db", tmp_path / "leases.db")
    store = Sqlite(str(tmp_path))
    store.run(lambda _: None)
    store.close()
    Path(store.name).unlink()
    assert "is missing, but leases were kept here" in failing(store).msg


def test_a_mark_that_is_lost_is_made_again(store: Sqlite) -> None:
    mark = Path(store.name).with_name("leases.kept")
    for number in (5, 6):
        write(store, lease(f"vm{number}", f"10.0.0.{number}"))
        content = mark.read_bytes()
        mark.unlink()
        store.close()
        store.run(lambda _: None)
        assert mark.read_bytes() == content


def test_a_crash_after_a_commit_leaves_a_mark_that_is_behind_and_nothing_is_refused(
    store: Sqlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    with monkeypatch.context() as patched:
        patched.setattr(Mark, "count", do_nothing)
        store.run(lambda ledger: ledger.change(LEASE, None, until=0))
    store.close()
    assert store.run(lambda ledger: ledger.get(KEY)) is None


def test_a_transaction_that_changes_nothing_is_not_counted(store: Sqlite) -> None:
    mark = Path(store.name).with_name("leases.kept")
    store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    before = mark.read_bytes()
    store.run(lambda ledger: ledger.get(KEY))
    with suppress(KeyboardInterrupt):
        store.run(broken_off)
    assert mark.read_bytes() == before


# -- a clock that goes wrong


def test_a_cooldown_of_the_future_begins_now(tmp_path: Path) -> None:
    moment = [10_000_000_000]
    store = Sqlite(str(tmp_path), now=lambda: moment[0])
    store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    store.run(lambda ledger: ledger.change(LEASE, None, until=moment[0] + 60, since=moment[0]))
    moment[0] = 2_000_000_000
    # Also if the call that finds it comes to nothing.
    with suppress(KeyboardInterrupt):
        store.run(broken_off)
    moment[0] += 10
    times = store.look(lambda ledger: {(each.since, each.until) for each in ledger.cooldowns()})
    assert times == {(2_000_000_000, 2_000_000_060)}
    store.close()
