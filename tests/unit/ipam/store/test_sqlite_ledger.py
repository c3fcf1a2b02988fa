"""What is written into the embedded store is read again, and runs follow the addresses."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.ipam.store.sqlite_ledger import SqliteLedger
from cnvnet.ipam.store.sqlite_schema import migrate
from tests.unit.ipam.store.conformance import HOLDER, KEY, LEASE, a_pool, lease, write


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


def test_a_removed_lease_leaves_nothing(store: Sqlite) -> None:
    store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    store.run(lambda ledger: ledger.change(LEASE, None, until=0))
    with sqlite3.connect(store.name) as reader:
        for table in ("leases", "addresses", "holders", "runs"):
            assert reader.execute(f"SELECT * FROM {table}").fetchall() == []
    reader.close()


def test_what_a_network_has_to_give_is_written_when_it_changes(store: Sqlite) -> None:
    store.run(lambda ledger: ledger.record_pool("net", a_pool()))
    before = store.run(lambda ledger: ledger.connection.total_changes)
    store.run(lambda ledger: ledger.record_pool("net", a_pool()))
    assert store.run(lambda ledger: ledger.connection.total_changes) == before


def test_one_address_or_mac_never_has_two_leases(store: Sqlite) -> None:
    store.run(lambda ledger: ledger.change(None, lease("a", "10.0.0.1", mac="0a:63:00:00:00:01"), until=0))
    for second in (lease("b", "10.0.0.1"), lease("b", "10.0.0.2", mac="0a:63:00:00:00:01")):
        with pytest.raises(CNIError, match="UNIQUE constraint"):
            write(store, second)
        assert store.look(lambda ledger: [each.key.vm for each in ledger.leases()]) == ["a"]


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


def ask_everything(ledger: SqliteLedger) -> None:
    """All that calls ask, and what they write."""
    ledger.change(None, LEASE, until=0)
    ledger.get(KEY)
    ledger.held_by("net", "c1", "eth0")
    list(ledger.held_leases("net"))
    ledger.owner_of("net", LEASE.ips[0])
    ledger.owner_of_mac("net", LEASE.mac)
    ledger.next_free("net", LEASE.ips[0], LEASE.ips[0])
    ledger.change(LEASE, LEASE._replace(holders=(), mac=""), until=0)
    ledger.change(LEASE._replace(holders=(), mac=""), None, until=50)
    ledger.cooldowns_of(KEY)
    ledger.expire("net", 50, everything=False)
    ledger.record_pool("net", a_pool())


def test_every_query_of_a_call_is_an_index_look_up() -> None:
    statements: list[str] = []
    with fresh_ledger() as ledger:
        connection = ledger.connection
        connection.set_trace_callback(statements.append)
        ask_everything(ledger)
        connection.set_trace_callback(None)
        plans = {
            (statement, row[3])
            for statement in set(statements)
            for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")
        }
    assert len(plans) > 12
    # By the network alone is all of it: only the question for all holders asks so.
    whole = {each for each in plans if each[1].startswith("SCAN") or each[1].endswith("KEY (network=?)")}
    # And a pool is two rows at most.
    assert {statement for statement, _ in whole if "pools" not in statement} == {
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
    assert ledger.cooldowns_of(KEY) == ()
    free = ledger.next_free("net", first, first + 4095)
    one = lease("vm1", str(free), mac="0a:63:00:00:00:01")._replace(holders=(HOLDER,))
    assert ledger.owner_of_mac("net", one.mac) is None
    ledger.change(None, one, until=0)
    assert ledger.owner_of("net", one.ips[0]) == one
    assert ledger.held_by("net", "c1", "eth0") == one
    ledger.change(one, None, until=0)
    ledger.connection.set_progress_handler(None, 1)
    assert free == first + number
    return count
