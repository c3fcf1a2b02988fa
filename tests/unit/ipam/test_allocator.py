"""What ADD, DEL and GC do to leases: single cases over every store, and any order of them at once."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from cnvnet.ipam.lease import LEAVING, NEVER, POD, LeaseKey, derive_mac
from cnvnet.ipam.pool import Range, pool
from cnvnet.vm.identity import ACTIVE, TARGET, TEMP
from tests.unit.ipam.store.conformance import PREFIX, Desk, a_pool, roles

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
    before = desk.contents()
    desk.now += 5
    assert desk.add("vm1", "c1").lease == first.lease
    assert desk.contents() == before


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
        desk.add("", f"c{number}", key=LeaseKey("net", "", f"c{number}", "eth0"))
    stopped = desk.add("vm1", "d1").lease.ips
    assert desk.refusal("vm2", "d2").code == 11
    desk.dead |= {"c1", "d1"}
    (given,) = desk.add("vm2", "d2").lease.ips
    assert given not in stopped
    # One of the dead was a VM's, which has its address still; no others are left to reap.
    assert desk.refusal("vm3", "d3").code == 11
    assert desk.add("vm1", "d4").lease.ips == stopped


def test_a_requested_address_may_be_one_that_a_dead_container_had(desk: Desk) -> None:
    (ip,) = desk.add("", "c1", key=LeaseKey("net", "", "c1", "eth0")).lease.ips
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


def test_a_target_whose_instance_has_lost_its_vm_joins_the_pod_that_runs_it(desk: Desk) -> None:
    """After a deletion with --cascade=orphan the instance is its own VM, with another UID."""
    lease = desk.add("vm1", "c1", "vm", pod_uid="source-uid").lease
    moved = desk.add("vm1", "c2", "instance", role=TARGET, kin=frozenset({"source-uid", "target-uid"})).lease
    assert (moved.ips, moved.mac, moved.vm_uid) == (lease.ips, lease.mac, "vm")
    error = desk.refusal("vm1", "c3", "instance", role=TARGET, kin=frozenset({"another-uid"}))
    assert "has the UID vm in" in error.msg
    # The pod that runs it may be added again, and the lease is the instance's then.
    desk.delete("c2")
    again = desk.add("vm1", "c1", "instance", pod_uid="source-uid", kin=frozenset({"source-uid"})).lease
    assert (again.ips, again.mac, again.vm_uid) == (lease.ips, lease.mac, "instance")


def test_requests_are_ignored_during_a_migration_with_a_warning(desk: Desk) -> None:
    desk.add("vm1", "source", ips=("10.0.0.5",), mac="0a:63:00:00:00:01")
    lease, _, remarks = desk.add("vm1", "target", role=TARGET, ips=("10.0.0.6",), mac="0a:63:00:00:00:02")
    assert (lease.ips, lease.mac) == ((ip_address("10.0.0.5"),), "0a:63:00:00:00:01")
    assert remarks == (
        "args.cni.ips[0]: 10.0.0.6 ignored: VM default/vm1 (eth0) is migrating and keeps its addresses",
        "args.cni.mac: 0a:63:00:00:00:02 ignored: VM default/vm1 (eth0) is migrating with 0a:63:00:00:00:01",
    )


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
def test_an_address_that_no_container_can_have_is_refused_with_the_reason(
    desk: Desk, ip: str, message: str
) -> None:
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
    assert desk.refusal("vm2", "c2", ips=("10.0.0.5",)).msg == (
        f"{text}, which is stopped (cnvctl leases release default/vm1 --network net frees it)"
    )
    container = LeaseKey("net", "", "c9", "eth0")
    desk.add("", "c9", key=container, ips=("10.0.0.6",))
    error = desk.refusal("vm2", "c2", ips=("10.0.0.6",))
    assert error.msg == "args.cni.ips[0]: 10.0.0.6 is held by container c9 (eth0)"


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


def test_a_requested_mac_replaces_the_sticky_one_and_stays(desk: Desk) -> None:
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


def test_without_a_prefix_no_lease_has_a_mac(desk: Desk) -> None:
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
    key = LeaseKey("net", "", "c1", "eth0")
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
    assert "1 cooling down" in desk.refusal("vm6", "c6").msg
    desk.now += 50
    assert desk.add("vm6", "c6").lease.ips == (ip_address("10.0.0.5"),)


# -- a pool that is full


def full(desk: Desk) -> str:
    """The message of an ADD that gets no address."""
    error = desk.refusal("another", "another")
    assert (error.code, error.details) == (11, "no IP addresses available in range set: 10.0.0.1-10.0.0.7")
    return error.msg


ALL_TAKEN = "network net: all 5 addresses of 10.0.0.1-10.0.0.7 are taken"


def test_a_full_pool_names_its_holders_and_how_to_get_an_address(desk: Desk) -> None:
    for number in range(5):
        desk.add(f"vm{number}", f"c{number}", cooldown=60)
    assert full(desk) == f"{ALL_TAKEN}: 5 in use: give the network a wider range"
    for number, stopped in ((3, 86400 * 2), (0, 7200), (4, 180), (2, 5)):
        desk.delete(f"c{number}")
        desk.now += stopped
    release = "cnvctl leases release default/vm3 --network net"
    desk.now += 86400
    assert full(desk) == (
        f"{ALL_TAKEN}: 1 in use, 4 kept for stopped VMs (default/vm3 since 3 d, default/vm0 since 1 d, "
        f"default/vm4 since 1 d, …): {release} frees one, or give the network a wider range"
    )
    desk.add("vm3", "c3")
    desk.add("vm0", "c0")
    desk.add("vm4", "c4")
    assert full(desk) == (
        f"{ALL_TAKEN}: 4 in use, 1 kept for a stopped VM (default/vm2 since 1 d): "
        f"{release.replace('vm3', 'vm2')} frees one, or give the network a wider range"
    )


def test_a_pool_that_is_full_of_cooldowns_says_how_long(desk: Desk) -> None:
    for number in range(5):
        desk.add(f"vm{number}", f"c{number}", release=POD, cooldown=60)
    for number in (4, 3):
        desk.now += 1
        desk.delete(f"c{number}")
    assert full(desk) == (
        f"{ALL_TAKEN}: 3 in use, 2 cooling down (the first until 1970-01-01T00:17:41Z): "
        "give the network a wider range"
    )
