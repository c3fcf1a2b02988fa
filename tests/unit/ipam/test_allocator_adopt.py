"""A lease that another store had: adopted as it is, or not at all."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam import allocator
from cnvnet.ipam.lease import Lease, LeaseKey
from tests.unit.ipam.store.conformance import HOLDER, LEASE, Desk, lease, roles


def adopt(desk: Desk, wanted: Lease) -> Lease:
    return desk.store.run(lambda ledger: allocator.adopt(ledger, wanted, origin="there", now=desk.now))


def refusal(desk: Desk, wanted: Lease) -> str:
    before = desk.contents()
    with pytest.raises(CNIError) as caught:
        adopt(desk, wanted)
    assert (desk.contents(), caught.value.code) == (before, 11)
    return caught.value.msg


def on(node: str, of: Lease) -> Lease:
    return of._replace(holders=tuple(each._replace(node=node) for each in of.holders))


def test_it_is_there_as_it_was_with_its_holders(desk: Desk) -> None:
    wanted = on("n1", LEASE)
    adopted = adopt(desk, wanted)
    assert (adopted.ips, adopted.mac, adopted.vm_uid) == (LEASE.ips, LEASE.mac, LEASE.vm_uid)
    assert [each.container_id for each in adopted.holders] == ["c1"]
    assert adopt(desk, wanted) == adopted
    assert len(desk.contents().leases) == 1
    assert desk.store.knows("net", "c1", "eth0")


def test_what_another_key_has_stays_its_own(desk: Desk) -> None:
    adopt(desk, lease("vm1", "10.0.0.5", mac="0a:63:00:00:00:01"))
    assert refusal(desk, lease("vm2", "10.0.0.5")).startswith(
        "VM default/vm2 (eth0) has 10.0.0.5 in there, and here it is held by VM default/vm1 (eth0), which"
    )
    assert "has 0a:63:00:00:00:01 in there, and here it is held by VM default/vm1" in (
        refusal(desk, lease("vm2", "10.0.0.6", mac="0a:63:00:00:00:01"))
    )
    text = refusal(desk, lease("vm1", "10.0.0.6"))
    assert "has 10.0.0.5, 0a:63:00:00:00:01, and 10.0.0.6 in there: release one of them" in text


def test_a_mac_comes_with_it_where_there_was_none(desk: Desk) -> None:
    adopt(desk, lease("vm1", "10.0.0.5"))
    assert adopt(desk, lease("vm1", "10.0.0.5", mac="0a:63:00:00:00:01")).mac == "0a:63:00:00:00:01"


def test_an_address_that_cools_down_is_its_last_keys_alone(desk: Desk) -> None:
    desk.add("vm1", "c1", cooldown=60, node="n1", pod="default/p")
    (ip,) = desk.contents().leases[0].ips
    desk.delete("c1")
    desk.free("vm1")
    assert "here it is kept free for a while after VM default/vm1" in refusal(desk, lease("vm2", str(ip)))
    assert adopt(desk, lease("vm1", str(ip))).ips == (ip,)


def test_only_what_has_not_changed_is_dropped(desk: Desk) -> None:
    adopted = adopt(desk, lease("vm1", "10.0.0.5"))
    other = adopted._replace(ips=(ip_address("10.0.0.6"),))
    assert not desk.store.run(lambda ledger: allocator.drop(ledger, other))
    assert desk.store.run(lambda ledger: allocator.drop(ledger, adopted))
    assert desk.store.run(lambda ledger: allocator.drop(ledger, adopted))
    assert desk.contents().leases == []
    missing = Lease(LeaseKey("net", "default", "no", "eth0"), ())
    assert desk.store.run(lambda ledger: allocator.drop(ledger, missing))


def test_a_pod_that_came_later_stays_the_active_one(desk: Desk) -> None:
    adopt(desk, on("n1", LEASE._replace(holders=(HOLDER._replace(container_id="new", since=9),))))
    both = adopt(desk, on("n1", LEASE))
    assert roles(both) == {"new": "active", "c1": "leaving"}
