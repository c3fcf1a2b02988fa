"""The embedded store: what is written is read, runs follow the addresses, and every trouble has a name."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import Cooling, Holder, Key, Lease, in_order
from cnvnet.ipam.sqlite import SCHEMA, Sqlite, SqliteLedger, migrate
from cnvnet.vm.identity import ACTIVE

KEY = Key("net", "default", "vm1", "eth0")
HOLDER = Holder("c1", "eth0", ACTIVE, "/run/netns/c1", 4026530000, "boot", 5)
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


@pytest.fixture
def store(tmp_path: Path) -> Generator[Sqlite]:
    made = Sqlite(str(tmp_path / "state"))
    yield made
    made.close()


@contextmanager
def fresh_ledger() -> Generator[SqliteLedger]:
    """A ledger in memory, for examples by the hundred."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    try:
        yield SqliteLedger(connection)
    finally:
        connection.close()


def lease(name: str, *ips: str, mac: str = "", network: str = "net") -> Lease:
    return Lease(Key(network, "default", name, "eth0"), in_order(map(ip_address, ips)), mac=mac)


def test_a_lease_is_read_as_it_was_written(store: Sqlite) -> None:
    with store.transaction() as ledger:
        ledger.change(None, LEASE, until=0)
    with store.transaction() as ledger:
        assert ledger.get(KEY) == LEASE
        assert ledger.held_by("net", "c1", "eth0") == LEASE
        assert ledger.owner("net", ip_address("fd00::5")) == LEASE
        assert ledger.owner_of_mac("net", LEASE.mac) == LEASE
        assert list(ledger.holding("net")) == [LEASE]


def test_networks_are_apart(store: Sqlite) -> None:
    with store.transaction() as ledger:
        ledger.change(None, LEASE, until=0)
        assert ledger.get(KEY._replace(network="other")) is None
        assert ledger.held_by("other", "c1", "eth0") is None
        assert ledger.owner("other", ip_address("10.0.0.5")) is None
        assert ledger.owner_of_mac("other", LEASE.mac) is None
        assert list(ledger.holding("other")) == []
        other = LEASE._replace(key=KEY._replace(network="other"))
        ledger.change(None, other, until=0)
        assert ledger.owner("other", ip_address("10.0.0.5")) == other
        assert ledger.owner("net", ip_address("10.0.0.5")) == LEASE


def test_a_change_rewrites_what_is_different(store: Sqlite) -> None:
    moved = LEASE._replace(
        ips=in_order(map(ip_address, ("10.0.0.6", "fd00::5"))),
        mac="",
        vm_uid="uid-2",
        holders=(HOLDER._replace(role="leaving"), HOLDER._replace(container_id="c2")),
    )
    with store.transaction() as ledger:
        ledger.change(None, LEASE, until=0)
        ledger.change(LEASE, moved, until=0)
    with store.transaction() as ledger:
        assert ledger.get(KEY) == moved
        assert ledger.owner("net", ip_address("10.0.0.5")) is None
        assert ledger.next_free("net", ip_address("10.0.0.5"), ip_address("10.0.0.9")) == ip_address(
            "10.0.0.5"
        )


def test_a_removed_lease_leaves_nothing(store: Sqlite) -> None:
    with store.transaction() as ledger:
        ledger.change(None, LEASE, until=0)
        ledger.change(LEASE, None, until=0)
    with sqlite3.connect(store.name) as reader:
        for table in ("leases", "addresses", "holders", "runs"):
            assert reader.execute(f"SELECT * FROM {table}").fetchall() == []
    reader.close()


def test_given_up_addresses_cool_down_until_they_expire(store: Sqlite) -> None:
    with store.transaction() as ledger:
        ledger.change(None, LEASE, until=0)
        ledger.change(LEASE, None, until=100)
        cooling = [Cooling(KEY, ip, LEASE.mac, LEASE.vm_uid, 100) for ip in LEASE.ips]
        assert list(ledger.cooling(KEY)) == cooling
        assert ledger.owner("net", LEASE.ips[0]) == cooling[0]
        assert ledger.next_free("net", LEASE.ips[0], LEASE.ips[0]) is None
        ledger.expire("net", 99, everything=True)
        assert list(ledger.cooling(KEY)) == cooling
        ledger.expire("net", 100, everything=False)
        assert ledger.cooling(KEY) == ()
        assert ledger.next_free("net", LEASE.ips[0], LEASE.ips[0]) == LEASE.ips[0]


def test_a_cooling_address_can_be_taken_back(store: Sqlite) -> None:
    with store.transaction() as ledger:
        ledger.change(None, LEASE, until=0)
        ledger.change(LEASE, None, until=100)
        ledger.change(None, LEASE, until=0)
        assert ledger.get(KEY) == LEASE
        assert ledger.cooling(KEY) == ()


