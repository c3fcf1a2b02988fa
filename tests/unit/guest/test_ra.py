from __future__ import annotations

from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from typing import Any

import pytest

from cnvnet.guest import ra
from cnvnet.guest.settings import Settings, checked
from tests.unit.guest import scapy_packets
from tests.unit.guest.guests import MASQUERADE, POINT_TO_POINT, SERVER_MAC
from tests.unit.guest.scapy_packets import GUEST_LINK_LOCAL, GUEST_MAC, Ether, IPv6
from tests.unit.guest.scapy_packets import inet6 as nd


def solicitation(source: str = GUEST_LINK_LOCAL, *options: Any) -> bytes:
    packet = Ether(src=GUEST_MAC, dst="33:33:00:00:00:02") / IPv6(src=source, dst="ff02::2", hlim=255)
    packet = packet / nd.ICMPv6ND_RS()
    for option in options:
        packet = packet / option
    return bytes(packet)


def offer(settings: Settings) -> ra.RaOffer:
    found = ra.prepare(checked(settings))
    assert found is not None
    return found


def answered(frame: bytes, settings: Settings = MASQUERADE) -> Any:
    reply = ra.reply(offer(settings), frame)
    assert reply.event == "advertisement"
    return scapy_packets.recomputed(reply.frames[0])


def test_a_solicitation_is_answered_to_its_sender() -> None:
    packet = answered(solicitation(GUEST_LINK_LOCAL, nd.ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC)))
    assert (packet.src, packet.dst) == (SERVER_MAC, GUEST_MAC)
    assert (packet[IPv6].src, packet[IPv6].dst) == ("fe80::ff:fe00:0", GUEST_LINK_LOCAL)
    assert packet[IPv6].hlim == 255


def test_a_short_lease_does_not_take_the_link_away_between_two_advertisements() -> None:
    packet = answered(solicitation(), MASQUERADE._replace(lease_seconds=60))
    assert packet[nd.ICMPv6NDOptPrefixInfo].validlifetime == packet[nd.ICMPv6ND_RA].routerlifetime == 65535


def test_a_solicitation_from_the_unspecified_address_is_answered_to_all_as_the_periodic_one_is() -> None:
    packet = answered(solicitation("::"))
    assert (packet.dst, packet[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert bytes(packet) == ra.advertise(offer(MASQUERADE))


def test_the_guest_learns_router_prefix_mtu_and_dns_and_to_ask_dhcpv6() -> None:
    packet = answered(solicitation())
    message = packet[nd.ICMPv6ND_RA]
    assert (message.M, message.O, message.routerlifetime, message.chlim) == (1, 1, 65535, 64)
    assert bytes(message)[5] == 0b11000000
    assert (message.reachabletime, message.retranstimer) == (0, 0)
    prefix = packet[nd.ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("fd10:0:2::", 120, 1, 0)
    assert prefix.validlifetime == prefix.preferredlifetime == 999 * 86400
    assert packet[nd.ICMPv6NDOptMTU].mtu == 1400
    assert packet[nd.ICMPv6NDOptSrcLLAddr].lladdr == SERVER_MAC
    assert (packet[nd.ICMPv6NDOptRDNSS].dns, packet[nd.ICMPv6NDOptRDNSS].lifetime) == (
        ["fd00:10:96::a"],
        65535,
    )
    assert packet[nd.ICMPv6NDOptDNSSL].searchlist == [f"{name}." for name in MASQUERADE.search]


def test_the_pods_own_router_is_announced_under_its_own_addresses() -> None:
    packet = answered(solicitation(), POINT_TO_POINT)
    assert (packet.src, packet[IPv6].src) == ("0a:58:a9:fe:01:01", "fe80::1")
    assert packet[nd.ICMPv6NDOptSrcLLAddr].lladdr == "0a:58:a9:fe:01:01"
    assert not packet.haslayer(nd.ICMPv6NDOptPrefixInfo), "an address alone has no network"


def test_a_router_on_the_guests_own_link_is_asked_for_its_mac_by_the_guest() -> None:
    assert MASQUERADE.v6 is not None
    v6 = MASQUERADE.v6._replace(router=IPv6Address("fe80::1"))
    packet = answered(solicitation(), MASQUERADE._replace(v6=v6))
    assert (packet.src, packet[IPv6].src) == (SERVER_MAC, "fe80::1")
    assert packet[nd.ICMPv6ND_RA].routerlifetime == 65535
    assert not packet.haslayer(nd.ICMPv6NDOptSrcLLAddr)


def test_a_network_without_a_default_route_names_its_routes() -> None:
    assert MASQUERADE.v6 is not None
    routes = (IPv6Network("fd00:8::/32"), IPv6Network("fd00:9:1:2:3::/80"), IPv6Network("2000::/3"))
    v6 = MASQUERADE.v6._replace(default_route=False, routes=routes)
    packet = answered(solicitation(), MASQUERADE._replace(v6=v6))
    assert packet[nd.ICMPv6ND_RA].routerlifetime == 0
    found = scapy_packets.layers(packet, nd.ICMPv6NDOptRouteInfo)
    assert [f"{route.prefix}/{route.plen}" for route in found] == list(map(str, routes))


def test_nothing_is_sent_empty() -> None:
    packet = answered(solicitation(), Settings(SERVER_MAC, 1500, v6=MASQUERADE.v6))
    assert not packet.haslayer(nd.ICMPv6NDOptRDNSS)
    assert not packet.haslayer(nd.ICMPv6NDOptDNSSL)


def test_an_mtu_of_ipv6_alone_is_advertised() -> None:
    assert MASQUERADE.v6 is not None
    settings = MASQUERADE._replace(mtu=1500, v6=MASQUERADE.v6._replace(mtu=1450))
    frame = ra.advertise(offer(settings))
    assert scapy_packets.recomputed(frame)[nd.ICMPv6NDOptMTU].mtu == 1450


def test_a_search_list_that_does_not_fit_loses_its_end() -> None:
    search = tuple(f"{index:0>60}.{'y' * 60}.example" for index in range(20))
    frame = ra.advertise(offer(MASQUERADE._replace(mtu=1280, search=search)))
    assert len(frame) - 14 <= 1280
    found = scapy_packets.recomputed(frame)[nd.ICMPv6NDOptDNSSL].searchlist
    assert 5 < len(found) < 20
    assert found == [f"{name}." for name in search[: len(found)]]


@pytest.mark.parametrize("length", [1, 56, 57, 63, 64, 65, 127])
def test_any_prefix_length_is_announced_as_it_is(length: int) -> None:
    assert MASQUERADE.v6 is not None
    v6 = MASQUERADE.v6._replace(address=IPv6Interface(f"fd10:0:2::2/{length}"))
    prefix = answered(solicitation(), MASQUERADE._replace(v6=v6))[nd.ICMPv6NDOptPrefixInfo]
    assert f"{prefix.prefix}/{prefix.prefixlen}" == str(v6.address.network)


def test_a_guest_without_ipv6_has_no_router() -> None:
    assert ra.prepare(checked(MASQUERADE._replace(v6=None))) is None


def test_other_messages_are_not_a_routers() -> None:
    packet = Ether(src=GUEST_MAC) / IPv6(src=GUEST_LINK_LOCAL, dst="ff02::1") / nd.ICMPv6EchoRequest()
    assert ra.reply(offer(MASQUERADE), bytes(packet)) == ((), "other_traffic")
