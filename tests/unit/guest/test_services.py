from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.errors import InvalidConfig
from cnvnet.guest import arp, dhcp4, dhcp6, ra, services
from cnvnet.guest.settings import GuestNeighbour, Settings
from tests.unit.guest import scapy_packets
from tests.unit.guest.guests import MASQUERADE, POINT_TO_POINT, SERVER_MAC
from tests.unit.guest.scapy_packets import IP, UDP, Ether, IPv6, inet6
from tests.unit.guest.scapy_packets import dhcp6 as d

CORPUS = sorted(path.stem for path in (scapy_packets.DATA / "fuzz").glob("*.hex"))
# Everything on: also the neighbours, which masquerade has none of.
GUEST_SETTINGS = MASQUERADE._replace(
    neighbours=(GuestNeighbour(IPv4Address("169.254.1.1"), "0a:58:a9:fe:01:01"),)
)
GUEST = services.prepare(GUEST_SETTINGS)
BRIDGED = services.prepare(POINT_TO_POINT)

_SOLICIT = scapy_packets.client6(
    d.DHCP6_Solicit(trid=1),
    d.DHCP6OptClientId(duid=d.DUID_LL(lladdr=scapy_packets.GUEST_MAC)),
    d.DHCP6OptIA_NA(iaid=1),
    d.DHCP6OptOptReq(reqopts=[23, 24, 39, 56]),
)
_ENDS6 = Ether(src=scapy_packets.GUEST_MAC) / IPv6(
    src=scapy_packets.GUEST_LINK_LOCAL, dst="ff02::2", hlim=255
)
SOUND = {
    "dhcp4": scapy_packets.discover4(("param_req_list", [1, 3, 6, 119]), ("client_id", b"\1abcdef")),
    "dhcp6": _SOLICIT,
    "ra": bytes(_ENDS6 / inet6.ICMPv6ND_RS()),
    "nd": bytes(_ENDS6 / inet6.ICMPv6ND_NS(tgt="fe80::1")),
    "arp": bytes(
        Ether(src=scapy_packets.GUEST_MAC)
        / scapy_packets.ARP(hwsrc=scapy_packets.GUEST_MAC, pdst="169.254.1.1")
    ),
}

# The senders that an answer may have: the server, a router, a next hop that we answer for.
OURS = {SERVER_MAC, POINT_TO_POINT.server_mac, "0a:58:a9:fe:01:01"}


def is_sound(frame: bytes) -> None:
    """What every answer has to be, whatever it answers."""
    packet = scapy_packets.recomputed(frame)
    assert not packet.src.startswith(("01:", "33:", "ff:"))
    assert len(frame) - 14 <= 9001
    if packet.haslayer(UDP):
        assert (packet[UDP].sport, packet[UDP].dport) in {(67, 68), (67, 67), (547, 546)}
    if packet.haslayer(IP):
        assert packet[IP].src in ("10.0.2.1", "169.254.75.10")
        assert not packet[IP].dst.startswith("127.")


def is_fitting(question: bytes, answer: bytes) -> None:
    """A sound answer, from a host that we answer for to the one that has asked."""
    is_sound(answer)
    asked, packet = Ether(question), scapy_packets.recomputed(answer)
    assert packet.src in OURS
    if packet.haslayer(scapy_packets.ARP):
        assert packet.dst == asked[scapy_packets.ARP].hwsrc
        return
    receivers = {asked.src, "33:33:00:00:00:01" if packet.haslayer(IPv6) else scapy_packets.BROADCAST_MAC}
    if packet.haslayer(scapy_packets.BOOTP):
        # RFC 2131, section 4.1: to the hardware address in the message, unless a relay has sent it.
        receivers.add(packet[scapy_packets.BOOTP].chaddr[:6].hex(":"))
        assert packet[scapy_packets.BOOTP].xid == asked[scapy_packets.BOOTP].xid
    assert packet.dst in receivers
    if packet.dst == "33:33:00:00:00:01":
        assert packet[IPv6].dst == "ff02::1"
        assert asked[IPv6].src == "::"


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_is_counted_and_not_answered(name: str) -> None:
    comment, frame = scapy_packets.fixture(f"fuzz/{name}.hex")
    service, event = comment.split(":")[0].split()
    assert services.answer(GUEST, frame) == (service, event, ())


@pytest.mark.parametrize("service", SOUND)
def test_each_service_answers_through_the_one_function(service: str) -> None:
    answer = services.answer(BRIDGED if service == "nd" else GUEST, SOUND[service])
    assert answer.service == service
    (frame,) = answer.frames
    is_fitting(SOUND[service], frame)


