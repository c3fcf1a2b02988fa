"""What a stack promises, asserted on the real kernel and on the fake alike."""

from __future__ import annotations

import errno
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network

import pytest

from cnvnet.kernel.addresses import AddAddress, DeleteAddress
from cnvnet.kernel.fake import FakeKernel
from cnvnet.kernel.links import (
    Bridge,
    ChangeLink,
    CreateBridge,
    CreateDummy,
    CreateVeth,
    DeleteGroup,
    DeleteLink,
    Port,
    Tun,
    VethPeer,
)
from cnvnet.kernel.neighbours import AddNeighbour, DeleteNeighbour, Neighbour, ResolveNeighbour
from cnvnet.kernel.netns import NotANamespace
from cnvnet.kernel.routes import AddRoute, DeleteRoute, Route
from cnvnet.kernel.stack import KernelError, Operation, Stack
from cnvnet.kernel.tap import CreateTap
from cnvnet.kernel.vlans import AddVlans, DeleteVlans, VlanRange
from cnvnet.kernel.wait import wait_for_addresses, wait_for_link
from tests.functional.kernel.conftest import World, seen

ADDRESS = ip_interface("10.1.0.2/24")
ADDRESS6 = ip_interface("fd00:1::2/64")
DEFAULT = ip_network("0.0.0.0/0")
DEFAULT6 = ip_network("::/0")


def refused(stack: Stack, operation: Operation) -> KernelError:
    with pytest.raises(KernelError) as caught:
        stack.apply(operation)
    assert caught.value.operation == operation
    return caught.value


def pod_link(world: World) -> int:
    """An interface of the pod that is up and connected, without IPv6 addresses of its own making."""
    port = world.port()
    eth0 = seen(world.pod, "eth0").ifindex
    world.pod.sysctls.set("net/ipv6/conf/eth0/addr_gen_mode", "1")
    world.pod.apply(ChangeLink(eth0, up=True))
    waited = wait_for_link(world.host, port.ifindex, seconds=10)
    assert waited is not None
    assert waited.operstate == "UP"
    return eth0


# links


def test_a_veth_comes_with_master_peer_macs_and_mtu_in_one_operation(world: World) -> None:
    bridge = world.bridge()
    peer = VethPeer("eth0", mac="02:00:00:00:00:02", mtu=1400, netns_fd=world.pod_netns.fd)
    wanted = CreateVeth("veth0", peer, mac="02:00:00:00:00:01", mtu=1400, master=bridge.ifindex)
    [made] = world.host.apply(wanted)
    near, far = seen(world.host, "veth0"), seen(world.pod, "eth0")
    assert (made.name, made.mac, made.mtu, made.kind) == ("veth0", "02:00:00:00:00:01", 1400, "veth")
    assert (made.ifindex, made.master, made.peer) == (near.ifindex, bridge.ifindex, far.ifindex)
    assert (near.master, near.up, near.port) == (bridge.ifindex, True, Port(False, False, True))
    assert (far.mac, far.mtu, far.up, far.peer, far.master) == (
        "02:00:00:00:00:02",
        1400,
        False,
        near.ifindex,
        0,
    )


def test_a_veth_within_one_namespace_has_both_ends_there(world: World) -> None:
    [near] = world.host.apply(CreateVeth("veth0", VethPeer("veth1"), up=False))
    far = seen(world.host, "veth1")
    assert (near.peer, far.peer, near.up) == (far.ifindex, near.ifindex, False)


def test_a_port_is_up_when_its_peer_is(world: World) -> None:
    bridge = world.bridge()
    port = world.port(master=bridge.ifindex)
    waited = wait_for_link(world.host, port.ifindex, seconds=0.2)
    assert waited is not None
    assert waited.operstate != "UP"
    world.pod.apply(ChangeLink(seen(world.pod, "eth0").ifindex, up=True))
    for link in (port, bridge):
        waited = wait_for_link(world.host, link.ifindex, seconds=10)
        assert waited is not None
        assert waited.operstate == "UP"


def test_waiting_for_a_link_that_is_gone_ends_at_once(world: World) -> None:
    assert wait_for_link(world.host, 4711, seconds=60) is None


