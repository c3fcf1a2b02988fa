from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any

from cnvnet.guest import arp
from cnvnet.guest.settings import GuestNeighbour, Settings, checked
from tests.unit.guest import scapy_packets
from tests.unit.guest.guests import MASQUERADE, POINT_TO_POINT
from tests.unit.guest.scapy_packets import ARP, BROADCAST_MAC, GUEST_LINK_LOCAL, GUEST_MAC, Ether, IPv6
from tests.unit.guest.scapy_packets import inet6 as nd

NEXT_HOP_MAC = "0a:58:a9:fe:01:01"
GUEST = "192.168.21.225"


def request(target: str, source: str = GUEST) -> bytes:
    question = ARP(op=1, hwsrc=GUEST_MAC, psrc=source, pdst=target)
    return bytes(Ether(src=GUEST_MAC, dst=BROADCAST_MAC) / question)


def solicitation(target: str, source: str = GUEST_LINK_LOCAL, settings: Settings = POINT_TO_POINT) -> Any:
    group = nd.in6_getnsma(IPv6Address(target).packed)
    packet = Ether(src=GUEST_MAC, dst="33:33:ff:00:00:01")
    packet = packet / IPv6(src=source, dst=str(IPv6Address(group)), hlim=255) / nd.ICMPv6ND_NS(tgt=target)
    if source != "::":
        packet = packet / nd.ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC)
    return arp.reply6(arp.prepare(checked(settings)), bytes(packet))


def answered(frame: bytes, settings: Settings = POINT_TO_POINT) -> Any:
    reply = arp.reply(arp.prepare(checked(settings)), frame)
    assert reply.event == "arp_reply"
    return Ether(reply.frames[0])


def ignored(frame: bytes, settings: Settings = POINT_TO_POINT) -> str:
    reply = arp.reply(arp.prepare(checked(settings)), frame)
    assert reply.frames == ()
    return reply.event


def test_an_adopted_next_hop_is_answered_for_with_its_own_mac() -> None:
    packet = answered(request("169.254.1.1"))
    assert (packet.src, packet.dst) == (NEXT_HOP_MAC, GUEST_MAC)
    assert (packet[ARP].op, packet[ARP].hwsrc, packet[ARP].psrc) == (2, NEXT_HOP_MAC, "169.254.1.1")
    assert (packet[ARP].hwdst, packet[ARP].pdst) == (GUEST_MAC, GUEST)


def test_a_server_id_outside_the_subnet_is_answered_for() -> None:
    # Windows asks for it before it renews; unanswered, it loses its gateway in the end.
    assert answered(request("169.254.75.10"))[ARP].hwsrc == POINT_TO_POINT.server_mac


def test_a_server_id_inside_the_subnet_is_left_to_the_pods_kernel() -> None:
    assert ignored(request("10.0.2.1", "10.0.2.2"), MASQUERADE) == "not_ours"


def test_duplicate_address_detection_finds_what_we_answer_for_and_never_the_guests_own() -> None:
    assert answered(request("169.254.1.1", "0.0.0.0"))[ARP].pdst == "0.0.0.0"
    own = GuestNeighbour(checked(POINT_TO_POINT).neighbours[0].address, NEXT_HOP_MAC)
    assert POINT_TO_POINT.v4 is not None
    settings = POINT_TO_POINT._replace(neighbours=(own._replace(address=POINT_TO_POINT.v4.address.ip),))
    assert ignored(request(GUEST, "0.0.0.0"), settings) == "not_ours"


def test_others_are_not_answered_for() -> None:
    assert ignored(request("192.168.21.1")) == "not_ours"


def test_a_routers_link_local_address_is_answered_for_with_its_mac() -> None:
    reply = solicitation("fe80::1")
    assert reply.event == "nd_reply"
    packet = scapy_packets.recomputed(reply.frames[0])
    assert (packet.src, packet.dst) == (NEXT_HOP_MAC, GUEST_MAC)
    assert (packet[IPv6].src, packet[IPv6].dst, packet[IPv6].hlim) == ("fe80::1", GUEST_LINK_LOCAL, 255)
    message = packet[nd.ICMPv6ND_NA]
    assert (message.tgt, message.R, message.S, message.O) == ("fe80::1", 1, 1, 0)
    assert packet[nd.ICMPv6NDOptDstLLAddr].lladdr == NEXT_HOP_MAC


def test_a_router_on_the_guests_own_link_speaks_for_itself() -> None:
    assert POINT_TO_POINT.v6 is not None
    alone = POINT_TO_POINT._replace(v6=POINT_TO_POINT.v6._replace(router_mac=""))
    assert IPv6Address("fe80::1").packed not in arp.prepare(checked(alone)).known


def test_a_solicitation_from_the_unspecified_address_is_answered_to_all() -> None:
    packet = scapy_packets.recomputed(solicitation("fe80::1", "::").frames[0])
    assert (packet.dst, packet[IPv6].dst, packet[nd.ICMPv6ND_NA].S) == ("33:33:00:00:00:01", "ff02::1", 0)


def test_an_adopted_ipv6_next_hop_is_answered_for() -> None:
    settings = POINT_TO_POINT._replace(neighbours=(GuestNeighbour(IPv6Address("fd00:21::1"), NEXT_HOP_MAC),))
    assert solicitation("fd00:21::1", settings=settings).event == "nd_reply"


def test_the_bridges_own_link_local_address_is_left_to_the_kernel() -> None:
    assert solicitation("fe80::ff:fe00:0", settings=MASQUERADE) == ((), "not_ours")
