"""Addresses, routes, neighbours and sysctls of a namespace, on the real kernel and on the fake one."""

from __future__ import annotations

import errno
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network

import pytest

from cnvnet.kernel.addresses import AddAddress, DeleteAddress
from cnvnet.kernel.links import (
    ChangeLink,
    CreateVeth,
    VethPeer,
)
from cnvnet.kernel.neighbours import AddNeighbour, Neighbour, ResolveNeighbour
from cnvnet.kernel.routes import AddRoute, Route
from cnvnet.kernel.stack import KernelError
from cnvnet.kernel.wait import wait_for_addresses, wait_for_link
from tests.functional.kernel.conftest import ADDRESS, ADDRESS6, DEFAULT, DEFAULT6, World, refused, seen


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


def test_an_ipv6_address_is_tentative_until_duplicate_detection_is_over(world: World) -> None:
    eth0 = pod_link(world)
    world.pod.apply(AddAddress(eth0, ADDRESS6))
    assert [address.tentative for address in world.pod.addresses(eth0)] == [True]
    waited = wait_for_addresses(world.pod, eth0, seconds=20)
    assert [(address.address, address.tentative) for address in waited] == [(ADDRESS6, False)]


def test_a_link_with_ipv6_switched_off_has_no_address_of_it(world: World) -> None:
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
def test_a_link_that_goes_down_loses_ipv6_addresses_unless_set_to_keep_them(world: World, keep: str) -> None:
    eth0 = pod_link(world)
    world.pod.sysctls.set("net/ipv6/conf/eth0/keep_addr_on_down", keep)
    world.pod.apply(AddAddress(eth0, ADDRESS), AddAddress(eth0, ADDRESS6, nodad=True))
    world.pod.apply(ChangeLink(eth0, up=False))
    assert world.pod.routes(eth0) == []
    kept = {address.address for address in world.pod.addresses(eth0)}
    assert kept == ({ADDRESS, ADDRESS6} if keep == "1" else {ADDRESS})
    world.pod.apply(ChangeLink(eth0, up=True))
    assert ADDRESS.network in [route.dst for route in world.pod.routes(eth0)]


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


def test_another_priority_is_another_route(world: World) -> None:
    eth0 = pod_link(world)
    world.pod.apply(
        AddAddress(eth0, ADDRESS),
        AddRoute(Route(DEFAULT, eth0, ip_address("10.1.0.1"), priority=10)),
        AddRoute(Route(DEFAULT, eth0, ip_address("10.1.0.1"), priority=20)),
    )
    assert sorted(r.priority for r in world.pod.routes(eth0) if r.dst == DEFAULT) == [10, 20]


def test_a_bridge_knows_whose_own_an_address_is(world: World) -> None:
    bridge, other = world.bridge("br0"), world.bridge("br1")
    port = world.port("veth0", master=bridge.ifindex)
    own = seen(world.host, bridge.ifindex).mac
    assert world.host.owner(bridge.ifindex, port.mac) in (port.ifindex, bridge.ifindex)
    assert world.host.owner(bridge.ifindex, own) in (port.ifindex, bridge.ifindex)
    assert world.host.owner(bridge.ifindex, seen(world.pod, "eth0").mac) == 0
    assert world.host.owner(other.ifindex, port.mac) == 0
    assert world.host.owner(port.ifindex, port.mac) in (0, port.ifindex)
    assert world.host.owner(4711, port.mac) == 0


def test_neighbours_are_kept_and_replaced(world: World) -> None:
    eth0 = pod_link(world)
    first = Neighbour(eth0, ip_address("169.254.1.1"), "02:00:00:00:00:01")
    second = first._replace(mac="02:00:00:00:00:02")
    other = Neighbour(eth0, ip_address("fe80::1"), "02:00:00:00:00:03")
    proxy = Neighbour(eth0, ip_address("10.1.0.7"), "", proxy=True)
    world.pod.apply(*map(AddNeighbour, (first, second, other, proxy)))
    assert set(world.pod.neighbours(eth0)) == {second, other, proxy}
    assert set(world.pod.neighbours(4711)) == set()


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