def test_a_bridge_has_the_mac_and_mtu_it_was_given(world: World) -> None:
    [bridge] = world.host.apply(CreateBridge("br0", mac="02:00:00:00:00:FE", mtu=1300))
    assert (bridge.kind, bridge.mtu, bridge.up) == ("bridge", 1300, True)
    world.port(master=bridge.ifindex)
    found = seen(world.host, "br0")
    assert (found.mac, found.mtu) == ("02:00:00:00:00:fe", 1500)
    world.host.apply(ChangeLink(bridge.ifindex, mtu=1300))
    world.port("veth1", peer="eth1", master=bridge.ifindex)
    assert seen(world.host, "br0").mtu == 1300
    assert found.bridge is not None
    assert found.bridge.vlan_filtering is False


def test_a_bridge_without_a_mac_takes_its_ports(world: World) -> None:
    bridge = world.bridge()
    [port] = world.host.apply(
        CreateVeth("veth0", VethPeer("veth1"), mac="02:00:00:00:00:01", mtu=1400, master=bridge.ifindex)
    )
    found = seen(world.host, "br0")
    assert (found.mac, found.mtu) == (port.mac, 1400)
    world.host.apply(ChangeLink(port.ifindex, master=0))
    assert seen(world.host, "br0").mac == "00:00:00:00:00:00"


def test_port_flags_belong_to_ports_only(world: World) -> None:
    bridge = world.bridge()
    port = world.port(master=bridge.ifindex)
    world.host.apply(ChangeLink(port.ifindex, hairpin=True, isolated=True, learning=False))
    assert seen(world.host, "veth0").port == Port(hairpin=True, isolated=True, learning=False)
    world.host.apply(ChangeLink(port.ifindex, hairpin=False))
    assert seen(world.host, "veth0").port == Port(hairpin=False, isolated=True, learning=False)
    world.host.apply(ChangeLink(port.ifindex, master=0))
    assert seen(world.host, "veth0").port is None
    assert refused(world.host, ChangeLink(port.ifindex, hairpin=True)).errno == errno.EOPNOTSUPP


def test_master_and_port_flags_can_come_in_one_change(world: World) -> None:
    bridge, port = world.bridge(), world.port()
    world.host.apply(ChangeLink(port.ifindex, master=bridge.ifindex, isolated=True, up=True))
    found = seen(world.host, "veth0")
    assert (found.master, found.port) == (bridge.ifindex, Port(False, True, True))


def test_promisc_is_what_was_asked_not_what_being_a_port_brings(world: World) -> None:
    bridge = world.bridge()
    port = world.port(master=bridge.ifindex)
    assert not seen(world.host, "veth0").promisc
    world.host.apply(ChangeLink(bridge.ifindex, promisc=True), ChangeLink(port.ifindex, promisc=True))
    assert seen(world.host, "br0").promisc
    assert seen(world.host, "veth0").promisc
    world.host.apply(ChangeLink(bridge.ifindex, promisc=False))
    assert not seen(world.host, "br0").promisc
    assert seen(world.host, "br0").up


def test_names_groups_aliases_macs_and_mtus_change(world: World) -> None:
    port = world.port()
    world.host.apply(
        ChangeLink(
            port.ifindex,
            name="cnvx1",
            up=False,
            mac="02:00:00:00:00:07",
            mtu=1280,
            group=77,
            alias="a guest's",
        )
    )
    found = seen(world.host, "cnvx1")
    assert (found.ifindex, found.up, found.mac, found.mtu) == (
        port.ifindex,
        False,
        "02:00:00:00:00:07",
        1280,
    )
    assert (found.group, found.alias) == (77, "a guest's")
    assert world.host.link("veth0") is None
    world.host.apply(ChangeLink(port.ifindex, alias="", group=0))
    assert (seen(world.host, "cnvx1").alias, seen(world.host, "cnvx1").group) == ("", 0)


def test_a_link_moves_under_a_new_name_and_arrives_down_and_alone(world: World) -> None:
    bridge = world.bridge()
    [port] = world.host.apply(CreateVeth("veth0", VethPeer("veth1"), master=bridge.ifindex))
    world.host.apply(AddAddress(port.ifindex, ADDRESS))
    world.host.apply(ChangeLink(port.ifindex, netns_fd=world.pod_netns.fd, name="net1"))
    assert world.host.link("veth0") is None
    moved = seen(world.pod, "net1")
    assert (moved.up, moved.master, moved.mac) == (False, 0, port.mac)
    assert world.pod.addresses(moved.ifindex) == []
    assert world.host.addresses(port.ifindex) == []


