"""What a guest on a real tap gets, read by scapy."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from cnvnet.guest.settings import GuestNeighbour
from tests.functional.guest.running_loop import Guest, Lab
from tests.unit.guest import scapy_packets
from tests.unit.guest.guests import MASQUERADE, POINT_TO_POINT, SERVER_MAC
from tests.unit.guest.scapy_packets import (
    ARP,
    GUEST_LINK_LOCAL,
    GUEST_MAC,
    IP,
    UDP,
    Ether,
    IPv6,
    Seen4,
    inet6,
)
from tests.unit.guest.scapy_packets import dhcp6 as d

RS = bytes(
    Ether(src=GUEST_MAC, dst="33:33:00:00:00:02")
    / IPv6(src=GUEST_LINK_LOCAL, dst="ff02::2", hlim=255)
    / inet6.ICMPv6ND_RS()
)
CLIENT = d.DHCP6OptClientId(duid=d.DUID_LL(lladdr=GUEST_MAC))


def is_advertisement(frame: bytes) -> bool:
    return bool(Ether(frame).haslayer(inet6.ICMPv6ND_RA))


def is_udp(frame: bytes) -> bool:
    return bool(Ether(frame).haslayer(UDP))


def is_arp(frame: bytes) -> bool:
    return bool(Ether(frame).haslayer(ARP))


def ask4(guest: Guest, *question: Any, **more: Any) -> Seen4:
    return Seen4(guest.ask(scapy_packets.client4(*question, **more), is_udp))


def test_a_client_comes_from_its_first_discover_to_its_renewal(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    assert loop.serve("vm1", guest, MASQUERADE) == {"served": "vm1"}
    offer = ask4(guest, "discover")
    assert (offer.kind, offer.bootp.yiaddr, offer.packet.src) == (2, "10.0.2.2", SERVER_MAC)
    request = ("requested_addr", offer.bootp.yiaddr)
    ack = ask4(guest, "request", request, ("server_id", offer.address(54)))
    assert (ack.kind, ack.bootp.yiaddr, ack.address(3)) == (5, "10.0.2.2", "10.0.2.1")
    renewed = ask4(guest, "request", ciaddr="10.0.2.2", source="10.0.2.2", destination="10.0.2.1")
    assert (renewed.kind, renewed.packet[IP].dst) == (5, "10.0.2.2")
    assert loop.counted("dhcp4", "ack") == 2


def test_dhcpv6_and_router_advertisements(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, MASQUERADE)
    unasked = scapy_packets.recomputed(guest.hear(is_advertisement))
    assert (unasked[IPv6].dst, unasked[IPv6].src) == ("ff02::1", "fe80::ff:fe00:0")
    asked = scapy_packets.recomputed(guest.ask(RS, is_advertisement))
    assert asked[IPv6].dst == GUEST_LINK_LOCAL
    solicit = scapy_packets.client6(d.DHCP6_Solicit(trid=7), CLIENT, d.DHCP6OptIA_NA(iaid=3))
    advertise = scapy_packets.recomputed(guest.ask(solicit, is_udp))
    assert advertise[d.DHCP6OptIAAddress].addr == "fd10:0:2::2"
    server = d.DHCP6OptServerId(duid=advertise[d.DHCP6OptServerId].duid)
    request = scapy_packets.client6(d.DHCP6_Request(trid=8), CLIENT, server, d.DHCP6OptIA_NA(iaid=3))
    reply = scapy_packets.recomputed(guest.ask(request, is_udp))
    assert (reply[d.DHCP6_Reply].trid, reply[d.DHCP6OptIAAddress].addr) == (8, "fd10:0:2::2")


def test_a_next_hop_that_answers_no_arp_is_answered_for(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, POINT_TO_POINT)
    for target, mac in (("169.254.1.1", "0a:58:a9:fe:01:01"), ("169.254.75.10", POINT_TO_POINT.server_mac)):
        question = Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(
            hwsrc=GUEST_MAC, psrc="192.168.21.225", pdst=target
        )
        answer = Ether(guest.ask(bytes(question), is_arp))
        assert (answer[ARP].op, answer[ARP].psrc, answer[ARP].hwsrc) == (2, target, mac)
    group = Ether(src=GUEST_MAC, dst="33:33:ff:00:00:01") / IPv6(src=GUEST_LINK_LOCAL, dst="ff02::1:ff00:1")
    question6 = group / inet6.ICMPv6ND_NS(tgt="fe80::1") / inet6.ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC)
    answer6 = Ether(guest.ask(bytes(question6), lambda frame: Ether(frame).haslayer(inet6.ICMPv6ND_NA)))
    assert answer6[inet6.ICMPv6NDOptDstLLAddr].lladdr == "0a:58:a9:fe:01:01"


def test_a_tap_that_is_a_port_of_a_bridge_is_answered_just_the_same(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    guest.sandbox.run("ip", "link", "add", "br0", "type", "bridge")
    guest.sandbox.run("ip", "link", "set", "br0", "up")
    guest.link("master", "br0")
    settings = MASQUERADE._replace(
        neighbours=(GuestNeighbour(IPv4Address("10.0.2.9"), "0a:00:00:00:00:09"),)
    )
    loop.serve("vm1", guest, settings)
    assert ask4(guest, "discover").kind == 2
    question = Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=GUEST_MAC, pdst="10.0.2.9")
    assert Ether(guest.ask(bytes(question), is_arp))[ARP].hwsrc == "0a:00:00:00:00:09"


def test_what_a_guest_sends_tagged_is_its_own_business(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, MASQUERADE)
    untagged = scapy_packets.discover4()
    tags = (b"\x81\x00\x00\x07", b"\x88\xa8\x00\x07", b"\x81\x00\x00\x07\x81\x00\x00\x08")
    for tag in tags:
        guest.send(untagged[:12] + tag + untagged[12:])
    assert ask4(guest, "discover").kind == 2
    assert loop.counted("dhcp4", "offer") == 1


def test_what_goes_to_the_guest_is_never_taken_for_its_own(lab: Lab) -> None:
    loop, guest = lab.loop(), lab.guest()
    loop.serve("vm1", guest, MASQUERADE)
    with guest.socket(MASQUERADE) as other:
        other.send(scapy_packets.discover4())
        assert guest.hear(is_udp) == scapy_packets.discover4()
        assert ask4(guest, "discover").kind == 2
    assert loop.counted("dhcp4", "offer") == 1
