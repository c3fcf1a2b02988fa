"""Leases change as pods come and go: roles, policies, the dead, and MACs that follow from addresses."""

from __future__ import annotations

from functools import partial
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.ipam.lease import (
    LEAVING,
    NEVER,
    POD,
    VM_DELETED,
    Holder,
    Lease,
    LeaseKey,
    derive_mac,
    hold,
    in_order,
    is_dead,
    leave,
    same_vm,
    without,
)
from cnvnet.vm.identity import ACTIVE, ROLES, TARGET, TEMP

KEY = LeaseKey("net", "default", "vm1", "eth0")
EMPTY = Lease(KEY, (ip_address("10.0.0.5"),), since=1)


def pod(name: str, role: str = ACTIVE, since: int = 10) -> Holder:
    return Holder(name, "eth0", role, f"/run/netns/{name}", 4026530000, "boot-1", since)


def roles(lease: Lease) -> dict[str, str]:
    return {each.container_id: each.role for each in lease.holders}


def test_a_lease_is_held_while_it_has_a_holder_and_stopped_afterwards() -> None:
    held = hold(EMPTY, pod("a", since=10))
    assert (held.state, held.since) == ("held", 10)
    stopped = leave(held, "a", "eth0", now=20)
    assert (stopped.state, stopped.since, stopped.ips) == ("stopped", 20, EMPTY.ips)


def test_the_same_pod_asking_again_changes_nothing() -> None:
    held = hold(EMPTY, pod("a", since=10))
    assert hold(held, pod("a", since=99)) == held


def test_a_restarted_vm_has_its_new_pod_active_and_the_old_one_leaving() -> None:
    lease = hold(hold(EMPTY, pod("old")), pod("new"))
    assert roles(lease) == {"old": LEAVING, "new": ACTIVE}
    assert roles(leave(lease, "old", "eth0", now=20)) == {"new": ACTIVE}


def test_if_the_new_pod_comes_to_nothing_the_old_one_is_active_again() -> None:
    lease = hold(hold(EMPTY, pod("old")), pod("new"))
    assert roles(leave(lease, "new", "eth0", now=20)) == {"old": ACTIVE}


def test_a_target_leaves_the_source_active() -> None:
    lease = hold(hold(EMPTY, pod("source")), pod("target", TARGET))
    assert roles(lease) == {"source": ACTIVE, "target": TARGET}


def test_a_failed_migration_leaves_everything_as_it_was() -> None:
    before = hold(EMPTY, pod("source"))
    assert leave(hold(before, pod("target", TARGET)), "target", "eth0", now=20) == before


def test_the_target_is_active_when_the_source_has_gone() -> None:
    lease = hold(hold(EMPTY, pod("source")), pod("target", TARGET))
    after = leave(lease, "source", "eth0", now=20)
    assert roles(after) == {"target": ACTIVE}
    assert roles(hold(after, pod("target", TARGET))) == {"target": ACTIVE}


def test_a_target_comes_before_a_leaving_pod_when_the_active_one_goes() -> None:
    lease = hold(hold(EMPTY, pod("older", since=1)), pod("source", since=2))
    lease = hold(lease, pod("target", TARGET, since=0))
    assert roles(leave(lease, "source", "eth0", now=20)) == {"older": LEAVING, "target": ACTIVE}


def test_a_temporary_pod_never_becomes_active() -> None:
    lease = hold(hold(EMPTY, pod("a")), pod("prepare", TEMP))
    assert roles(leave(lease, "a", "eth0", now=20)) == {"prepare": TEMP}


def test_the_delete_of_another_interface_of_the_same_pod_is_none_of_ours() -> None:
    held = hold(EMPTY, pod("a"))
    assert leave(held, "a", "net1", now=20) is held


@pytest.mark.parametrize(
    ("key", "release", "ends"),
    [
        (KEY, VM_DELETED, False),
        (KEY, NEVER, False),
        (KEY, POD, True),
        (LeaseKey("net", "", "container", "eth0"), VM_DELETED, True),
        (LeaseKey("net", "", "container", "eth0"), NEVER, True),
    ],
)
def test_a_vm_keeps_its_lease_by_policy_and_a_container_never(
    key: LeaseKey, release: str, ends: bool
) -> None:
    assert EMPTY._replace(key=key, release=release).ends_with_its_holders is ends