def test_a_moved_link_can_be_up_at_once(world: World) -> None:
    [port] = world.host.apply(CreateVeth("veth0", VethPeer("veth1")))
    world.host.apply(ChangeLink(port.ifindex, netns_fd=world.pod_netns.fd, up=True))
    assert seen(world.pod, "veth0").up


def test_deleting_one_end_of_a_veth_takes_the_other_along(world: World) -> None:
    port = world.port()
    world.host.apply(DeleteLink(port.ifindex))
    assert world.host.link(port.ifindex) is None
    assert world.pod.link("eth0") is None
    assert refused(world.host, DeleteLink(port.ifindex)).errno == errno.ENODEV


def test_deleting_a_bridge_frees_its_ports(world: World) -> None:
    bridge = world.bridge()
    world.port(master=bridge.ifindex)
    world.host.apply(DeleteLink(bridge.ifindex))
    assert seen(world.host, "veth0").master == 0


def test_a_group_is_deleted_in_one_go_and_no_other_link(world: World) -> None:
    ports = [world.port(f"veth{i}", peer=f"eth{i}") for i in range(3)]
    world.host.apply(*(ChangeLink(port.ifindex, group=7733) for port in ports[:2]), DeleteGroup(7733))
    assert [link.name for link in world.host.links() if link.kind == "veth"] == ["veth2"]
    assert refused(world.host, DeleteGroup(7733)).errno == errno.ENODEV
    assert refused(world.host, DeleteGroup(0)).errno == errno.EPERM


def test_links_are_found_by_name_and_by_index(world: World) -> None:
    bridge = world.bridge()
    assert seen(world.host, bridge.ifindex).name == "br0"
    assert world.host.link("br1") is None
    assert world.host.link(4711) is None
    assert world.host.link("a-name-that-no-link-can-have") is None
    assert world.host.link("") is None
    assert {link.name for link in world.host.links()} >= {"lo", "br0"}


@pytest.mark.parametrize("end", ["near", "far"])
def test_a_veth_whose_name_is_taken_leaves_nothing(world: World, end: str) -> None:
    world.port()
    names = ("veth0", "eth1") if end == "near" else ("veth1", "eth0")
    wanted = CreateVeth(names[0], VethPeer(names[1], netns_fd=world.pod_netns.fd))
    assert refused(world.host, wanted).errno == errno.EEXIST
    assert [link.name for link in world.host.links() if link.kind == "veth"] == ["veth0"]
    assert [link.name for link in world.pod.links() if link.kind == "veth"] == ["eth0"]


def test_a_veth_for_a_bridge_that_is_gone_leaves_nothing(world: World) -> None:
    assert refused(world.host, CreateVeth("veth0", VethPeer("veth1"), master=4711)).errno == errno.EINVAL
    assert world.host.link("veth0") is None
    assert world.host.link("veth1") is None


def test_a_bridge_whose_name_is_taken_is_refused_with_its_name(world: World) -> None:
    world.bridge()
    assert str(refused(world.host, CreateBridge("br0"))) == "create bridge br0: file exists"


@pytest.mark.parametrize(
    ("operation", "number"),
    [
        (ChangeLink(4711, up=True), errno.ENODEV),
        (ChangeLink(4711, name="x"), errno.ENODEV),
        (DeleteLink(4711), errno.ENODEV),
        (AddAddress(4711, ADDRESS), errno.ENODEV),
        (AddAddress(4711, ADDRESS6), errno.ENODEV),
        (DeleteAddress(4711, ADDRESS), errno.ENODEV),
        (DeleteAddress(4711, ADDRESS6), errno.ENODEV),
        (AddRoute(Route(DEFAULT, 4711)), errno.ENODEV),
        (AddRoute(Route(DEFAULT6, 4711)), errno.ENODEV),
        (DeleteRoute(Route(DEFAULT, 4711)), errno.ESRCH),
        (AddNeighbour(Neighbour(4711, ADDRESS.ip, "02:00:00:00:00:01")), errno.ENODEV),
        (DeleteNeighbour(Neighbour(4711, ADDRESS.ip, "")), errno.ENODEV),
        (AddVlans(4711, (VlanRange(1, 1),)), errno.ENODEV),
    ],
)
def test_a_link_that_is_gone_is_refused(world: World, operation: Operation, number: int) -> None:
    assert refused(world.host, operation).errno == number


