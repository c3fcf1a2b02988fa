"""CHECK on a kernel in memory: every damage to what ADD made is found and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.kernel.addresses import AddAddress
from cnvnet.kernel.links import ChangeLink, CreateDummy
from cnvnet.kernel.vlans import VlanRange
from tests.unit.plugins.cnv_bridge.fake_node import POD, World


class TestCheck:
    def test_what_add_made_is_found_as_it_should_be(self, full: World) -> None:
        result = full.add()
        steps = full.kernel.steps
        full.check(result)
        assert full.kernel.steps == steps
        assert full.ipam.calls == ["ADD", "CHECK"]

    def test_without_addresses_ipam_is_not_asked(self, world: World) -> None:
        world.check(world.add())
        assert world.ipam.calls == []

    def test_a_previous_result_is_required(self, world: World) -> None:
        world.add()
        with pytest.raises(CNIError, match=r"^Required prevResult missing$"):
            world.plugin.check(world.request())


def _vlan(world: World) -> None:
    port = world.host.by_name(world.records[0]["undo"]["host"])
    assert port is not None
    del port.vlans[205]


def _extra_vlan(world: World) -> None:
    port = world.host.by_name(world.records[0]["undo"]["host"])
    assert port is not None
    port.vlans[7] = VlanRange(7, 7)


def _pvid(world: World) -> None:
    port = world.host.by_name(world.records[0]["undo"]["host"])
    assert port is not None
    port.vlans[100] = VlanRange(100, 100)


def _port(world: World, **changes: Any) -> None:
    port = world.host.by_name(world.records[0]["undo"]["host"])
    assert port is not None
    for name, value in changes.items():
        setattr(port, name, value)


def _flags(world: World, **changes: bool) -> None:
    port = world.host.by_name(world.records[0]["undo"]["host"])
    assert port is not None
    assert port.port is not None
    port.port = port.port._replace(**changes)


def _inside(world: World, **changes: Any) -> None:
    inside = world.pod.by_name("eth0")
    assert inside is not None
    for name, value in changes.items():
        setattr(inside, name, value)


def _link(world: World, link_name: str, **changes: Any) -> None:
    link = world.host.by_name(link_name)
    assert link is not None
    for name, value in changes.items():
        setattr(link, name, value)


def _bridge_flags(world: World, **changes: bool) -> None:
    bridge = world.host.by_name("br0")
    assert bridge is not None
    assert bridge.bridge is not None
    bridge.bridge = bridge.bridge._replace(**changes)


def _forget(world: World, table: str) -> None:
    nft: Any = world.kernel.nft_of(world.host)
    for content in [c for key, c in nft.tables.items() if key[1] == table]:
        for elements in content.sets.values():
            elements.clear()


def _unload(world: World) -> None:
    nft: Any = world.kernel.nft_of(world.host)
    nft.tables.clear()


DAMAGES: dict[str, tuple[Callable[[World], object], str]] = {
    "bridge-down": (lambda w: _link(w, "br0", up=False), "br0 is down"),
    "not-filtering": (lambda w: _bridge_flags(w, vlan_filtering=False), "br0 does not filter VLANs"),
    "port-mac": (lambda w: _port(w, mac="02:00:00:00:00:99"), "Mac doesn't match: fe:"),
    "port-detached": (lambda w: _port(w, master=None), "CNI veth created for bridge br0 was not found"),
    "port-down": (lambda w: _port(w, up=False), " is down"),
    "port-mtu": (lambda w: _port(w, mtu=1300), " is 1300, not 1400"),
    "hairpin": (lambda w: _flags(w, hairpin=False), "hairpin mode of "),
    "isolation": (lambda w: _flags(w, isolated=False), "isolation of "),
    "vlan-missing": (_vlan, "VLAN 205 of "),
    "vlan-flags": (_pvid, "VLAN 100 of "),
    "vlan-too-many": (_extra_vlan, "is in VLAN 7, which"),
    "container-kind": (lambda w: _inside(w, kind="tun"), "Error: Container interface eth0 not of type veth"),
    "container-mac": (
        lambda w: _inside(w, mac="02:00:00:00:00:99"),
        "doesn't match container Mac: 02:00:00",
    ),
    "container-down": (lambda w: _inside(w, up=False), "eth0 is down"),
    "address": (lambda w: w.pod.addresses.clear(), "Failed to match addr 10.0.0.2/24 on interface eth0"),
    "route": (lambda w: w.pod.routes.clear(), "Expected Route 198.51.100.0/24 not found in routing table"),
    "keep-addr": (
        lambda w: w.pod.sysctls.update({"net/ipv6/conf/eth0/keep_addr_on_down": "0"}),
        "sysctl net/ipv6/conf/eth0/keep_addr_on_down is 0, not 1",
    ),
    "gateway": (lambda w: w.host.addresses.clear(), "gateway 10.0.0.1/24 is missing on br0.100"),
    "gateway-down": (lambda w: _link(w, "br0.100", up=False), "br0.100 is down"),
    "forwarding": (
        lambda w: w.host.sysctls.update({"net/ipv4/ip_forward": "0"}),
        "sysctl net/ipv4/ip_forward is 0, not 1",
    ),
    "guards": (lambda w: _forget(w, "cnv_bridge"), "macspoofchk ipspoofchk dhcpGuard raGuard: element "),
    "guards-not-loaded": (_unload, "table bridge cnv_bridge does not guard"),
    "masquerade": (lambda w: _forget(w, "cnv_masquerade"), "ipMasq: element 10.0.0.2 is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_check_finds_the_damage_and_names_it(full: World, name: str) -> None:
    result = full.add()
    full.check(result)
    damage, message = DAMAGES[name]
    damage(full)
    with pytest.raises(CNIError) as caught:
        full.check(result)
    assert message in caught.value.msg
    assert caught.value.code == 100


def _bind(world: World) -> None:
    """As vm-bridge leaves the container: its end is a port without addresses, and a dummy has its name."""
    with world.kernel.netns(POD) as netns, world.kernel.stack(netns) as pod:
        end = pod.link("eth0")
        assert end is not None
        addresses = pod.addresses(end.ifindex)
        mac, alias = "02:00:00:00:00:77", "vm-bridge-77"
        pod.apply(ChangeLink(end.ifindex, up=False, name="eth0-nic", mac=mac, alias=alias))
        world.pod.addresses.clear()
        world.pod.routes.clear()
        (dummy,) = pod.apply(CreateDummy("eth0", mac=end.mac, mtu=1400))
        pod.apply(ChangeLink(dummy.ifindex, alias=alias), ChangeLink(end.ifindex, up=True))
        pod.apply(*(AddAddress(dummy.ifindex, address.address) for address in addresses))


@pytest.mark.parametrize(
    "name", sorted(DAMAGES.keys() - {"container-kind", "container-down", "route", "keep-addr"})
)
def test_behind_a_vm_in_the_containers_place_it_is_found_as_well(full: World, name: str) -> None:
    result = full.add()
    _bind(full)
    full.check(result)
    damage, message = DAMAGES[name]
    damage(full)
    with pytest.raises(CNIError) as caught:
        full.check(result)
    assert message in caught.value.msg


def test_a_promiscuous_bridge_must_stay_so(world: World) -> None:
    world.keys = {"promiscMode": True}
    result = world.add()
    world.check(result)
    _link(world, "br0", promisc=False)
    with pytest.raises(CNIError, match="configured Promisc Mode true"):
        world.check(result)


def test_another_namespaces_result_does_not_pass(world: World) -> None:
    result = world.add()
    world.kernel.add_namespace("/run/netns/other")
    with pytest.raises(CNIError, match="doesn't match configured netns: /run/netns/other"):
        world.check(result, container_id="cid-2", netns="/run/netns/other")