def test_one_address_or_mac_never_has_two_leases(store: Sqlite) -> None:
    with store.transaction() as ledger:
        ledger.change(None, lease("a", "10.0.0.1", mac="0a:63:00:00:00:01"), until=0)
    for second in (lease("b", "10.0.0.1"), lease("b", "10.0.0.2", mac="0a:63:00:00:00:01")):
        with pytest.raises(CNIError, match="UNIQUE constraint"), store.transaction() as ledger:
            ledger.change(None, second, until=0)
        with store.transaction() as ledger:
            assert ledger.get(second.key) is None


def test_a_transaction_that_fails_leaves_nothing(store: Sqlite) -> None:
    with suppress(KeyboardInterrupt), store.transaction() as ledger:
        ledger.change(None, LEASE, until=0)
        raise KeyboardInterrupt
    with store.transaction() as ledger:
        assert ledger.get(KEY) is None


def test_an_ipv6_address_that_begins_like_an_ipv4_one_is_no_neighbour_of_it() -> None:
    with fresh_ledger() as ledger:
        ledger.change(None, lease("a", "10.0.0.1", "a00:1::"), until=0)
        found = ledger.next_free("net", ip_address("10.0.0.1"), ip_address("10.0.0.9"))
        assert found == ip_address("10.0.0.2")
        found = ledger.next_free("net", ip_address("a00:1::"), ip_address("a00:2::"))
        assert found == ip_address("a00:1::1")


