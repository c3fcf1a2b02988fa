"""What every store does alike: how actions are run, what a ledger says, and which errors come out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import Cooldown, Lease, in_order
from cnvnet.ipam.pool import Pool, Range, pool
from cnvnet.ipam.store.protocol import Ledger, Store, Usage
from tests.unit.ipam.store.conformance import (
    HOLDER,
    KEY,
    LEASE,
    ClosableStore,
    Desk,
    Factory,
    a_pool,
    lease,
    write,
)

# -- run and look


def test_a_run_returns_what_its_action_returns_and_keeps_what_it_writes(any_store: Store) -> None:
    def write_and_count(ledger: Ledger) -> int:
        ledger.change(None, LEASE, until=0)
        # An action sees its own changes, and of changes none but its own.
        assert ledger.get(KEY) == LEASE
        return len(ledger.changes)

    assert any_store.run(write_and_count) == 1
    assert any_store.run(lambda ledger: (ledger.get(KEY), ledger.changes)) == (LEASE, [])


@pytest.mark.parametrize("error", [CNIError(11, "later"), KeyboardInterrupt("now")])
def test_an_action_that_raises_changes_nothing(any_store: Store, error: BaseException) -> None:
    write(any_store, lease("vm0", "10.0.0.9"))

    def broken_off(ledger: Ledger) -> None:
        ledger.change(None, LEASE, until=0)
        ledger.change(lease("vm0", "10.0.0.9"), None, until=50)
        ledger.record_pool("net", a_pool())
        raise error

    with pytest.raises(type(error)) as caught:
        any_store.run(broken_off)
    assert caught.value is error
    assert any_store.look(lambda ledger: list(ledger.leases())) == [lease("vm0", "10.0.0.9")]
    assert any_store.look(lambda ledger: (list(ledger.cooldowns()), ledger.recorded_pools("net"))) == (
        [],
        {},
    )


def test_a_look_sees_everything_and_keeps_nothing(any_store: Store) -> None:
    write(any_store, LEASE)

    def write_all_the_same(ledger: Ledger) -> Lease | None:
        known = ledger.get(KEY)
        ledger.change(known, None, until=0)
        return known

    assert any_store.look(write_all_the_same) == LEASE
    assert any_store.look(lambda ledger: ledger.get(KEY)) == LEASE


def test_looking_where_nothing_is_makes_nothing(open_store: Factory, tmp_path: Path) -> None:
    empty = open_store(tmp_path / "state")
    assert empty.look(lambda ledger: list(ledger.leases())) == []
    assert not empty.knows("net", "c1", "eth0")
    empty.ready()
    empty.close()
    assert list(tmp_path.iterdir()) == []


def test_two_programs_see_what_the_other_has_written(open_store: Factory, tmp_path: Path) -> None:
    one, other = open_store(tmp_path / "state"), open_store(tmp_path / "state")
    write(one, LEASE)
    assert other.run(lambda ledger: ledger.get(KEY)) == LEASE
    other.run(lambda ledger: ledger.change(LEASE, None, until=0))
    assert one.look(lambda ledger: ledger.get(KEY)) is None
    one.close()
    other.close()


def test_concurrent_runs_never_give_an_address_twice(open_store: Factory, tmp_path: Path) -> None:
    stores = [open_store(tmp_path / "state") for _ in range(2)]

    def allocate(number: int) -> Lease:
        return Desk(stores[number % 2]).add(f"vm{number}", f"c{number}", given=a_pool("10.0.0.0/24")).lease

    with ThreadPoolExecutor(4) as threads:
        granted = list(threads.map(allocate, range(40)))
    assert len({each.ips for each in granted}) == len({each.mac for each in granted}) == 40
    assert set(stores[0].look(lambda ledger: list(ledger.leases()))) == set(granted)
    for each in stores:
        each.close()


# -- knows and ready


def test_a_store_knows_the_interfaces_that_hold_something(any_store: ClosableStore) -> None:
    desk = Desk(any_store)
    desk.add("vm1", "c1")
    assert any_store.knows("net", "c1", "eth0")
    for other in (("net", "c1", "eth1"), ("net", "c2", "eth0"), ("other", "c1", "eth0")):
        assert not any_store.knows(*other)
    desk.delete("c1")
    # The VM keeps its lease, the interface has ended.
    assert desk.lease("vm1") is not None
    assert not any_store.knows("net", "c1", "eth0")


def test_a_store_with_a_full_pool_is_ready(any_store: ClosableStore) -> None:
    desk = Desk(any_store)
    for number in range(5):
        desk.add(f"vm{number}", f"c{number}")
    assert desk.refusal("vm9", "c9").code == 11
    any_store.ready()


# -- errors


def test_errors_name_what_stands_in_the_way_and_the_remedy(any_store: ClosableStore) -> None:
    desk = Desk(any_store)
    for number in range(5):
        desk.add(f"vm{number}", f"c{number}", ips=(f"10.0.0.{number + 2}",))
    desk.delete("c0")
    desk.now += 120
    full, taken = desk.refusal("vm9", "c9"), desk.refusal("vm9", "c9", ips=("10.0.0.3",))
    assert (full.code, full.msg, full.details) == (
        11,
        "network net: all 5 addresses of 10.0.0.1-10.0.0.7 are taken: 4 in use, 1 kept for a stopped VM "
        "(default/vm0 since 2 min): cnvctl leases release default/vm0 --network net frees one, or give the "
        "network a wider range",
        "no IP addresses available in range set: 10.0.0.1-10.0.0.7",
    )
    assert (taken.code, taken.msg) == (
        7,
        "args.cni.ips[0]: 10.0.0.3 is held by VM default/vm1 (eth0) in container c1",
    )


# -- what a ledger says


def test_a_lease_is_read_as_it_was_written(any_store: Store) -> None:
    any_store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    assert any_store.run(lambda ledger: ledger.get(KEY)) == LEASE
    assert any_store.run(lambda ledger: ledger.held_by("net", "c1", "eth0")) == LEASE
    assert any_store.run(lambda ledger: ledger.owner_of("net", ip_address("fd00::5"))) == LEASE
    assert any_store.run(lambda ledger: ledger.owner_of_mac("net", LEASE.mac)) == LEASE
    assert any_store.run(lambda ledger: list(ledger.held_leases("net"))) == [LEASE]


def test_networks_are_apart(any_store: Store) -> None:
    any_store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    assert any_store.run(lambda ledger: ledger.get(KEY._replace(network="other"))) is None
    assert any_store.run(lambda ledger: ledger.held_by("other", "c1", "eth0")) is None
    assert any_store.run(lambda ledger: ledger.owner_of("other", ip_address("10.0.0.5"))) is None
    assert any_store.run(lambda ledger: ledger.owner_of_mac("other", LEASE.mac)) is None
    assert any_store.run(lambda ledger: list(ledger.held_leases("other"))) == []
    other = LEASE._replace(key=KEY._replace(network="other"))
    any_store.run(lambda ledger: ledger.change(None, other, until=0))
    assert any_store.run(lambda ledger: ledger.owner_of("other", ip_address("10.0.0.5"))) == other
    assert any_store.run(lambda ledger: ledger.owner_of("net", ip_address("10.0.0.5"))) == LEASE


def test_a_change_rewrites_what_is_different(any_store: Store) -> None:
    moved = LEASE._replace(
        ips=in_order(map(ip_address, ("10.0.0.6", "fd00::5"))),
        mac="",
        vm_uid="uid-2",
        holders=(HOLDER._replace(role="leaving"), HOLDER._replace(container_id="c2")),
    )
    any_store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    any_store.run(lambda ledger: ledger.change(LEASE, moved, until=0))
    assert any_store.run(lambda ledger: ledger.get(KEY)) == moved
    assert any_store.run(lambda ledger: ledger.owner_of("net", ip_address("10.0.0.5"))) is None
    assert any_store.run(
        lambda ledger: ledger.next_free("net", ip_address("10.0.0.5"), ip_address("10.0.0.9"))
    ) == ip_address("10.0.0.5")


def test_given_up_addresses_cool_down_until_they_expire(any_store: Store) -> None:
    any_store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    any_store.run(lambda ledger: ledger.change(LEASE, None, until=100))
    cooling = [Cooldown(KEY, ip, LEASE.mac, LEASE.vm_uid, 100) for ip in LEASE.ips]
    assert any_store.run(lambda ledger: list(ledger.cooldowns_of(KEY))) == cooling
    assert any_store.run(lambda ledger: ledger.owner_of("net", LEASE.ips[0])) == cooling[0]
    assert any_store.run(lambda ledger: ledger.next_free("net", LEASE.ips[0], LEASE.ips[0])) is None
    any_store.run(lambda ledger: ledger.expire("net", 99, everything=True))
    assert any_store.run(lambda ledger: list(ledger.cooldowns_of(KEY))) == cooling
    any_store.run(lambda ledger: ledger.expire("net", 100, everything=False))
    assert any_store.run(lambda ledger: ledger.cooldowns_of(KEY)) == ()
    assert any_store.run(lambda ledger: ledger.next_free("net", LEASE.ips[0], LEASE.ips[0])) == LEASE.ips[0]


def test_the_leases_of_all_networks_or_one_are_listed_in_the_order_of_their_keys(any_store: Store) -> None:
    other = lease("vm0", "10.0.0.9", network="another")
    stopped = lease("vm0", "10.0.0.7", mac="0a:63:00:00:00:07")
    second = HOLDER._replace(container_id="c0", role="target", node="n1", pod="ns/p", pod_uid="u")
    held = LEASE._replace(holders=(second, HOLDER))
    write(any_store, held, stopped, other)
    assert any_store.look(lambda ledger: list(ledger.leases())) == [other, stopped, held]
    assert any_store.look(lambda ledger: list(ledger.leases("net"))) == [stopped, held]
    assert any_store.look(lambda ledger: list(ledger.leases("nowhere"))) == []


def test_what_cools_down_is_listed_with_its_times(any_store: Store) -> None:
    other = lease("vm0", "10.0.0.9", network="another")
    write(any_store, LEASE, other)
    any_store.run(lambda ledger: ledger.change(LEASE, None, until=100, since=40))
    any_store.run(lambda ledger: ledger.change(other, None, until=100, since=40))
    cooling = [Cooldown(KEY, ip, LEASE.mac, LEASE.vm_uid, 100, 40) for ip in LEASE.ips]
    assert any_store.look(lambda ledger: list(ledger.cooldowns("net"))) == cooling
    assert any_store.look(lambda ledger: list(ledger.cooldowns())) == [
        Cooldown(other.key, other.ips[0], "", "", 100, 40),
        *cooling,
    ]


def ranges(*subnets: str, excluded: str = "") -> Pool:
    networks = [ip_network(each) for each in subnets]
    sets = [[Range(each, each[1], each[-1], each[1])] for each in networks]
    return pool(sets, [(ip_address(excluded), ip_address(excluded))] if excluded else [])


def test_addresses_are_counted_by_network_family_and_state(any_store: Store) -> None:
    def fill(ledger: Ledger) -> None:
        ledger.record_pool("net", ranges("10.0.0.0/29", "fd00::/64", excluded="10.0.0.4"))
        ledger.change(None, LEASE, until=0)
        ledger.change(None, lease("stopped", "10.0.0.2"), until=0)
        for number, until in ((3, 9), (6, 8)):
            one = lease("gone", f"10.0.0.{number}")
            ledger.change(None, one, until=0)
            ledger.change(one, None, until=until)
        ledger.change(None, lease("vm", "10.0.0.2", network="unknown"), until=0)

    any_store.run(fill)
    net = [
        Usage("net", 4, "10.0.0.1-10.0.0.7", active=1, stopped=1, cooling=1, free=1),
        Usage("net", 6, "fd00::1-fd00::ffff:ffff:ffff:ffff", 1, 0, 0, 2**64 - 3),
    ]
    assert any_store.look(lambda ledger: list(ledger.usage("net", now=8))) == net
    assert any_store.look(lambda ledger: list(ledger.usage(now=8))) == [
        *net,
        Usage("unknown", 4, "", 0, 1, 0, None),
    ]


def test_an_address_that_was_excluded_later_is_used_but_takes_nothing_from_what_is_free(
    any_store: Store,
) -> None:
    any_store.run(lambda ledger: ledger.change(None, lease("vm", "10.0.0.4"), until=0))
    any_store.run(lambda ledger: ledger.record_pool("net", ranges("10.0.0.0/29", "fd00::/64")))
    any_store.run(lambda ledger: ledger.record_pool("net", ranges("10.0.0.0/29", excluded="10.0.0.4")))
    assert any_store.run(lambda ledger: list(ledger.usage(now=8))) == [
        Usage("net", 4, "10.0.0.1-10.0.0.7", 0, 1, 0, 4)
    ]


def test_a_cooling_address_can_be_taken_back(any_store: Store) -> None:
    any_store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    any_store.run(lambda ledger: ledger.change(LEASE, None, until=100))
    any_store.run(lambda ledger: ledger.change(None, LEASE, until=0))
    assert any_store.run(lambda ledger: ledger.get(KEY)) == LEASE
    assert any_store.run(lambda ledger: ledger.cooldowns_of(KEY)) == ()