def test_renaming_and_enslaving_are_refused_as_the_kernel_does(world: World) -> None:
    bridge, port = world.bridge(), world.port()
    # Kernels before 6.3 rename no link that is up (EBUSY).
    assert refused(world.host, ChangeLink(port.ifindex, name="br0", up=False)).errno == errno.EEXIST
    assert refused(world.host, ChangeLink(bridge.ifindex, master=port.ifindex)).errno == errno.EOPNOTSUPP
    other = world.bridge("br1")
    assert refused(world.host, ChangeLink(other.ifindex, master=bridge.ifindex)).errno == errno.ELOOP
    assert refused(world.host, ChangeLink(port.ifindex, master=4711)).errno == errno.EINVAL


def test_a_kernel_without_vlans_says_so(world: World) -> None:
    if world.host.apply(CreateBridge("br0"))[0].bridge != Bridge(vlan_filtering=False, default_pvid=0):
        pytest.skip("this kernel has bridge VLANs")
    port = world.port(master=seen(world.host, "br0").ifindex)
    wanted = CreateBridge("br1", vlan_filtering=True)
    assert refused(world.host, wanted).errno == errno.EOPNOTSUPP
    assert world.host.link("br1") is None
    assert refused(world.host, AddVlans(port.ifindex, (VlanRange(1, 1),))).errno == errno.EOPNOTSUPP
    assert world.host.vlans(port.ifindex) == []


def test_what_follows_a_refused_operation_is_not_done(world: World) -> None:
    bridge = world.bridge()
    operations: list[Operation] = [
        ChangeLink(bridge.ifindex, alias="before"),
        CreateBridge("br0"),
        ChangeLink(bridge.ifindex, alias="after"),
    ]
    with pytest.raises(KernelError) as caught:
        world.host.apply(*operations)
    assert caught.value.operation == operations[1]
    assert seen(world.host, "br0").alias == "before"


# taps


@pytest.mark.parametrize("multi_queue", [False, True], ids=["one queue", "multi-queue"])
def test_a_tap_stays_until_it_is_deleted(world: World, multi_queue: bool) -> None:
    [made] = world.pod.apply(CreateTap("tap0", owner=107, group=107, multi_queue=multi_queue))
    assert (made.name, made.kind, made.up, world.host.link("tap0")) == ("tap0", "tun", False, None)
    assert refused(world.pod, CreateTap("tap0", multi_queue=multi_queue)).errno == errno.EBUSY
    world.pod.apply(ChangeLink(made.ifindex, mtu=1400, up=True))
    assert (seen(world.pod, "tap0").mtu, seen(world.pod, "tap0").operstate) == (1400, "DOWN")
    world.pod.apply(DeleteLink(made.ifindex))
    assert world.pod.link("tap0") is None


# addresses


@pytest.mark.parametrize("wanted", [ADDRESS, ADDRESS6], ids=["ipv4", "ipv6"])
def test_an_address_brings_its_connected_route(world: World, wanted: IPv4Interface | IPv6Interface) -> None:
    eth0 = pod_link(world)
    world.pod.apply(AddAddress(eth0, wanted, nodad=True))
    [found] = world.pod.addresses(eth0)
    assert (found.address, found.scope, found.tentative) == (wanted, 0, False)
    [route] = world.pod.routes(eth0)
    expected = (253, 0) if wanted.version == 4 else (0, 256)
    assert (route.dst, route.gw, route.scope, route.priority) == (wanted.network, None, *expected)
    world.pod.apply(DeleteAddress(eth0, wanted))
    assert world.pod.addresses(eth0) == []
    assert world.pod.routes(eth0) == []


def test_host_addresses_bring_a_route_in_ipv6_only(world: World) -> None:
    eth0 = pod_link(world)
    host, host6 = ip_interface("10.1.0.2/32"), ip_interface("fd00:1::2/128")
    world.pod.apply(AddAddress(eth0, host), AddAddress(eth0, host6, nodad=True))
    assert [route.dst for route in world.pod.routes(eth0)] == [host6.network]


