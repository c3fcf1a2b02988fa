"""The plan of an ADD: configuration and what is there in, operations out."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.result import DNS, IP, Interface, Result, ResultRoute
from cnvnet.kernel.addresses import AddAddress, Address, DeleteAddress
from cnvnet.kernel.links import Bridge, ChangeLink, CreateBridge, CreateVeth, Link, VethPeer
from cnvnet.kernel.routes import AddRoute, Route
from cnvnet.kernel.vlans import AddVlans, DeleteVlans, VlanRange
from cnvnet.plugins.cnv_bridge import plan
from cnvnet.plugins.cnv_bridge.config import Config
from tests.unit.plugins.cnv_bridge.test_config import parse

MAC = "02:00:00:00:00:07"
NAMES = plan.PortNames("veth00000001", "fe:00:00:00:00:01", "eth0", MAC)
IPAM = {"type": "host-local"}


def a_bridge(**changes: Any) -> Link:
    bridge = Link(
        ifindex=7,
        name="cni0",
        kind="bridge",
        mac="02:00:00:00:00:aa",
        mtu=1500,
        up=True,
        operstate="UP",
        bridge=Bridge(vlan_filtering=False, default_pvid=1),
    )
    return bridge._replace(**changes)


FILTERING = a_bridge(bridge=Bridge(vlan_filtering=True, default_pvid=1))


def native(vid: int) -> VlanRange:
    return VlanRange(vid, vid, pvid=True, untagged=True)


def leased(*addresses: str, gateway: str | None = None, routes: tuple[ResultRoute, ...] = ()) -> Result:
    gw = ip_address(gateway) if gateway else None
    return Result(ips=tuple(IP(ip_interface(a), gw) for a in addresses), routes=routes)


class TestOrder:
    def test_our_own_address_manager_comes_before_the_port_and_all_others_after_it(self) -> None:
        guards, addresses = plan.Step.GUARDS, plan.Step.ADDRESSES
        assert plan.order("") == plan.Order((guards,), ())
        assert plan.order("static-ip") == plan.Order((addresses, guards), ())
        for foreign in ("dhcp", "host-local"):
            assert plan.order(foreign) == plan.Order((guards,), (addresses, guards))


class TestBridge:
    def test_a_new_one_has_a_mac_of_its_own(self) -> None:
        assert plan.plan_bridge(parse(mtu=1400), None, MAC) == (CreateBridge("cni0", mac=MAC, mtu=1400),)

    @pytest.mark.parametrize("keys", [{"vlan": 5}, {"vlanTrunk": [{"id": 5}]}, {"vlanTrunk": []}], ids=str)
    def test_a_new_one_filters_vlans_where_any_are_named(self, keys: dict[str, Any]) -> None:
        (operation,) = plan.plan_bridge(parse(**keys), None, MAC)
        assert operation == CreateBridge("cni0", mac=MAC, vlan_filtering=True)

    def test_one_that_is_as_it_should_be_is_left_alone(self) -> None:
        assert plan.plan_bridge(parse(mtu=9000), a_bridge(), MAC) == ()
        assert plan.plan_bridge(parse(promiscMode=True), a_bridge(promisc=True), MAC) == ()
        assert plan.plan_bridge(parse(), a_bridge(promisc=True), MAC) == ()

    def test_one_that_is_down_or_not_promiscuous_is_changed(self) -> None:
        up = ChangeLink(7, up=True)
        assert plan.plan_bridge(parse(), a_bridge(up=False), MAC) == (up,)
        assert plan.plan_bridge(parse(promiscMode=True), a_bridge(), MAC) == (up._replace(promisc=True),)

    def test_something_else_of_the_name_is_refused(self) -> None:
        with pytest.raises(InvalidConfig, match='"cni0" already exists but is not a bridge'):
            plan.plan_bridge(parse(), a_bridge(kind="veth", bridge=None), MAC)

    @pytest.mark.parametrize(
        ("keys", "asked"),
        [
            ({"vlan": 33}, "vlan 33"),
            ({"vlanTrunk": [{"id": 33}, {"minID": 40, "maxID": 49}]}, "vlanTrunk 33,40-49"),
        ],
        ids=["vlan", "trunk"],
    )
    def test_vlans_of_one_that_does_not_filter_are_refused_with_the_remedy(
        self, keys: dict[str, Any], asked: str
    ) -> None:
        with pytest.raises(InvalidConfig) as caught:
            plan.plan_bridge(parse(**keys), a_bridge(), MAC)
        remedy = "ip link set cni0 type bridge vlan_filtering 1"
        assert caught.value.msg == f"{asked}: bridge cni0 does not filter VLANs ({remedy})"

    def test_an_empty_trunk_asks_nothing_of_one_that_does_not_filter(self) -> None:
        assert plan.plan_bridge(parse(vlanTrunk=[]), a_bridge(), MAC) == ()


class TestPort:
    def test_a_plain_one_is_one_message(self) -> None:
        assert plan.plan_veth(parse(mtu=1400), NAMES, a_bridge(), 5) == CreateVeth(
            name="veth00000001",
            mac="fe:00:00:00:00:01",
            mtu=1400,
            master=7,
            up=True,
            peer=VethPeer("eth0", mac=MAC, mtu=1400, netns_fd=5),
        )
        assert plan.plan_port(parse(), a_bridge(), 9) == ()

    @pytest.mark.parametrize(
        "keys",
        [{"hairpinMode": True}, {"portIsolation": True}, {"vlan": 5}, {"vlanTrunk": [{"id": 5}]}],
        ids=str,
    )
    def test_one_with_settings_goes_up_last(self, keys: dict[str, Any]) -> None:
        config = parse(**keys)
        assert plan.plan_veth(config, NAMES, FILTERING, 5).up is False
        assert plan.plan_port(config, FILTERING, 9)[-1] == ChangeLink(9, up=True)

    def test_flags_are_set_before_it_is_up(self) -> None:
        config = parse(hairpinMode=True, portIsolation=True)
        assert plan.plan_port(config, a_bridge(), 9) == (
            ChangeLink(9, hairpin=True, isolated=True),
            ChangeLink(9, up=True),
        )


VLANS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({}, ()),
    ({"vlanTrunk": []}, ()),
    ({"vlan": 100}, (DeleteVlans(9, (VlanRange(1, 1),)), AddVlans(9, (native(100),)))),
    ({"vlan": 100, "preserveDefaultVlan": True}, (AddVlans(9, (native(100),)),)),
    (
        {"vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 210}]},
        (
            DeleteVlans(9, (VlanRange(1, 1),)),
            AddVlans(9, (native(1), VlanRange(101, 101), VlanRange(200, 210))),
        ),
    ),
    (
        {"vlan": 205, "vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 210}]},
        (
            DeleteVlans(9, (VlanRange(1, 1),)),
            AddVlans(9, (native(205), VlanRange(101, 101), VlanRange(200, 204), VlanRange(206, 210))),
        ),
    ),
    (
        {"vlan": 1, "vlanTrunk": [{"minID": 1, "maxID": 4094}]},
        (DeleteVlans(9, (VlanRange(1, 1),)), AddVlans(9, (native(1), VlanRange(2, 4094)))),
    ),
]


@pytest.mark.parametrize(("keys", "operations"), VLANS, ids=[str(keys) for keys, _ in VLANS])
def test_the_port_gets_its_vlans(keys: dict[str, Any], operations: tuple[Any, ...]) -> None:
    assert plan.plan_vlans(parse(**keys), FILTERING, 9) == operations


def test_a_bridge_without_a_default_vlan_has_none_to_remove() -> None:
    bridge = a_bridge(bridge=Bridge(vlan_filtering=True, default_pvid=0))
    assert plan.plan_vlans(parse(vlan=5), bridge, 9) == (AddVlans(9, (native(5),)),)


def test_another_default_vlan_is_the_one_removed() -> None:
    bridge = a_bridge(bridge=Bridge(vlan_filtering=True, default_pvid=77))
    assert plan.plan_vlans(parse(vlan=5), bridge, 9)[0] == DeleteVlans(9, (VlanRange(77, 77),))


_VID = st.integers(1, 4094)


@given(vlan=st.integers(0, 4094), trunk=st.lists(st.tuples(_VID, _VID).map(sorted), max_size=6))
def test_every_vlan_asked_for_is_named_once_and_one_is_native(vlan: int, trunk: list[list[int]]) -> None:
    config = parse(vlan=vlan, vlanTrunk=[{"minID": low, "maxID": high} for low, high in trunk])
    wanted = plan.wanted_vlans(config)
    vids = [vid for r in wanted for vid in range(r.first, r.last + 1)]
    expected = {vid for low, high in trunk for vid in range(low, high + 1)}
    if vlan or trunk:
        expected.add(vlan or 1)
    assert sorted(vids) == sorted(expected)
    assert [r.first for r in wanted if r.pvid] == ([vlan or 1] if expected else [])
    assert all(r.pvid == r.untagged for r in wanted)


class TestContainer:
    def test_without_addresses_it_only_goes_up(self) -> None:
        assert plan.plan_container(3, Result()) == (ChangeLink(3, up=True),)

    def test_addresses_come_before_up_and_routes_after(self) -> None:
        route = ResultRoute(
            ip_network("198.51.100.0/24"), priority=7, table=9, scope=253, mtu=1300, advmss=1200
        )
        assert plan.plan_container(3, leased("10.0.0.2/24", gateway="10.0.0.1", routes=(route,))) == (
            AddAddress(3, ip_interface("10.0.0.2/24")),
            ChangeLink(3, up=True),
            AddRoute(
                Route(
                    ip_network("198.51.100.0/24"),
                    3,
                    ip_address("10.0.0.1"),
                    table=9,
                    priority=7,
                    scope=253,
                    mtu=1300,
                    advmss=1200,
                ),
                append=True,
            ),
        )

    def test_a_route_takes_its_own_gateway_or_the_first_of_its_family(self) -> None:
        result = Result(
            ips=(
                IP(ip_interface("10.0.0.2/24"), ip_address("10.0.0.1")),
                IP(ip_interface("10.0.1.2/24"), ip_address("10.0.1.1")),
                IP(ip_interface("fd00::2/64")),
            ),
            routes=(
                ResultRoute(ip_network("0.0.0.0/0")),
                ResultRoute(ip_network("198.51.100.0/24"), ip_address("10.0.1.1")),
                ResultRoute(ip_network("fd01::/64")),
            ),
        )
        operations = plan.plan_container(3, result)
        gateways = [str(o.route.gw) for o in operations if isinstance(o, AddRoute)]
        assert gateways == ["10.0.0.1", "10.0.1.1", "None"]

    def test_dad_is_off_unless_asked_for(self) -> None:
        off = plan.container_settings(parse(ipam=IPAM), "eth0", leased("10.0.0.2/24"))
        assert [(s.key, s.value) for s in off] == [
            ("net/ipv6/conf/eth0/accept_dad", "0"),
            ("net/ipv4/conf/eth0/arp_notify", "1"),
        ]
        on = plan.container_settings(parse(ipam=IPAM, enabledad=True), "eth0", leased("fd00::2/64"))
        assert [(s.key, s.value, s.required) for s in on] == [
            ("net/ipv6/conf/eth0/enhanced_dad", "1", False),
            ("net/ipv6/conf/eth0/accept_dad", "1", False),
            ("net/ipv4/conf/eth0/arp_notify", "1", False),
            ("net/ipv6/conf/lo/disable_ipv6", "0", True),
            ("net/ipv6/conf/eth0/disable_ipv6", "0", True),
            ("net/ipv6/conf/eth0/keep_addr_on_down", "1", True),
            ("net/ipv6/conf/eth0/ndisc_notify", "1", False),
        ]

    def test_a_migrations_target_is_not_announced(self) -> None:
        result = leased("fd00::2/64")
        silent = plan.container_settings(parse(ipam=IPAM, enabledad=True), "eth0", result, silent=True)
        values = {setting.key: setting.value for setting in silent}
        for link in ("all", "eth0"):
            assert values[f"net/ipv4/conf/{link}/arp_notify"] == "0"
            assert values[f"net/ipv6/conf/{link}/ndisc_notify"] == "0"
        assert values["net/ipv6/conf/eth0/accept_dad"] == "0", "the source would say that it is a duplicate"


class TestGateways:
    def test_addresses_belong_to_the_container(self) -> None:
        assert [ip.interface for ip in plan.with_gateways(parse(ipam=IPAM), leased("10.0.0.2/24")).ips] == [
            2
        ]

    def test_the_first_address_is_the_gateway_unless_ipam_names_another(self) -> None:
        config = parse(ipam=IPAM, isGateway=True)
        result = plan.with_gateways(config, leased("10.0.0.130/25", "fd00::2/64"))
        assert [str(ip.gateway) for ip in result.ips] == ["10.0.0.129", "fd00::1"]
        assert result.routes == ()
        assert [str(a) for a in plan.gateways(config, result)] == ["10.0.0.129/25", "fd00::1/64"]
        named = plan.with_gateways(config, leased("10.0.0.2/24", gateway="10.0.0.9"))
        assert [str(a) for a in plan.gateways(config, named)] == ["10.0.0.9/24"]

    def test_without_the_key_there_are_none(self) -> None:
        config = parse(ipam=IPAM)
        result = plan.with_gateways(config, leased("10.0.0.2/24", gateway="10.0.0.1"))
        assert plan.gateways(config, result) == ()

    def test_ipv4_comes_first_on_the_bridge(self) -> None:
        config = parse(ipam=IPAM, isGateway=True)
        result = plan.with_gateways(config, leased("fd00::2/64", "10.0.0.2/24"))
        assert [a.version for a in plan.gateways(config, result)] == [4, 6]

    def test_a_default_route_per_family_is_added_once(self) -> None:
        config = parse(ipam=IPAM, isDefaultGateway=True)
        result = plan.with_gateways(config, leased("10.0.0.2/24", "10.0.1.2/24", "fd00::2/64"))
        assert [(str(r.dst), str(r.gw)) for r in result.routes] == [
            ("0.0.0.0/0", "10.0.0.1"),
            ("::/0", "fd00::1"),
        ]

    def test_a_default_route_of_ipam_counts_if_it_has_a_gateway(self) -> None:
        config = parse(ipam=IPAM, isDefaultGateway=True)
        default = ip_network("0.0.0.0/0")
        default_route = ResultRoute(default, ip_address("10.0.0.77"))
        assert plan.with_gateways(config, leased("10.0.0.2/24", routes=(default_route,))).routes == (
            default_route,
        )
        without = plan.with_gateways(config, leased("10.0.0.2/24", routes=(ResultRoute(default),)))
        assert without.routes == (ResultRoute(default), ResultRoute(default, ip_address("10.0.0.1")))

    def test_a_network_without_room_for_a_gateway_is_refused(self) -> None:
        with pytest.raises(InvalidConfig, match="no address after it"):
            plan.with_gateways(parse(ipam=IPAM, isGateway=True), leased("255.255.255.255/32"))

    def test_a_gateway_of_the_other_family_is_refused(self) -> None:
        with pytest.raises(InvalidConfig, match="of the other family"):
            plan.with_gateways(parse(ipam=IPAM, isGateway=True), leased("10.0.0.2/24", gateway="fe80::1"))

    def test_dns_of_the_configuration_replaces_ipams(self) -> None:
        result = leased("10.0.0.2/24")._replace(dns=DNS(nameservers=("192.0.2.1",)))
        assert plan.with_gateways(parse(ipam=IPAM), result).dns.nameservers == ("192.0.2.1",)
        config = parse(ipam=IPAM, dns={"domain": "example.org"})
        assert plan.with_gateways(config, result).dns == DNS(domain="example.org")


def addresses(*texts: str) -> list[Address]:
    return [Address(7, ip_interface(text)) for text in texts]


class TestGatewayAddresses:
    PIN = ChangeLink(7, mac="02:00:00:00:00:aa")

    def planned(self, present: list[Address], *wanted: str, **keys: Any) -> tuple[Any, ...]:
        config: Config = parse(ipam=IPAM, isGateway=True, **keys)
        interfaces = [ip_interface(text) for text in wanted]
        return plan.plan_gateway(config, a_bridge(), present, interfaces, MAC)

    def test_what_is_there_is_left_alone(self) -> None:
        assert self.planned(addresses("10.0.0.1/24"), "10.0.0.1/24") == ()

    def test_a_bridge_that_lost_its_mac_gets_another(self) -> None:
        config = parse(ipam=IPAM, isGateway=True)
        bridge = a_bridge(mac="00:00:00:00:00:00")
        (operation,) = plan.plan_gateway(config, bridge, [], [], MAC)
        assert operation == ChangeLink(7, mac=MAC)

    def test_another_ipv4_address_is_in_the_way(self) -> None:
        with pytest.raises(InvalidConfig) as caught:
            self.planned(addresses("10.0.0.1/8"), "10.1.2.3/16")
        text = 'failed to set bridge addr: "cni0" already has an IP address different from 10.1.2.3/16'
        assert caught.value.msg == text

    def test_force_address_replaces_it(self) -> None:
        assert self.planned(addresses("10.0.0.1/8"), "10.1.2.3/16", forceAddress=True) == (
            self.PIN,
            DeleteAddress(7, ip_interface("10.0.0.1/8")),
            AddAddress(7, ip_interface("10.1.2.3/16")),
        )

    def test_overlapping_ipv6_networks_conflict(self) -> None:
        existing = addresses("2001:db8:1::1/48")
        with pytest.raises(InvalidConfig, match="already has an IP address"):
            self.planned(existing, "2001:db8:1:2::1/64")
        with pytest.raises(InvalidConfig, match="already has an IP address"):
            self.planned(addresses("2001:db8:1:2::1/64"), "2001:db8:1::1/48")
        forced = self.planned(existing, "2001:db8:1:2::1/64", forceAddress=True)
        assert DeleteAddress(7, ip_interface("2001:db8:1::1/48")) in forced

    def test_disjoint_ipv6_networks_and_the_other_family_do_not(self) -> None:
        existing = addresses("2001:db8:1:2::1/64", "10.0.0.1/8", "fe80::1/64")
        assert self.planned(existing, "fd00:1234::1/64", forceAddress=True) == (
            self.PIN,
            AddAddress(7, ip_interface("fd00:1234::1/64")),
        )

    def test_two_ipv4_gateways_of_one_result_conflict(self) -> None:
        with pytest.raises(InvalidConfig, match=r"different from 10\.1\.0\.1/24"):
            self.planned([], "10.0.0.1/24", "10.1.0.1/24")

    def test_the_vlans_link_is_named_in_the_complaint(self) -> None:
        config = parse(ipam=IPAM, isGateway=True, vlan=100)
        link = a_bridge(kind="veth", name="cni0.100")
        with pytest.raises(InvalidConfig, match=r'^failed to set vlan interface .* "cni0\.100" already has'):
            plan.plan_gateway(config, link, addresses("10.0.0.1/8"), [ip_interface("10.1.2.3/16")], MAC)

    def test_forwarding_is_for_the_families_there_are(self) -> None:
        both = plan.forwarding([ip_interface("fd00::1/64"), ip_interface("10.0.0.1/24")])
        assert [s.key for s in both] == ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]
        assert plan.forwarding([]) == ()


def test_the_results_interfaces_are_bridge_host_container_and_gateway() -> None:
    port = a_bridge(kind="veth", name="veth00000001", mac="fe:00:00:00:00:01", mtu=1400)
    gateway = a_bridge(kind="veth", name="cni0.5", mac="02:00:00:00:00:05")
    first_three = (
        Interface("cni0", "02:00:00:00:00:aa", mtu=1500),
        Interface("veth00000001", "fe:00:00:00:00:01", mtu=1400),
        Interface("eth0", MAC, "/run/netns/pod", mtu=1400),
    )
    assert plan.interfaces(a_bridge(), port, NAMES, "/run/netns/pod", None) == first_three
    with_gateway = plan.interfaces(a_bridge(), port, NAMES, "/run/netns/pod", gateway)
    assert with_gateway == (*first_three, Interface("cni0.5", "02:00:00:00:00:05", mtu=1500))


@given(entropy=st.binary(min_size=6, max_size=6))
def test_names_and_macs_made_by_chance_are_fit_for_links(entropy: bytes) -> None:
    assert len(plan.host_name(entropy)) == 12
    first = int(plan.local_mac(entropy)[:2], 16)
    assert first & 0b11 == 0b10
    assert plan.host_mac(entropy).startswith("fe:")
    assert len(plan.host_mac(entropy)) == len(plan.local_mac(entropy)) == 17