def test_the_ends_of_the_address_space_can_be_taken() -> None:
    ends = ("0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
    with fresh_ledger() as ledger:
        for number, ip in enumerate(ends):
            ledger.change(None, lease(f"vm{number}", ip), until=0)
            assert ledger.next_free("net", ip_address(ip), ip_address(ip)) is None
        for number, ip in enumerate(ends):
            ledger.change(lease(f"vm{number}", ip), None, until=0)
            assert ledger.next_free("net", ip_address(ip), ip_address(ip)) == ip_address(ip)


@given(st.lists(st.tuples(st.integers(0, 15), st.booleans()), max_size=60))
def test_runs_always_say_which_address_is_free_next(steps: list[tuple[int, bool]]) -> None:
    base = int(IPv4Address("10.0.0.0"))
    taken: set[int] = set()
    with fresh_ledger() as ledger:
        for place, cool in steps:
            one = lease(f"vm{place}", str(IPv4Address(base + place)))
            if place in taken:
                ledger.change(one, None, until=9 if cool else 0)
                if cool:
                    ledger.expire("net", 9, everything=True)
                taken.remove(place)
            else:
                ledger.change(None, one, until=0)
                taken.add(place)
            for first in range(16):
                free = next((at for at in range(first, 16) if at not in taken), None)
                found = ledger.next_free("net", IPv4Address(base + first), IPv4Address(base + 15))
                assert found == (None if free is None else IPv4Address(base + free))


def test_every_query_of_a_call_is_an_index_look_up(store: Sqlite) -> None:
    statements: list[str] = []
    with store.transaction() as ledger:
        connection = ledger.connection
        connection.set_trace_callback(statements.append)
        ledger.change(None, LEASE, until=0)
        ledger.get(KEY)
        ledger.held_by("net", "c1", "eth0")
        list(ledger.holding("net"))
        ledger.owner("net", LEASE.ips[0])
        ledger.owner_of_mac("net", LEASE.mac)
        ledger.next_free("net", LEASE.ips[0], LEASE.ips[0])
        ledger.change(LEASE, LEASE._replace(holders=(), mac=""), until=0)
        ledger.change(LEASE._replace(holders=(), mac=""), None, until=50)
        ledger.cooling(KEY)
        ledger.cooldowns("net", LEASE.ips[0], LEASE.ips[0])
        ledger.expire("net", 50, everything=False)
        connection.set_trace_callback(None)
        plans = {
            (statement, row[3])
            for statement in set(statements)
            for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")
        }
    assert len(plans) > 12
    # By the network alone is all of it: only who wants all holders asks so.
    whole = {each for each in plans if each[1].startswith("SCAN") or each[1].endswith("KEY (network=?)")}
    assert {statement for statement, _ in whole} == {
        "SELECT DISTINCT lease FROM holders WHERE network='net'"
    }


def test_a_call_is_as_many_steps_of_the_database_at_any_size() -> None:
    """Counted in instructions of SQLite's virtual machine, not by the clock; the pool is nearly full."""
    costs: list[int] = []
    with fresh_ledger() as ledger:
        for number in range(4000):
            if number in (10, 3999):
                costs.append(cost_of_one(ledger, number))
            ledger.change(None, lease(f"other{number}", str(IPv4Address("10.0.0.0") + number)), until=0)
    few, many = costs
    assert many <= few * 1.2


def cost_of_one(ledger: SqliteLedger, number: int) -> int:
    """Instructions for all that ADD and DEL of a new VM ask; `number` addresses are taken."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    first = IPv4Address("10.0.0.0")
    ledger.connection.set_progress_handler(step, 1)
    assert ledger.held_by("net", "c1", "eth0") is None
    assert ledger.get(KEY) is None
    ledger.expire("net", 50, everything=True)
    assert ledger.cooling(KEY) == ()
    assert ledger.cooldowns("net", first, first + 4095) == (0, 0)
    free = ledger.next_free("net", first, first + 4095)
    one = lease("vm1", str(free), mac="0a:63:00:00:00:01")._replace(holders=(HOLDER,))
    assert ledger.owner_of_mac("net", one.mac) is None
    ledger.change(None, one, until=0)
    assert ledger.owner("net", one.ips[0]) == one
    assert ledger.held_by("net", "c1", "eth0") == one
    ledger.change(one, None, until=0)
    ledger.connection.set_progress_handler(None, 1)
    assert free == first + number
    return count


# -- trouble


def failing(store: Sqlite) -> CNIError:
    with pytest.raises(CNIError) as caught, store.transaction():
        pass
    return caught.value


def test_a_newer_schema_is_refused_and_left_as_it_was(store: Sqlite) -> None:
    with store.transaction() as ledger:
        ledger.change(None, LEASE, until=0)
    store.close()
    with sqlite3.connect(store.name, isolation_level=None) as writer:
        writer.execute(f"PRAGMA user_version={SCHEMA + 1}")
    writer.close()
    before = Path(store.name).read_bytes()
    error = failing(store)
    assert error.code == 11
    assert error.msg.startswith(f"{store.name}: written by a newer version (schema {SCHEMA + 1}")
    assert Path(store.name).read_bytes() == before


def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
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
    with store.transaction() as ledger:
        for number in range(200):
            ledger.change(None, lease(f"vm{number}", f"10.0.0.{number}"), until=0)
    store.close()
    content = bytearray(Path(store.name).read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    Path(store.name).write_bytes(content)
    with pytest.raises(CNIError) as caught, store.transaction() as ledger:
        ledger.get(KEY)
    assert caught.value.code == 5
    assert "damaged (database disk image is malformed)" in caught.value.msg


def test_an_empty_file_left_by_a_killed_process_becomes_the_database(tmp_path: Path) -> None:
    (tmp_path / "leases.db").touch()
    store = Sqlite(str(tmp_path))
    with store.transaction() as ledger:
        ledger.change(None, LEASE, until=0)
        assert ledger.get(KEY) == LEASE
    store.close()


def test_a_folder_that_is_a_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    store = Sqlite(str(tmp_path / "state"))
    assert not store.exists()
    error = failing(store)
    assert error.code == 5
    assert error.msg.startswith(f"{tmp_path}/state/leases.db: file exists: set ipam.dataDir to a folder")


def test_a_lock_nobody_gives_back_is_reported_in_the_end(
    store: Sqlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnvnet.ipam.sqlite._PATIENCE", 0.05)
    other = Sqlite(os.path.dirname(store.name))
    with store.transaction():
        error = failing(other)
    assert error.code == 11
    assert error.msg.startswith(f"{os.path.dirname(store.name)}/leases.lock: another process has held it")


def test_a_database_that_was_replaced_is_opened_anew(store: Sqlite) -> None:
    with store.transaction() as ledger:
        ledger.change(None, LEASE, until=0)
    for path in Path(store.name).parent.glob("leases.db*"):
        path.unlink()
    with store.transaction() as ledger:
        assert ledger.get(KEY) is None


def test_only_root_can_read_the_leases(store: Sqlite) -> None:
    with store.transaction():
        pass
    folder = Path(store.name).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("leases.db", "leases.db-shm", "leases.db-wal", "leases.lock"), 0o600
    )


def test_every_commit_is_on_the_disk_before_it_is_reported(store: Sqlite) -> None:
    with store.transaction() as ledger:
        assert ledger.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert ledger.connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_nothing_is_made_by_asking_whether_it_is_there_or_could_be(tmp_path: Path) -> None:
    store = Sqlite(str(tmp_path / "a" / "b"))
    assert not store.exists()
    store.ready()
    assert list(tmp_path.iterdir()) == []