def test_an_address_is_refused_twice_and_its_absence_too(world: World) -> None:
    eth0 = pod_link(world)
    world.pod.apply(AddAddress(eth0, ADDRESS), AddAddress(eth0, ADDRESS6, nodad=True))
    for address in (ADDRESS, ADDRESS6):
        error = refused(world.pod, AddAddress(eth0, address))
        assert error.errno == errno.EEXIST
        assert str(error).startswith(f"add address {address} on eth0: file exists")
    world.pod.apply(DeleteAddress(eth0, ADDRESS), DeleteAddress(eth0, ADDRESS6))
    for address in (ADDRESS, ADDRESS6):
        assert refused(world.pod, DeleteAddress(eth0, address)).errno == errno.EADDRNOTAVAIL


def test_an_ipv6_address_is_tentative_until_nobody_has_claimed_it(world: World) -> None:
    eth0 = pod_link(world)
    world.pod.apply(AddAddress(eth0, ADDRESS6))
    assert [address.tentative for address in world.pod.addresses(eth0)] == [True]
    waited = wait_for_addresses(world.pod, eth0, seconds=20)
    assert [(address.address, address.tentative) for address in waited] == [(ADDRESS6, False)]


def test_who_switches_ipv6_off_has_no_address_of_it(world: World) -> None:
    eth0 = pod_link(world)
    world.pod.apply(AddAddress(eth0, ADDRESS), AddAddress(eth0, ADDRESS6, nodad=True))
    world.pod.sysctls.set("net/ipv6/conf/eth0/disable_ipv6", "1")
    assert [address.address for address in world.pod.addresses(eth0)] == [ADDRESS]
    assert [route.dst.version for route in world.pod.routes(eth0)] == [4]


def test_ipv6_addresses_need_ipv6(world: World) -> None:
    eth0 = pod_link(world)
    world.pod.sysctls.set("net/ipv6/conf/eth0/disable_ipv6", "1")
    assert refused(world.pod, AddAddress(eth0, ADDRESS6)).errno == errno.EACCES
    world.pod.apply(AddAddress(eth0, ADDRESS))


@pytest.mark.parametrize("keep", ["0", "1"], ids=["dropped", "kept"])
def test_a_link_that_goes_down_loses_ipv6_addresses_unless_told_to_keep_them(
    world: World, keep: str
) -> None:
    eth0 = pod_link(world)
    world.pod.sysctls.set("net/ipv6/conf/eth0/keep_addr_on_down", keep)
    world.pod.apply(AddAddress(eth0, ADDRESS), AddAddress(eth0, ADDRESS6, nodad=True))
    world.pod.apply(ChangeLink(eth0, up=False))
    assert world.pod.routes(eth0) == []
    kept = {address.address for address in world.pod.addresses(eth0)}
    assert kept == ({ADDRESS, ADDRESS6} if keep == "1" else {ADDRESS})
    world.pod.apply(ChangeLink(eth0, up=True))
    assert ADDRESS.network in [route.dst for route in world.pod.routes(eth0)]


# routes


def test_routes_carry_gateway_metrics_table_and_priority(world: World) -> None:
    eth0 = pod_link(world)
    world.pod.apply(AddAddress(eth0, ADDRESS), AddAddress(eth0, ADDRESS6, nodad=True))
    gw, gw6 = ip_address("10.1.0.1"), ip_address("fd00:1::1")
    wanted = [
        Route(DEFAULT, eth0, gw, mtu=1400, advmss=1360, scope=0, protocol=3),
        Route(ip_network("10.9.0.0/16"), eth0, gw, table=4711, priority=50, scope=0, protocol=3),
        Route(ip_network("10.8.0.0/16"), eth0, scope=253, protocol=3, src=ADDRESS.ip),
        Route(ip_network("10.7.0.0/16"), eth0, ip_address("192.0.2.1"), onlink=True, scope=0, protocol=3),
        Route(ip_network("10.6.0.0/16"), eth0, scope=0, protocol=4),
        Route(DEFAULT6, eth0, gw6, mtu=1400, advmss=1360, priority=1024, scope=0, protocol=3),
        Route(ip_network("fd09::/32"), eth0, gw6, table=4711, priority=50, scope=0, protocol=3),
        Route(ip_network("fd08::/32"), eth0, ip_address("fe80::1"), priority=1024, scope=0, protocol=3),
    ]
    world.pod.apply(*(AddRoute(route) for route in wanted))
    assert {route for route in world.pod.routes(eth0) if route.protocol != 2} == set(wanted)
    world.pod.apply(*(DeleteRoute(route) for route in wanted))
    assert [route for route in world.pod.routes(eth0) if route.protocol != 2] == []
    for route in wanted:
        assert refused(world.pod, DeleteRoute(route)).errno == errno.ESRCH