@given(st.binary(max_size=400))
def test_random_bytes_are_passed_over(frame: bytes) -> None:
    assert services.answer(GUEST, frame).event


@given(st.sampled_from([b"\x08\x00", b"\x08\x06", b"\x86\xdd"]), st.binary(max_size=400))
def test_random_bytes_of_our_kinds_are_answered_fittingly_or_not_at_all(kind: bytes, rest: bytes) -> None:
    question = b"\xff" * 6 + scapy_packets.packed(scapy_packets.GUEST_MAC) + kind + rest
    for guest in (GUEST, BRIDGED):
        for frame in services.answer(guest, question).frames:
            is_fitting(question, frame)


@given(st.sampled_from(sorted(SOUND)), st.data())
def test_damaged_frames_are_answered_fittingly_or_not_at_all(service: str, data: st.DataObject) -> None:
    question = bytearray(SOUND[service])
    for _ in range(data.draw(st.integers(0, 3))):
        question[data.draw(st.integers(0, len(question) - 1))] = data.draw(st.integers(0, 255))
    question += data.draw(st.binary(max_size=40))
    for guest in (GUEST, BRIDGED):
        for frame in services.answer(guest, bytes(question)).frames:
            is_fitting(bytes(question), frame)


@given(st.sampled_from(sorted(SOUND)), st.binary(max_size=300))
def test_random_bytes_behind_sound_headers_never_raise(service: str, rest: bytes) -> None:
    head = {"dhcp4": 42, "dhcp6": 62, "ra": 54, "nd": 54, "arp": 14}[service]
    frame = SOUND[service][:head] + rest
    for guest in (GUEST, BRIDGED):
        assert services.answer(guest, frame).event


@given(st.data())
def test_random_messages_in_sound_datagrams_are_answered_soundly_or_not_at_all(data: st.DataObject) -> None:
    kind, mac = data.draw(st.sampled_from(["dhcp4", "dhcp6", "icmp6"])), scapy_packets.GUEST_MAC
    body = _mutated(
        data, {"dhcp4": SOUND["dhcp4"][42:], "dhcp6": _SOLICIT[62:], "icmp6": SOUND["ra"][54:]}[kind]
    )
    if kind == "dhcp4":
        packet = Ether(src=mac) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / body
    elif kind == "dhcp6":
        packet = Ether(src=mac) / IPv6(src="fe80::2", dst="ff02::1:2") / UDP(sport=546, dport=547) / body
    else:
        ends = IPv6(src="fe80::2", dst="ff02::1:ff00:1", hlim=255, nh=58)
        checksum = inet6.in6_chksum(58, ends, body[:2] + b"\0\0" + body[4:])
        packet = Ether(src=mac) / ends / (body[:2] + checksum.to_bytes(2, "big") + body[4:])
    for guest in (GUEST, BRIDGED):
        for frame in services.answer(guest, bytes(packet)).frames:
            is_fitting(bytes(packet), frame)


def _mutated(data: st.DataObject, body: bytes) -> bytes:
    """A sound message with some bytes changed, cut off or put in: half of it still makes sense."""
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(0, 6))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(8, len(changed)))
    place = data.draw(st.integers(0, end))
    return bytes(changed[:place]) + data.draw(st.binary(max_size=80)) + bytes(changed[place:end])


@pytest.mark.parametrize("service", SOUND)
def test_each_service_by_itself_passes_over_the_others_frames(service: str) -> None:
    frame = SOUND[service]
    assert GUEST.dhcp4 is not None
    assert GUEST.dhcp6 is not None
    assert GUEST.ra is not None
    replies = {
        "dhcp4": dhcp4.reply(GUEST.dhcp4, frame),
        "dhcp6": dhcp6.reply(GUEST.dhcp6, frame),
        "ra": ra.reply(GUEST.ra, frame),
        "arp": arp.reply(GUEST.neighbours, frame),
        "nd": arp.reply6(GUEST.neighbours, frame),
    }
    passed = [name for name, reply in replies.items() if reply == ((), "other_traffic")]
    assert passed == [name for name in replies if name != service]


def test_a_family_the_guest_does_not_have_is_passed_over() -> None:
    without = services.prepare(Settings(SERVER_MAC, 1500))
    assert {services.answer(without, frame) for frame in SOUND.values()} == {services.PASSED}
    assert services.announcements(without) == ()


def test_the_periodic_announcement_is_the_routers() -> None:
    (frame,) = services.announcements(GUEST)
    assert scapy_packets.recomputed(frame).haslayer(inet6.ICMPv6ND_RA)


def test_settings_that_cannot_be_served_are_refused_before_the_first_frame() -> None:
    with pytest.raises(InvalidConfig):
        services.prepare(MASQUERADE._replace(mtu=0))
