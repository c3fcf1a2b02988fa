"""What ADD, DEL and GC do to leases: single cases, and any order of them at once on the real store."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Generator
from contextlib import closing
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cnvnet.cni.errors import CNIError
from cnvnet.cni.fields import Address
from cnvnet.diagnostics import collected
from cnvnet.ipam import allocator
from cnvnet.ipam.allocator import Asked, Granted, Policy, Wish
from cnvnet.ipam.lease import LEAVING, NEVER, POD, POLICIES, VM_DELETED, Holder, Key, Lease, derive_mac
from cnvnet.ipam.pool import Pool, Range, pool
from cnvnet.ipam.sqlite import Sqlite
from cnvnet.vm.identity import ACTIVE, TARGET, TEMP

PREFIX = b"\x0a\x63"


def a_pool(subnet: str = "10.0.0.0/29", *more: str) -> Pool:
    """One range set for each subnet, its first address the gateway."""
    networks = [ip_network(each) for each in (subnet, *more)]
    return pool([[Range(each, each[1], each[-1], each[1])] for each in networks], [])


class Desk:
    """An allocator with a store, a clock and a list of who has died."""

    def __init__(self, folder: Path) -> None:
        self.store = Sqlite(str(folder))
        self.now = 1000
        self.dead: set[str] = set()

    def add(
        self,
        vm: str,
        container: str,
        uid: str = "",
        *,
        role: str = ACTIVE,
        ips: tuple[str, ...] = (),
        mac: str = "",
        release: str = VM_DELETED,
        cooldown: int = 0,
        given: Pool | None = None,
        prefix: bytes = PREFIX,
        key: Key | None = None,
    ) -> Granted:
        asked = Asked(
            key=key or Key("net", "default", vm, "eth0"),
            vm_uid=uid,
            holder=Holder(container, "eth0", role, f"/run/netns/{container}", 1, "boot", self.now),
            pool=given or a_pool(),
            policy=Policy(prefix, release, cooldown),
            wishes=tuple(
                Wish(ip_address(ip), f"args.cni.ips[{n}]", "args.cni.ips") for n, ip in enumerate(ips)
            ),
            mac=mac,
            mac_where="args.cni.mac",
            now=self.now,
        )
        with self.store.transaction() as ledger:
            return allocator.acquire(ledger, asked, lambda each: each.container_id in self.dead)

    def delete(self, container: str) -> None:
        with self.store.transaction() as ledger:
            allocator.release(ledger, "net", container, "eth0", now=self.now)

    def collect(self, *valid: str) -> None:
        with self.store.transaction() as ledger:
            allocator.collect(ledger, "net", {(each, "eth0") for each in valid}, now=self.now)

    def revert(self, granted: Granted, container: str) -> None:
        with self.store.transaction() as ledger:
            allocator.revert(ledger, granted, container, "eth0", now=self.now)

    def lease(self, vm: str) -> Lease | None:
        with self.store.transaction() as ledger:
            return ledger.get(Key("net", "default", vm, "eth0"))

    def refusal(self, vm: str, container: str, uid: str = "", **wanted: object) -> CNIError:
        """The error of an ADD that must be refused, and must have changed nothing."""
        before = self.dump()
        with pytest.raises(CNIError) as caught:
            self.add(vm, container, uid, **wanted)  # type: ignore[arg-type]
        assert self.dump() == before
        return caught.value

    def rows(self) -> list[object]:
        """What the store says, without the numbers of its rows and without cooldowns that are over."""
        queries = (
            """SELECT network, namespace, vm, interface, vm_uid, mac, source, release, cooldown, since
               FROM leases""",
            """SELECT l.namespace, vm, h.network, container_id, ifname, role, netns, inode, boot_id, h.since
               FROM holders h JOIN leases l ON l.id=h.lease""",
            """SELECT l.namespace, l.vm, l.interface, a.network, ip FROM addresses a JOIN leases l
               ON l.id=a.lease""",
            f"""SELECT network, ip, until, namespace, vm, interface, vm_uid, mac FROM addresses
               WHERE until>{self.now}""",
        )
        if not self.store.exists():
            return [[] for _ in queries]
        with closing(sqlite3.connect(self.store.name)) as reader:
            return [sorted(reader.execute(query), key=repr) for query in queries]

    def dump(self) -> list[str]:
        with closing(sqlite3.connect(self.store.name)) as reader:
            return list(reader.iterdump())


@pytest.fixture
def desk(tmp_path: Path) -> Generator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.store.close()


def roles(lease: Lease | None) -> dict[str, str]:
    return {each.container_id: each.role for each in lease.holders} if lease else {}


# -- restarts and identity


def test_a_restarted_vm_has_its_addresses_and_mac_again(desk: Desk) -> None:
    first = desk.add("vm1", "c1", "uid", given=a_pool("10.0.0.0/24", "fd00::/64")).lease
    desk.delete("c1")
    again = desk.add("vm1", "c2", "uid", given=a_pool("10.0.0.0/24", "fd00::/64")).lease
    assert (again.ips, again.mac) == (first.ips, first.mac)
    assert [ip.version for ip in again.ips] == [4, 6]
    assert again.mac == derive_mac(PREFIX, "net", first.ips[0])


def test_asking_again_for_the_same_container_is_the_same_answer_and_no_write(desk: Desk) -> None:
    first = desk.add("vm1", "c1")
    before = desk.dump()
    desk.now += 5
    assert desk.add("vm1", "c1").lease == first.lease
    assert desk.dump() == before


def test_a_late_delete_of_the_old_pod_does_not_touch_the_new_one(desk: Desk) -> None:
    desk.add("vm1", "old")
    desk.add("vm1", "new")
    assert roles(desk.lease("vm1")) == {"old": LEAVING, "new": ACTIVE}
    desk.delete("old")
    desk.delete("old")
    assert roles(desk.lease("vm1")) == {"new": ACTIVE}


def test_a_uid_learned_later_is_kept(desk: Desk) -> None:
    desk.add("vm1", "c1")
    desk.add("vm1", "c2", "uid")
    assert desk.add("vm1", "c3").lease.vm_uid == "uid"


def test_a_vm_recreated_under_the_name_of_one_that_still_runs_is_refused_naming_it(desk: Desk) -> None:
    desk.add("vm1", "c1", "old", ips=("10.0.0.5",))
    error = desk.refusal("vm1", "c2", "new")
    assert (error.code, error.msg) == (
        11,
        "VM default/vm1 (eth0): another VM of this name (UID old) still has 10.0.0.5 in container c1",
    )


def test_a_vm_recreated_under_the_name_of_a_stopped_one_is_a_new_vm(desk: Desk) -> None:
    desk.add("vm1", "c1", "old", ips=("10.0.0.5",), mac="0a:63:00:00:00:99")
    desk.delete("c1")
    lease = desk.add("vm1", "c2", "new", cooldown=0).lease
    assert lease.vm_uid == "new"
    assert lease.source == ""
    assert lease.mac != "0a:63:00:00:00:99"


def test_a_recreated_vm_does_not_get_the_addresses_that_cool_down_after_its_namesake(desk: Desk) -> None:
    old = desk.add("vm1", "c1", "old", cooldown=60).lease
    desk.delete("c1")
    new = desk.add("vm1", "c2", "new", cooldown=60).lease
    assert not set(new.ips) & set(old.ips)


def test_a_recreated_vm_inherits_what_is_never_released(desk: Desk) -> None:
    old = desk.add("vm1", "c1", "old", release=NEVER).lease
    desk.delete("c1")
    new = desk.add("vm1", "c2", "new", release=NEVER).lease
    assert (new.ips, new.mac, new.vm_uid) == (old.ips, old.mac, "new")


def test_a_holder_that_died_with_its_node_does_not_stand_in_the_way(desk: Desk) -> None:
    desk.add("vm1", "c1", "old")
    desk.dead.add("c1")
    assert roles(desk.add("vm1", "c2", "new").lease) == {"c2": ACTIVE}


def test_a_full_pool_gives_what_containers_had_that_died_with_their_node(desk: Desk) -> None:
    for number in range(4):
        desk.add("", f"c{number}", key=Key("net", "", f"c{number}", "eth0"))
    stopped = desk.add("vm1", "d1").lease.ips
    assert desk.refusal("vm2", "d2").code == 11
    desk.dead |= {"c1", "d1"}
    (given,) = desk.add("vm2", "d2").lease.ips
    assert given not in stopped
    # Of the dead one was a VM, which has its address still; no others are left to bury.
    assert desk.refusal("vm3", "d3").code == 11
    assert desk.add("vm1", "d4").lease.ips == stopped


def test_a_wished_address_may_be_one_that_a_dead_container_had(desk: Desk) -> None:
    (ip,) = desk.add("", "c1", key=Key("net", "", "c1", "eth0")).lease.ips
    assert str(ip) in desk.refusal("vm1", "d1", ips=(str(ip),)).msg
    desk.dead.add("c1")
    assert desk.add("vm1", "d1", ips=(str(ip),)).lease.ips == (ip,)


def test_a_container_that_comes_back_as_another_vm_leaves_its_former_lease(desk: Desk) -> None:
    desk.add("vm1", "c1")
    desk.add("vm2", "c1")
    assert roles(desk.lease("vm1")) == {}
    assert roles(desk.lease("vm2")) == {"c1": ACTIVE}


# -- migration


def test_a_target_gets_what_the_source_has_and_leaves_it_active(desk: Desk) -> None:
    source = desk.add("vm1", "source", "uid").lease
    target = desk.add("vm1", "target", "uid", role=TARGET).lease
    assert (target.ips, target.mac) == (source.ips, source.mac)
    assert roles(target) == {"source": ACTIVE, "target": TARGET}
    desk.delete("source")
    assert roles(desk.lease("vm1")) == {"target": ACTIVE}


def test_a_target_of_a_vm_that_runs_nowhere_is_refused(desk: Desk) -> None:
    desk.add("vm1", "c1")
    desk.delete("c1")
    for vm in ("vm1", "vm2"):
        error = desk.refusal(vm, "target", role=TARGET)
        assert (error.code, error.msg) == (
            7,
            f"role target: VM default/{vm} (eth0) runs nowhere in network net",
        )


def test_a_target_of_another_vm_of_the_same_name_is_refused(desk: Desk) -> None:
    desk.add("vm1", "c1", "old")
    error = desk.refusal("vm1", "target", "new", role=TARGET)
    assert error.msg == "role target: VM default/vm1 (eth0) has the UID old in container c1, not new"


def test_requests_are_ignored_during_a_migration_with_a_warning(desk: Desk) -> None:
    desk.add("vm1", "source", ips=("10.0.0.5",), mac="0a:63:00:00:00:01")
    with collected() as lines:
        lease = desk.add("vm1", "target", role=TARGET, ips=("10.0.0.6",), mac="0a:63:00:00:00:02").lease
    assert (lease.ips, lease.mac) == ((ip_address("10.0.0.5"),), "0a:63:00:00:00:01")
    assert lines == [
        "args.cni.ips[0]: 10.0.0.6 ignored: VM default/vm1 (eth0) is migrating and keeps its addresses",
        "args.cni.mac: 0a:63:00:00:00:02 ignored: VM default/vm1 (eth0) is migrating with 0a:63:00:00:00:01",
    ]


def test_a_temporary_pod_shares_the_addresses_without_becoming_active(desk: Desk) -> None:
    first = desk.add("vm1", "prepare", role=TEMP).lease
    lease = desk.add("vm1", "c1").lease
    assert lease.ips == first.ips
    assert roles(lease) == {"prepare": TEMP, "c1": ACTIVE}


# -- requests


def test_a_changed_request_moves_the_vm_and_frees_the_old_address_but_keeps_the_mac(desk: Desk) -> None:
    before = desk.add("vm1", "c1", ips=("10.0.0.5",)).lease
    desk.delete("c1")
    after = desk.add("vm1", "c2", ips=("10.0.0.6",)).lease
    assert (after.ips, after.mac, after.source) == ((ip_address("10.0.0.6"),), before.mac, "args.cni.ips")
    assert desk.add("vm2", "c3", ips=("10.0.0.5",)).lease.ips == (ip_address("10.0.0.5"),)


def test_a_vm_whose_request_is_gone_keeps_what_it_has(desk: Desk) -> None:
    desk.add("vm1", "c1", ips=("10.0.0.5",))
    desk.delete("c1")
    lease = desk.add("vm1", "c2").lease
    assert (lease.ips, lease.source) == ((ip_address("10.0.0.5"),), "args.cni.ips")


def test_a_vm_does_not_move_while_its_old_pod_still_has_the_address(desk: Desk) -> None:
    desk.add("vm1", "old", ips=("10.0.0.5",))
    error = desk.refusal("vm1", "new", ips=("10.0.0.6",))
    assert (error.code, error.msg) == (
        11,
        "VM default/vm1 (eth0): 10.0.0.5 cannot be given up while container old has it",
    )


@pytest.mark.parametrize(
    ("ip", "message"),
    [
        ("10.0.0.1", "is the gateway of network net"),
        ("10.0.0.0", "is the network address of network net"),
        ("10.0.0.7", "is the broadcast address of network net"),
        ("10.0.1.1", "is in no range of network net (10.0.0.0-10.0.0.7)"),
        ("fd00::5", "is in no range of network net (10.0.0.0-10.0.0.7)"),
        ("10.0.0.3", "is excluded in network net"),
    ],
)
def test_an_address_nobody_can_have_is_refused_with_the_reason(desk: Desk, ip: str, message: str) -> None:
    subnet = ip_network("10.0.0.0/29")
    holes = [(ip_address("10.0.0.3"), ip_address("10.0.0.4"))]
    given = pool([[Range(subnet, subnet[0], subnet[-1], subnet[1])]], holes)
    desk.add("other", "c0")
    error = desk.refusal("vm1", "c1", ips=(ip,), given=given)
    assert (error.code, error.msg) == (7, f"args.cni.ips[0]: {ip} {message}")


def test_two_addresses_of_one_range_are_refused(desk: Desk) -> None:
    desk.add("other", "c0")
    error = desk.refusal("vm1", "c1", ips=("10.0.0.5", "10.0.0.6"))
    text = "args.cni.ips[1]: 10.0.0.6 and 10.0.0.5 are both of range 10.0.0.1-10.0.0.7"
    assert (error.code, error.msg) == (7, f"{text}, which gives one address each")


def test_a_taken_address_is_refused_naming_its_holder(desk: Desk) -> None:
    desk.add("vm1", "c1", ips=("10.0.0.5",))
    error = desk.refusal("vm2", "c2", ips=("10.0.0.5",))
    text = "args.cni.ips[0]: 10.0.0.5 is held by VM default/vm1 (eth0)"
    assert (error.code, error.msg) == (7, f"{text} in container c1")
    desk.delete("c1")
    assert desk.refusal("vm2", "c2", ips=("10.0.0.5",)).msg == f"{text}, which is stopped"
    container = Key("net", "", "c9", "eth0")
    desk.add("", "c9", key=container, ips=("10.0.0.6",))
    error = desk.refusal("vm2", "c2", ips=("10.0.0.6",))
    assert error.msg == "args.cni.ips[0]: 10.0.0.6 is held by container c9 (eth0) in container c9"


def test_a_taken_mac_is_refused_naming_its_holder(desk: Desk) -> None:
    desk.add("vm1", "c1", mac="0a:63:00:00:00:01")
    error = desk.refusal("vm2", "c2", mac="0a:63:00:00:00:01")
    text = "args.cni.mac: 0a:63:00:00:00:01 is held by VM default/vm1 (eth0) in container c1"
    assert (error.code, error.msg) == (7, text)


def test_a_vm_does_not_change_its_mac_while_its_old_pod_still_has_it(desk: Desk) -> None:
    desk.add("vm1", "old", mac="0a:63:00:00:00:01")
    error = desk.refusal("vm1", "new", mac="0a:63:00:00:00:02")
    assert (error.code, error.msg) == (
        11,
        "VM default/vm1 (eth0): 0a:63:00:00:00:01 cannot be given up while container old has it",
    )


def test_a_wished_mac_replaces_the_sticky_one_and_stays(desk: Desk) -> None:
    desk.add("vm1", "c1")
    desk.delete("c1")
    assert desk.add("vm1", "c2", mac="0a:63:00:00:00:01").lease.mac == "0a:63:00:00:00:01"
    desk.delete("c2")
    assert desk.add("vm1", "c3").lease.mac == "0a:63:00:00:00:01"


def test_a_derived_mac_that_is_taken_gets_the_next_salt(desk: Desk) -> None:
    taken = derive_mac(PREFIX, "net", ip_address("10.0.0.6"))
    desk.add("vm1", "c1", mac=taken)
    lease = desk.add("vm2", "c2", ips=("10.0.0.6",)).lease
    assert lease.mac == derive_mac(PREFIX, "net", ip_address("10.0.0.6"), 1)


def test_without_a_prefix_nobody_gets_a_mac(desk: Desk) -> None:
    assert desk.add("vm1", "c1", prefix=b"", mac="0a:63:00:00:00:01").lease.mac == ""
    assert desk.add("vm2", "c2", prefix=b"", mac="0a:63:00:00:00:01").lease.mac == ""


# -- changed configurations


def test_a_vm_keeps_an_address_that_was_excluded_later(desk: Desk) -> None:
    lease = desk.add("vm1", "c1").lease
    desk.delete("c1")
    subnet = ip_network("10.0.0.0/29")
    narrowed = pool([[Range(subnet, subnet[1], subnet[-1], subnet[1])]], [(lease.ips[0], lease.ips[0])])
    assert desk.add("vm1", "c2", given=narrowed).lease.ips == lease.ips


def test_a_vm_moves_off_an_address_that_became_the_gateway(desk: Desk) -> None:
    desk.add("vm1", "c1", ips=("10.0.0.5",))
    desk.delete("c1")
    subnet = ip_network("10.0.0.0/29")
    moved = pool([[Range(subnet, subnet[1], subnet[-1], subnet[5])]], [])
    assert desk.add("vm1", "c2", given=moved).lease.ips != (ip_address("10.0.0.5"),)


def test_a_vm_moves_to_the_new_subnet_and_gains_a_second_family(desk: Desk) -> None:
    desk.add("vm1", "c1")
    desk.delete("c1")
    lease = desk.add("vm1", "c2", given=a_pool("10.9.0.0/29", "fd00::/64")).lease
    assert [str(ip).split(".")[1] for ip in lease.ips[:1]] == ["9"]
    assert lease.ips[1] in ip_network("fd00::/64")
    assert desk.lease("vm1") == lease


# -- release, cooldown, GC


def test_a_container_that_is_no_vm_has_its_address_for_its_own_life(desk: Desk) -> None:
    key = Key("net", "", "c1", "eth0")
    ip = desk.add("", "c1", key=key, release=NEVER).lease.ips[0]
    desk.delete("c1")
    assert desk.add("vm1", "c2", ips=(str(ip),)).lease.ips == (ip,)


def test_release_with_the_pod_frees_at_the_last_delete_only(desk: Desk) -> None:
    desk.add("vm1", "c1", release=POD)
    desk.add("vm1", "c2", release=POD)
    desk.delete("c1")
    assert desk.lease("vm1") is not None
    desk.delete("c2")
    assert desk.lease("vm1") is None


def test_a_freed_address_is_kept_from_others_while_it_cools_down(desk: Desk) -> None:
    desk.add("vm1", "c1", "uid", release=POD, cooldown=60, ips=("10.0.0.5",))
    desk.delete("c1")
    desk.now += 10
    error = desk.refusal("vm2", "c2", ips=("10.0.0.5",))
    assert (error.code, error.msg) == (
        7,
        "args.cni.ips[0]: 10.0.0.5 was given up by VM default/vm1 (eth0) and is kept free for another 50 s",
    )
    others = [desk.add(f"vm{number}", f"c{number}").lease.ips[0] for number in range(2, 6)]
    assert ip_address("10.0.0.5") not in others
    assert desk.refusal("vm6", "c6").msg.startswith("network net: no IP addresses available")
    desk.now += 50
    assert desk.add("vm6", "c6").lease.ips == (ip_address("10.0.0.5"),)


def test_a_pool_that_is_full_of_cooldowns_says_how_long(desk: Desk) -> None:
    for number in range(2, 7):
        desk.add(
            f"vm{number}", f"c{number}", release=POD, cooldown=60, given=a_pool("10.0.0.0/29", "fd00::/64")
        )
        desk.now += 1
    for number in (4, 3):
        desk.delete(f"c{number}")
        desk.now += 1
    text = "network net: no IP addresses available in range set: 10.0.0.1-10.0.0.7"
    cooling = "2 cool down, the first until 1970-01-01T00:17:45Z"
    error = desk.refusal("vm1", "c1")
    assert (error.code, error.msg) == (11, f"{text}: {cooling}")
    with pytest.raises(CNIError) as caught, desk.store.transaction() as ledger:
        allocator.ensure_room(ledger, "net", a_pool(), lambda _: False, now=desk.now)
    assert caught.value.msg == f"{text}: {cooling}"


def test_the_vm_itself_has_its_address_and_mac_back_while_it_cools_down(desk: Desk) -> None:
    first = desk.add("vm1", "c1", "uid", release=POD, cooldown=60, mac="0a:63:00:00:00:77").lease
    desk.delete("c1")
    again = desk.add("vm1", "c2", "uid", release=POD, cooldown=60).lease
    assert (again.ips, again.mac) == (first.ips, first.mac)


def test_gc_drops_dead_holders_but_no_reservation_of_a_vm(desk: Desk) -> None:
    lease = desk.add("vm1", "c1").lease
    desk.add("", "c2", key=Key("net", "", "c2", "eth0"))
    desk.add("vm3", "c3")
    desk.collect("c3")
    stopped = desk.lease("vm1")
    assert stopped is not None
    assert (stopped.state, stopped.ips) == ("stopped", lease.ips)
    assert roles(desk.lease("vm3")) == {"c3": ACTIVE}
    with desk.store.transaction() as ledger:
        assert ledger.get(Key("net", "", "c2", "eth0")) is None


def test_gc_of_one_network_leaves_the_others_alone(desk: Desk) -> None:
    desk.add("", "c1", key=Key("other", "", "c1", "eth0"))
    desk.collect()
    with desk.store.transaction() as ledger:
        assert ledger.get(Key("other", "", "c1", "eth0")) is not None


# -- undoing an ADD that failed later


def test_an_undone_first_add_leaves_no_lease_and_no_cooldown(desk: Desk) -> None:
    desk.add("other", "c0")
    before = desk.dump()
    desk.revert(desk.add("vm1", "c1", cooldown=600), "c1")
    assert [line for line in desk.dump() if "INSERT" in line] == [
        line for line in before if "INSERT" in line
    ]


def test_an_undone_restart_leaves_the_stopped_lease_with_its_old_address(desk: Desk) -> None:
    desk.add("vm1", "c1", "uid", ips=("10.0.0.5",))
    desk.now += 1
    desk.delete("c1")
    before = desk.lease("vm1")
    desk.now += 1
    desk.revert(desk.add("vm1", "c2", "uid", ips=("10.0.0.6",), cooldown=60), "c2")
    assert desk.lease("vm1") == before
    assert desk.add("vm2", "c3", ips=("10.0.0.6",)).lease.ips == (ip_address("10.0.0.6"),)


def test_an_undone_recreation_leaves_the_predecessor_as_it_was(desk: Desk) -> None:
    desk.add("vm1", "c1", "old", cooldown=60)
    desk.delete("c1")
    before = desk.lease("vm1")
    desk.revert(desk.add("vm1", "c2", "new"), "c2")
    assert desk.lease("vm1") == before


@pytest.mark.parametrize("key", [Key("net", "default", "vm1", "eth0"), Key("net", "", "c2", "eth0")])
def test_an_undone_add_leaves_a_cooldown_as_it_was(desk: Desk, key: Key) -> None:
    desk.add("vm1", "c1", "uid", release=POD, cooldown=3600, ips=("10.0.0.5",), key=key)
    desk.delete("c1")
    before = desk.rows()
    desk.now += 5
    granted = desk.add("vm1", "c2", "uid", release=POD, key=key)
    assert granted.lease.ips == (ip_address("10.0.0.5"),)
    desk.revert(granted, "c2")
    assert desk.rows() == before
    assert desk.refusal("vm2", "c3", ips=("10.0.0.5",)).code == 7


def test_an_undone_add_gives_a_container_back_what_it_held_as_somebody_else(desk: Desk) -> None:
    desk.add("vm1", "c1", release=POD, cooldown=60)
    before = desk.rows()
    desk.revert(desk.add("vm2", "c1"), "c1")
    assert desk.rows() == before


def test_an_undone_add_leaves_what_the_dead_had(desk: Desk) -> None:
    desk.add("", "c0", key=Key("net", "", "c0", "eth0"), ips=("10.0.0.5",))
    desk.dead.add("c0")
    before = desk.rows()
    desk.revert(desk.add("vm1", "c1", ips=("10.0.0.5",)), "c1")
    assert desk.rows() == before


def test_an_undone_add_does_not_undo_what_others_did_since(desk: Desk) -> None:
    granted = desk.add("vm1", "c1")
    desk.add("vm1", "c2")
    desk.revert(granted, "c1")
    assert roles(desk.lease("vm1")) == {"c2": ACTIVE}


def test_an_undone_move_does_not_take_an_address_back_from_its_new_owner(desk: Desk) -> None:
    desk.add("vm1", "c1", ips=("10.0.0.5",))
    desk.delete("c1")
    granted = desk.add("vm1", "c2", ips=("10.0.0.6",))
    desk.add("vm2", "c3", ips=("10.0.0.5",))
    desk.revert(granted, "c2")
    lease = desk.lease("vm1")
    assert lease is not None
    assert (lease.ips, lease.state) == ((ip_address("10.0.0.6"),), "stopped")


# -- everything at once


class Pod(NamedTuple):
    """A live pod and what it was told its addresses are."""

    vm: str
    uid: str
    ips: tuple[Address, ...]
    mac: str
    role: str


VMS = st.sampled_from(["vm1", "vm2", "vm3", "vm4"])
UIDS = st.sampled_from(["", "u1", "u2"])
CONTAINERS = st.sampled_from([f"c{number}" for number in range(6)])
WISHES = st.sampled_from([(), (), (), ("10.0.0.2",), ("10.0.0.3",), ("10.0.0.5",)])
MACS = st.sampled_from(["", "", "", "0a:63:00:00:00:01", "0a:63:00:00:00:02"])


class Cluster(RuleBasedStateMachine):
    """VMs start, stop, migrate, are recreated; pods die; ADDs fail: four VMs, five addresses."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.desk = Desk(self.folder)
        self.pods: dict[str, Pod] = {}
        self.serial = 0

    def teardown(self) -> None:
        if hasattr(self, "desk"):
            self.desk.store.close()
            shutil.rmtree(self.folder)

    @rule(
        vm=VMS,
        uid=UIDS,
        container=CONTAINERS,
        role=st.sampled_from([ACTIVE, ACTIVE, TARGET, TEMP]),
        ips=WISHES,
        mac=MACS,
        release=st.sampled_from(POLICIES),
        cooldown=st.sampled_from([0, 0, 30]),
        fails=st.booleans(),
    )
    def add(
        self,
        vm: str,
        uid: str,
        container: str,
        role: str,
        ips: tuple[str, ...],
        mac: str,
        release: str,
        cooldown: int,
        fails: bool,
    ) -> None:
        before = self.desk.lease(vm)
        known, rows, dead = self.pods.get(container), self.desk.rows(), set(self.desk.dead)
        if known is not None and known.vm != vm:
            return  # A live container does not change its VM; a test of its own covers it.
        self.desk.dead.discard(container)  # The name is a new container's now.
        try:
            with collected():
                granted = self.desk.add(
                    vm, container, uid, role=role, ips=ips, mac=mac, release=release, cooldown=cooldown
                )
        except CNIError as e:
            self.refused(e, vm, before)
            return
        lease = granted.lease
        if before is not None and before.ips and not ips and (not uid or uid == before.vm_uid):
            assert lease.ips == before.ips
            assert mac or lease.mac == before.mac
        if ips and role != TARGET:
            assert lease.ips == tuple(map(ip_address, ips))
        if fails:
            self.desk.revert(granted, container)
            self.desk.dead = dead
            assert self.desk.rows() == rows
            return
        self.pods[container] = Pod(vm, uid, lease.ips, lease.mac, role)

    def refused(self, error: CNIError, vm: str, before: Lease | None) -> None:
        assert error.code in (7, 11)
        assert self.desk.lease(vm) == before
        if "no IP addresses" in error.msg:
            assert self.taken() == {IPv4Address(f"10.0.0.{last}") for last in range(2, 7)}

    @rule(container=CONTAINERS)
    def delete(self, container: str) -> None:
        self.desk.delete(container)
        self.pods.pop(container, None)

    @rule(container=CONTAINERS)
    def die_unnoticed(self, container: str) -> None:
        """The pod is gone with its node; neither DEL nor GC says so."""
        if self.pods.pop(container, None) is not None:
            self.desk.dead.add(container)

    @rule()
    def collect(self) -> None:
        self.desk.collect(*self.pods)

    @rule(seconds=st.sampled_from([1, 10, 40]))
    def wait(self, seconds: int) -> None:
        self.desk.now += seconds

    @rule()
    def restart_the_program(self) -> None:
        self.desk.store.close()

    @invariant()
    def two_vms_never_share(self) -> None:
        if not hasattr(self, "pods"):
            return
        for name, one in self.pods.items():
            for other_name, other in self.pods.items():
                if one.vm != other.vm:
                    assert not set(one.ips) & set(other.ips), (name, other_name)
                    assert one.mac != other.mac, (name, other_name)
                elif one.uid and other.uid:
                    assert one.uid == other.uid, (name, other_name)

    @invariant()
    def every_live_pod_still_holds_what_it_was_given(self) -> None:
        if not hasattr(self, "pods"):
            return
        for container, pod in self.pods.items():
            lease = self.desk.lease(pod.vm)
            assert lease is not None
            assert lease.holder(container, "eth0") is not None
            assert set(pod.ips) <= set(lease.ips)

    @invariant()
    def the_runs_are_the_addresses(self) -> None:
        if not hasattr(self, "desk") or not self.desk.store.exists():
            return
        assert {IPv4Address(value) for value in self.runs()} == self.taken()

    def taken(self) -> set[IPv4Address]:
        with closing(sqlite3.connect(self.desk.store.name)) as reader:
            return {IPv4Address(ip[1:]) for (ip,) in reader.execute("SELECT ip FROM addresses")}

    def runs(self) -> list[int]:
        values: list[int] = []
        with closing(sqlite3.connect(self.desk.store.name)) as reader:
            for first, last in reader.execute("SELECT first, last FROM runs ORDER BY first"):
                begin, end = int.from_bytes(first[1:], "big"), int.from_bytes(last[1:], "big")
                assert not values or values[-1] + 1 < begin  # sorted, apart, and as long as can be
                values.extend(range(begin, end + 1))
        return values


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