def test_the_scope_follows_the_gateway_unless_it_is_given(world: World) -> None:
    eth0 = pod_link(world)
    world.pod.apply(
        AddAddress(eth0, ADDRESS),
        AddRoute(Route(ip_network("10.7.0.0/16"), eth0)),
        AddRoute(Route(ip_network("10.8.0.0/16"), eth0, ip_address("10.1.0.1"))),
    )
    scopes = {str(route.dst): route.scope for route in world.pod.routes(eth0)}
    assert scopes == {"10.1.0.0/24": 253, "10.7.0.0/16": 253, "10.8.0.0/16": 0}


def test_a_gateway_out_of_reach_is_refused(world: World) -> None:
    eth0 = pod_link(world)
    world.pod.apply(AddAddress(eth0, ADDRESS), AddAddress(eth0, ADDRESS6, nodad=True))
    away = AddRoute(Route(DEFAULT, eth0, ip_address("192.0.2.1")))
    assert refused(world.pod, away).errno == errno.ENETUNREACH
    away = AddRoute(Route(DEFAULT6, eth0, ip_address("fd00:2::1")))
    assert refused(world.pod, away).errno == errno.EHOSTUNREACH
    world.pod.apply(ChangeLink(eth0, up=False))
    gone = AddRoute(Route(DEFAULT, eth0, ip_address("10.1.0.1")))
    assert refused(world.pod, gone).errno == errno.ENETUNREACH
    for dst in (ip_network("10.9.0.0/16"), ip_network("fd09::/32")):
        assert refused(world.pod, AddRoute(Route(dst, eth0))).errno == errno.ENETDOWN


def test_a_second_route_is_refused_unless_appended(world: World) -> None:
    eth0 = pod_link(world)
    world.pod.apply(AddAddress(eth0, ADDRESS), AddAddress(eth0, ADDRESS6, nodad=True))
    for dst, hops in ((DEFAULT, ("10.1.0.1", "10.1.0.9")), (DEFAULT6, ("fd00:1::1", "fd00:1::9"))):
        first, second = (Route(dst, eth0, ip_address(gw)) for gw in hops)
        world.pod.apply(AddRoute(first))
        assert refused(world.pod, AddRoute(first)).errno == errno.EEXIST
        assert refused(world.pod, AddRoute(second)).errno == errno.EEXIST
        world.pod.apply(AddRoute(second, append=True))
        assert refused(world.pod, AddRoute(second, append=True)).errno == errno.EEXIST
        found = [str(route.gw) for route in world.pod.routes(eth0) if route.dst == dst]
        # IPv4 uses the first of the list, IPv6 both.
        assert found == ([*reversed(hops)] if dst == DEFAULT else [*hops])
        world.pod.apply(DeleteRoute(first))
        assert [str(r.gw) for r in world.pod.routes(eth0) if r.dst == dst] == [hops[1]]


def test_another_priority_is_another_route(world: World) -> None:
    eth0 = pod_link(world)
    world.pod.apply(
        AddAddress(eth0, ADDRESS),
        AddRoute(Route(DEFAULT, eth0, ip_address("10.1.0.1"), priority=10)),
        AddRoute(Route(DEFAULT, eth0, ip_address("10.1.0.1"), priority=20)),
    )
    assert sorted(r.priority for r in world.pod.routes(eth0) if r.dst == DEFAULT) == [10, 20]
    world.pod.apply(DeleteRoute(Route(DEFAULT, eth0, priority=20)))
    assert [r.priority for r in world.pod.routes(eth0) if r.dst == DEFAULT] == [10]
    world.pod.apply(DeleteRoute(Route(DEFAULT, eth0)))
    assert DEFAULT not in [r.dst for r in world.pod.routes(eth0)]


# neighbours


