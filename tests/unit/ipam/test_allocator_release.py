"""How addresses are freed: by an operator, after a cooldown, by GC."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import POD, LeaseKey
from cnvnet.ipam.pool import Pool
from cnvnet.vm.identity import ACTIVE
from tests.unit.ipam.store.conformance import Desk, a_pool, roles


def test_a_stopped_vm_is_released_and_its_address_free_at_once(desk: Desk) -> None:
    lease = desk.add("vm1", "c1", "uid", ips=("10.0.0.5",)).lease
    desk.delete("c1")
    assert desk.free("vm1")._replace(holders=lease.holders) == lease
    assert desk.lease("vm1") is None
    assert desk.add("vm2", "c2", ips=("10.0.0.5",)).lease.ips == lease.ips


def test_a_release_waits_for_what_is_left_of_the_cooldown_since_the_vm_was_stopped(desk: Desk) -> None:
    desk.add("vm1", "c1", cooldown=60, ips=("10.0.0.5",))
    desk.delete("c1")
    desk.now += 20
    desk.free("vm1")
    assert "for another 40 s" in desk.refusal("vm2", "c2", ips=("10.0.0.5",)).msg
    # Asked again, it means it.
    assert desk.free("vm1").ips == (ip_address("10.0.0.5"),)
    desk.add("vm2", "c2", ips=("10.0.0.5",))


def test_a_lease_that_is_held_is_released_by_force_only(desk: Desk) -> None:
    desk.add("vm1", "c1", cooldown=60, ips=("10.0.0.5",))
    before = desk.contents()
    with pytest.raises(CNIError) as caught:
        desk.free("vm1")
    assert (caught.value.code, caught.value.msg) == (
        11,
        "VM default/vm1 (eth0) is held by container c1: stop it first "
        "(--force takes 10.0.0.5 from a running guest)",
    )
    assert desk.contents() == before
    assert [each.container_id for each in desk.free("vm1", force=True).holders] == ["c1"]
    assert desk.lease("vm1") is None
    desk.delete("c1")
    assert "for another 60 s" in desk.refusal("vm2", "c2", ips=("10.0.0.5",)).msg


def test_a_pod_in_kubernetes_is_named_by_its_name(desk: Desk) -> None:
    desk.add("vm1", "c1", pod="prod/virt-launcher-vm1", ips=("10.0.0.5",))
    desk.add("", "c2", key=LeaseKey("net", "", "c2", "eth0"), pod="prod/web", ips=("10.0.0.6",))
    with pytest.raises(CNIError, match="is held by pod prod/virt-launcher-vm1: stop it first"):
        desk.free("vm1")
    text = "held by VM default/vm1 (eth0) in pod prod/virt-launcher-vm1"
    assert desk.refusal("vm2", "c9", ips=("10.0.0.5",)).msg.endswith(text)
    assert desk.refusal("vm2", "c9", ips=("10.0.0.6",)).msg.endswith(
        "held by container c2 (eth0) of pod prod/web"
    )


def test_what_has_no_lease_cannot_be_released(desk: Desk) -> None:
    with pytest.raises(CNIError) as caught:
        desk.free("vm1")
    assert (caught.value.code, caught.value.msg) == (7, "VM default/vm1 (eth0) has no lease in network net")


def test_a_reserved_vm_comes_and_has_what_was_reserved(desk: Desk) -> None:
    reserved = desk.reserve("vm1", "10.0.0.5", mac="0a:63:00:00:00:77")
    assert (
        "held by VM default/vm1 (eth0), which is stopped" in desk.refusal("vm2", "c2", ips=("10.0.0.5",)).msg
    )
    desk.collect()
    lease = desk.add("vm1", "c1", "uid").lease
    assert (lease.ips, lease.mac, lease.vm_uid) == (reserved.ips, "0a:63:00:00:00:77", "uid")


def test_a_reservation_in_a_pool_has_an_address_of_each_range_set(desk: Desk) -> None:
    given = a_pool("10.0.0.0/29", "fd00::/64")
    reserved = desk.reserve("vm1", "10.0.0.5", given=given)
    assert [ip.version for ip in reserved.ips] == [4, 6]
    assert desk.add("vm1", "c1", given=given).lease.ips == reserved.ips
    assert len(desk.reserve("vm2", given=given).ips) == 2


@pytest.mark.parametrize(
    ("ips", "mac", "given", "message"),
    [
        (("10.0.0.5",), "", None, "--ip: 10.0.0.5 is held by VM default/vm1 (eth0) in container c1"),
        (
            ("10.0.0.4",),
            "0a:63:00:00:00:01",
            None,
            "--mac: 0a:63:00:00:00:01 is held by VM default/vm1 (eth0)",
        ),
        (
            ("10.9.0.4",),
            "",
            None,
            "--ip: network net does not give out 10.9.0.4 (10.0.0.1-10.0.0.7)",
        ),
        (
            ("10.0.0.1",),
            "",
            None,
            "--ip: network net does not give out 10.0.0.1 (10.0.0.1-10.0.0.7)",
        ),
        (
            ("10.0.0.4", "10.0.0.6"),
            "",
            None,
            "--ip: 10.0.0.6 and 10.0.0.4 are both of range 10.0.0.1-10.0.0.7, which gives one address each",
        ),
        (("10.0.0.1",), "", a_pool(), "--ip: 10.0.0.1 is the gateway of network net"),
        ((), "", None, "VM default/vm2 (eth0): no address to reserve"),
    ],
)
def test_what_cannot_be_reserved_is_refused(
    desk: Desk, ips: tuple[str, ...], mac: str, given: Pool | None, message: str
) -> None:
    desk.add("vm1", "c1", ips=("10.0.0.5",), mac="0a:63:00:00:00:01")
    before = desk.contents()
    with pytest.raises(CNIError) as caught:
        desk.reserve("vm2", *ips, mac=mac, given=given)
    assert caught.value.code == 7
    assert caught.value.msg.startswith(message)
    assert desk.contents() == before


def test_each_range_set_of_a_family_has_a_reservation_of_its_own(desk: Desk) -> None:
    given = a_pool("10.0.0.0/29", "10.0.1.0/29", "fd00::/64")
    desk.add("vm1", "c1", given=given)
    with pytest.raises(CNIError, match=r"are both of range 10\.0\.1\.1-10\.0\.1\.7, which gives one"):
        desk.reserve("vm2", "10.0.1.4", "10.0.1.5")
    wanted = ("10.0.0.4", "10.0.1.5", "fd00::5")
    desk.reserve("vm2", *wanted)
    assert tuple(map(str, desk.add("vm2", "c2", given=given).lease.ips)) == wanted


def test_a_vm_that_has_a_lease_is_not_reserved_for(desk: Desk) -> None:
    desk.add("vm1", "c1", ips=("10.0.0.5",))
    with pytest.raises(CNIError, match=r"has a lease in network net already: 10\.0\.0\.5"):
        desk.reserve("vm1", "10.0.0.6")


def test_the_vm_itself_has_its_address_and_mac_back_while_it_cools_down(desk: Desk) -> None:
    first = desk.add("vm1", "c1", "uid", release=POD, cooldown=60, mac="0a:63:00:00:00:77").lease
    desk.delete("c1")
    again = desk.add("vm1", "c2", "uid", release=POD, cooldown=60).lease
    assert (again.ips, again.mac) == (first.ips, first.mac)


def test_gc_drops_dead_holders_but_no_reservation_of_a_vm(desk: Desk) -> None:
    lease = desk.add("vm1", "c1").lease
    desk.add("", "c2", key=LeaseKey("net", "", "c2", "eth0"))
    desk.add("vm3", "c3")
    desk.collect("c3")
    stopped = desk.lease("vm1")
    assert stopped is not None
    assert (stopped.state, stopped.ips) == ("stopped", lease.ips)
    assert roles(desk.lease("vm3")) == {"c3": ACTIVE}
    assert desk.store.run(lambda ledger: ledger.get(LeaseKey("net", "", "c2", "eth0"))) is None


def test_gc_ends_no_hold_of_another_node(desk: Desk) -> None:
    desk.add("vm1", "c1", node="n1")
    desk.add("vm2", "c2", node="n2")
    desk.add("vm3", "c3", node="")
    desk.collect(node="n1")
    assert [roles(desk.lease(vm)) for vm in ("vm1", "vm2", "vm3")] == [{}, {"c2": ACTIVE}, {}]


def test_gc_of_one_network_leaves_the_others_alone(desk: Desk) -> None:
    desk.add("", "c1", key=LeaseKey("other", "", "c1", "eth0"))
    desk.collect()
    assert desk.store.run(lambda ledger: ledger.get(LeaseKey("other", "", "c1", "eth0"))) is not None