@pytest.mark.parametrize(
    ("boot_id", "inode", "dead"),
    [
        ("boot-1", 4026530000, False),
        ("boot-1", 0, False),  # a process may keep the namespace
        ("boot-1", 99, False),
        ("boot-2", 0, True),
        ("boot-2", 99, True),
        ("boot-2", 4026530000, False),  # in doubt it lives
        ("", 0, False),
    ],
)
def test_only_a_holder_of_another_boot_whose_namespace_is_gone_is_dead(
    boot_id: str, inode: int, dead: bool
) -> None:
    assert is_dead(pod("a"), node="", boot_id=boot_id, inode=inode) is dead


@pytest.mark.parametrize(
    ("holders", "ours", "dead"),
    [("n1", "n1", True), ("", "n1", True), ("n2", "n1", False), ("n2", "", False)],
)
def test_the_boot_of_another_node_proves_nothing(holders: str, ours: str, dead: bool) -> None:
    holder = pod("a")._replace(node=holders)
    assert is_dead(holder, node=ours, boot_id="boot-2", inode=0) is dead


@pytest.mark.parametrize(
    ("recorded", "asked", "same"),
    [("", "", True), ("a", "", True), ("", "a", True), ("a", "a", True), ("a", "b", False)],
)
def test_an_unknown_uid_matches_each_vm(recorded: str, asked: str, same: bool) -> None:
    assert same_vm(recorded, asked) is same


def test_messages_call_a_vm_and_a_container_by_their_names() -> None:
    assert str(KEY) == "VM default/vm1 (eth0)"
    assert str(LeaseKey("net", "", "c0ffee", "eth1")) == "container c0ffee (eth1)"


def test_addresses_are_ordered_by_family_and_value() -> None:
    ips = [ip_address(text) for text in ("fd00::2", "10.0.0.9", "::1", "9.0.0.10")]
    assert [str(ip) for ip in in_order(ips)] == ["9.0.0.10", "10.0.0.9", "::1", "fd00::2"]


@given(st.ip_addresses(), st.integers(0, 99), st.text(max_size=20))
def test_a_derived_mac_has_the_prefix_and_follows_from_network_address_and_salt(
    ip: object, salt: int, network: str
) -> None:
    address = ip_address(str(ip))
    mac = derive_mac(b"\x0a\x63", network, address, salt)
    assert mac.startswith("0a:63:")
    assert len(bytes.fromhex(mac.replace(":", ""))) == 6
    assert mac == derive_mac(b"\x0a\x63", network, address, salt)


def test_networks_salts_and_addresses_have_macs_of_their_own() -> None:
    made = {
        derive_mac(b"\x0a\x63", network, ip_address(ip), salt)
        for network in ("a", "b")
        for ip in ("10.0.0.1", "10.0.0.2")
        for salt in (0, 1)
    }
    assert len(made) == 8


STEPS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from([*ROLES, "leave", "dead"]), st.integers(1, 9)),
    max_size=12,
)


@given(STEPS)
def test_at_most_one_holder_is_active_and_no_other_is_touched(
    steps: list[tuple[str, str, int]],
) -> None:
    lease = EMPTY
    for name, step, now in steps:
        before = {each.container_id for each in lease.holders}
        if step == "leave":
            lease = leave(lease, name, "eth0", now=now)
        elif step == "dead":
            lease = without(lease, partial(is_pod, name), now=now)
        else:
            lease = hold(lease, pod(name, step, now))
        gone = step in ("leave", "dead")
        assert {each.container_id for each in lease.holders} == (
            before - {name} if gone else before | {name}
        )
        active = [each for each in lease.holders if each.role == ACTIVE]
        assert len(active) <= 1
        if gone and name in before and not active:
            assert all(each.role == TEMP for each in lease.holders)


def is_pod(name: str, holder: Holder) -> bool:
    return holder.container_id == name