def test_neighbours_are_kept_replaced_and_forgotten(world: World) -> None:
    eth0 = pod_link(world)
    first = Neighbour(eth0, ip_address("169.254.1.1"), "02:00:00:00:00:01")
    second = first._replace(mac="02:00:00:00:00:02")
    other = Neighbour(eth0, ip_address("fe80::1"), "02:00:00:00:00:03")
    proxy = Neighbour(eth0, ip_address("10.1.0.7"), "", proxy=True)
    world.pod.apply(*map(AddNeighbour, (first, second, other, proxy)))
    assert set(world.pod.neighbours(eth0)) == {second, other, proxy}
    assert set(world.pod.neighbours(4711)) == set()
    world.pod.apply(*map(DeleteNeighbour, (second, other, proxy)))
    assert world.pod.neighbours(eth0) == []
    for neighbour in (second, other, proxy):
        assert refused(world.pod, DeleteNeighbour(neighbour)).errno == errno.ENOENT


def test_a_neighbour_is_resolved_when_it_is_asked_for(world: World) -> None:
    eth0 = pod_link(world)
    [near] = world.host.apply(CreateVeth("near", VethPeer("far")))
    far = seen(world.host, "far")
    world.host.apply(ChangeLink(far.ifindex, up=True))
    asked = ip_address("fd00:1::9")
    world.host.apply(AddAddress(near.ifindex, ADDRESS6, nodad=True))
    world.host.apply(ResolveNeighbour(near.ifindex, asked))
    assert world.host.neighbours(near.ifindex) == []
    assert refused(world.pod, ResolveNeighbour(eth0 + 4711, asked)).errno == errno.ENODEV


def test_a_link_that_goes_down_forgets_its_neighbours(world: World) -> None:
    eth0 = pod_link(world)
    known = Neighbour(eth0, ip_address("10.1.0.9"), "02:00:00:00:00:09")
    proxy = Neighbour(eth0, ip_address("10.1.0.7"), "", proxy=True)
    world.pod.apply(AddNeighbour(known), AddNeighbour(proxy), ChangeLink(eth0, up=False))
    assert world.pod.neighbours(eth0) == []
    world.pod.apply(AddNeighbour(known), AddNeighbour(proxy))
    assert set(world.pod.neighbours(eth0)) == {known, proxy}


# sysctls


def test_sysctls_are_those_of_the_stacks_namespace(world: World) -> None:
    pod_link(world)
    key = "net/ipv4/conf/{}/arp_notify"
    world.pod.sysctls.set(key.format("eth0"), "1")
    assert world.pod.sysctls.get(key.format("eth0")) == "1"
    assert world.pod.sysctls.get(key.format("veth0")) is None
    assert world.host.sysctls.get(key.format("eth0")) is None
    assert world.host.sysctls.get(key.format("veth0")) == "0"
    with pytest.raises(KernelError) as caught:
        world.host.sysctls.set(key.format("eth0"), "1")
    assert caught.value.errno == errno.ENOENT
    assert str(caught.value) == "sysctl net/ipv4/conf/eth0/arp_notify=1: no such file or directory"


def test_sysctls_follow_a_renamed_link(world: World) -> None:
    port = world.port()
    world.host.sysctls.set("net/ipv4/conf/veth0/arp_notify", "1")
    world.host.apply(ChangeLink(port.ifindex, up=False, name="veth9"))
    assert world.host.sysctls.get("net/ipv4/conf/veth9/arp_notify") == "1"
    assert world.host.sysctls.get("net/ipv4/conf/veth0/arp_notify") is None


# namespaces


def test_a_path_that_is_no_namespace_is_told_from_one_that_is_missing(world: World) -> None:
    if isinstance(world.kernel, FakeKernel):
        world.kernel.add_file("/etc/passwd")
    with pytest.raises(NotANamespace, match="/etc/passwd"), world.kernel.netns("/etc/passwd"):
        pass
    with pytest.raises(FileNotFoundError), world.kernel.netns("/run/netns/none"):
        pass


# VLANs, and what else not every kernel has


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


def test_a_tap_says_who_may_open_it(world: World) -> None:
    world.pod.apply(CreateTap("tap0", owner=107, group=108), CreateTap("tap1", multi_queue=True))
    assert seen(world.pod, "tap0").tun == Tun(107, 108, multi_queue=False)
    assert seen(world.pod, "tap1").tun == Tun(0, 0, multi_queue=True)
    world.port()
    assert seen(world.pod, "eth0").tun is None
