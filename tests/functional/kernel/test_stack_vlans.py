"""VLANs of bridges and their ports, and dummies: on a kernel that has them and on the fake one."""

from __future__ import annotations

import errno

import pytest

from cnvnet.kernel.links import (
    Bridge,
    ChangeLink,
    CreateDummy,
)
from cnvnet.kernel.vlans import AddVlans, DeleteVlans, VlanRange
from tests.functional.kernel.conftest import World, refused, seen


def test_a_dummy_is_a_link_like_any_other(vlan_world: World) -> None:
    [made] = vlan_world.pod.apply(CreateDummy("d0", mac="02:00:00:00:00:01", mtu=1400))
    assert (made.name, made.kind, made.mac, made.mtu, made.up) == (
        "d0",
        "dummy",
        "02:00:00:00:00:01",
        1400,
        False,
    )
    vlan_world.pod.apply(ChangeLink(made.ifindex, up=True))
    assert seen(vlan_world.pod, "d0").up
    assert refused(vlan_world.pod, CreateDummy("d0")).errno == errno.EEXIST


DEFAULT_VLAN = VlanRange(1, 1, pvid=True, untagged=True)


def test_a_new_port_of_a_filtering_bridge_has_the_default_vlan(vlan_world: World) -> None:
    bridge = vlan_world.bridge(vlan_filtering=True)
    assert seen(vlan_world.host, "br0").bridge == Bridge(vlan_filtering=True, default_pvid=1)
    port = vlan_world.port(master=bridge.ifindex)
    assert vlan_world.host.vlans(port.ifindex) == [DEFAULT_VLAN]
    assert vlan_world.host.vlans(bridge.ifindex) == [DEFAULT_VLAN]
    vlan_world.host.apply(ChangeLink(port.ifindex, master=0))
    assert vlan_world.host.vlans(port.ifindex) == []


def test_ranges_are_added_read_and_deleted_as_ranges(vlan_world: World) -> None:
    bridge = vlan_world.bridge(vlan_filtering=True)
    port, other = (vlan_world.port(f"veth{i}", peer=f"eth{i}", master=bridge.ifindex) for i in range(2))
    vlan_world.host.apply(
        DeleteVlans(port.ifindex, (VlanRange(1, 1),)),
        AddVlans(port.ifindex, (VlanRange(33, 33, pvid=True, untagged=True), VlanRange(100, 4094))),
    )
    native = VlanRange(33, 33, pvid=True, untagged=True)
    assert vlan_world.host.vlans(port.ifindex) == [native, VlanRange(100, 4094)]
    assert vlan_world.host.vlans(other.ifindex) == [DEFAULT_VLAN]
    vlan_world.host.apply(DeleteVlans(port.ifindex, (VlanRange(1, 32), VlanRange(200, 300))))
    assert vlan_world.host.vlans(port.ifindex) == [native, VlanRange(100, 199), VlanRange(301, 4094)]


def test_the_bridge_itself_has_vlans(vlan_world: World) -> None:
    bridge = vlan_world.bridge(vlan_filtering=True)
    vlan_world.host.apply(AddVlans(bridge.ifindex, (VlanRange(33, 34),), on_bridge=True))
    assert vlan_world.host.vlans(bridge.ifindex) == [DEFAULT_VLAN, VlanRange(33, 34)]
    wanted = AddVlans(bridge.ifindex, (VlanRange(35, 35),))
    assert refused(vlan_world.host, wanted).errno == errno.EOPNOTSUPP


def test_a_new_pvid_takes_the_place_of_the_old(vlan_world: World) -> None:
    port = vlan_world.port(master=vlan_world.bridge(vlan_filtering=True).ifindex)
    vlan_world.host.apply(AddVlans(port.ifindex, (VlanRange(7, 7, pvid=True),)))
    assert vlan_world.host.vlans(port.ifindex) == [
        VlanRange(1, 1, untagged=True),
        VlanRange(7, 7, pvid=True),
    ]
    vlan_world.host.apply(AddVlans(port.ifindex, (VlanRange(7, 7),)))
    assert vlan_world.host.vlans(port.ifindex) == [VlanRange(1, 1, untagged=True), VlanRange(7, 7)]


@pytest.mark.parametrize(
    "wrong", [VlanRange(0, 0), VlanRange(4095, 4095), VlanRange(5, 6, pvid=True)], ids=str
)
def test_impossible_vlans_are_refused(vlan_world: World, wrong: VlanRange) -> None:
    port = vlan_world.port(master=vlan_world.bridge(vlan_filtering=True).ifindex)
    assert refused(vlan_world.host, AddVlans(port.ifindex, (wrong,))).errno == errno.EINVAL


def test_a_trunk_of_two_thousand_separate_vlans_fits_one_operation(vlan_world: World) -> None:
    port = vlan_world.port(master=vlan_world.bridge(vlan_filtering=True).ifindex)
    wanted = tuple(VlanRange(vid, vid) for vid in range(2, 4095, 2))
    vlan_world.host.apply(AddVlans(port.ifindex, wanted))
    assert vlan_world.host.vlans(port.ifindex) == [DEFAULT_VLAN, *wanted]


@pytest.mark.parametrize(
    ("key", "family"),
    [("net/ipv4/ip_forward", "ipv4"), ("net/ipv6/conf/all/forwarding", "ipv6")],
    ids=["ipv4", "ipv6"],
)
def test_forwarding_takes_every_link_and_the_heeding_of_redirects_along(
    world: World, key: str, family: str
) -> None:
    sysctls = world.pod.sysctls
    world.port()
    others = [f"net/{family}/conf/{name}/forwarding" for name in ("lo", "eth0", "default")]
    before = sysctls.get("net/ipv4/conf/all/accept_redirects")
    for value in ("1", "0"):
        sysctls.set(key, value)
        assert [sysctls.get(other) for other in others] == [value] * 3
        heeded = sysctls.get("net/ipv4/conf/all/accept_redirects")
        assert heeded == (before if family == "ipv6" else "0" if value == "1" else "1")
