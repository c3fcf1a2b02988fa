"""An ADD that fails after its allocation leaves the leases as they were."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from cnvnet.ipam.lease import POD, LeaseKey
from cnvnet.vm.identity import ACTIVE, TEMP
from tests.unit.ipam.store.conformance import Desk, roles


def test_an_undone_first_add_leaves_no_lease_and_no_cooldown(desk: Desk) -> None:
    desk.add("other", "c0")
    before = desk.contents()
    desk.revert(desk.add("vm1", "c1", cooldown=600), "c1")
    assert desk.contents() == before


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


@pytest.mark.parametrize(
    "key", [LeaseKey("net", "default", "vm1", "eth0"), LeaseKey("net", "", "c2", "eth0")]
)
def test_an_undone_add_leaves_a_cooldown_as_it_was(desk: Desk, key: LeaseKey) -> None:
    desk.add("vm1", "c1", "uid", release=POD, cooldown=3600, ips=("10.0.0.5",), key=key)
    desk.delete("c1")
    before = desk.rows()
    desk.now += 5
    granted = desk.add("vm1", "c2", "uid", release=POD, key=key)
    assert granted.lease.ips == (ip_address("10.0.0.5"),)
    desk.revert(granted, "c2")
    assert desk.rows() == before
    assert desk.refusal("vm2", "c3", ips=("10.0.0.5",)).code == 7


def test_an_undone_add_gives_a_container_back_what_it_held_for_another_vm(desk: Desk) -> None:
    desk.add("vm1", "c1", release=POD, cooldown=60)
    before = desk.rows()
    desk.revert(desk.add("vm2", "c1"), "c1")
    assert desk.rows() == before


def test_an_undone_add_leaves_what_the_dead_had(desk: Desk) -> None:
    desk.add("", "c0", key=LeaseKey("net", "", "c0", "eth0"), ips=("10.0.0.5",))
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


def test_an_undone_add_gives_a_container_of_a_dead_ones_name_back_to_its_former_vm(desk: Desk) -> None:
    """Both leases gain a holder again: of the one that the container had, and of the one that it joined."""
    desk.add("vm1", "c0")
    desk.add("vm2", "c2")
    desk.add("vm2", "c4")
    desk.dead.add("c4")
    before = desk.rows()
    granted = desk.add("vm2", "c0", role=TEMP)
    desk.revert(granted, "c0")
    assert desk.rows() == before
    assert desk.store.knows("net", "c0", "eth0")
    desk.delete("c0")
    assert roles(desk.lease("vm1")) == {}
