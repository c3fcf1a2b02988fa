"""The program is run by the kernel, on a socket pair: no root is needed for that."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.guest import bpf, frames, services, tap_socket
from cnvnet.guest.services import Services
from cnvnet.guest.settings import GuestNeighbour, Settings
from tests.unit.guest import scapy_packets
from tests.unit.guest.guests import MASQUERADE, POINT_TO_POINT, SERVER_MAC
from tests.unit.guest.scapy_packets import ARP, GUEST_LINK_LOCAL, GUEST_MAC, IP, UDP, Ether, IPv6, inet6
from tests.unit.guest.test_services import BRIDGED, CORPUS, GUEST, SOUND

MANY = tuple(GuestNeighbour(IPv4Address(0x0A000900 + n), "0a:00:00:00:00:01") for n in range(100))
MANY6 = tuple(
    GuestNeighbour(IPv6Address(0xFE80 << 112 | 0x900 + n), "0a:00:00:00:00:01") for n in range(100)
)
FEW = 30
GUESTS = {
    "all": GUEST,
    "bridged": BRIDGED,
    "only-v4": services.prepare(MASQUERADE._replace(v6=None)),
    "only-v6": services.prepare(MASQUERADE._replace(v4=None)),
    "neighbours": services.prepare(Settings(SERVER_MAC, 1500, neighbours=MANY[:FEW] + MANY6[:FEW])),
    "many-neighbours": services.prepare(POINT_TO_POINT._replace(neighbours=MANY + MANY6)),
    "none": services.prepare(Settings(SERVER_MAC, 1500)),
}
ALLOWED_STEPS = 4096  # BPF_MAXINSNS


def received(guest: Services, frame: bytes) -> bytes | None:
    """What comes through the filter of this guest; None: nothing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        tap_socket.attach(ours, bpf.program(guest))
        theirs.send(frame)
        ours.setblocking(False)
        try:
            return ours.recv(100000)
        except BlockingIOError:
            return None


def passes(guest: Services, frame: bytes) -> bool:
    return received(guest, frame) == frame


def asking_arp(target: str, **more: int) -> bytes:
    return bytes(Ether(src=GUEST_MAC) / ARP(hwsrc=GUEST_MAC, pdst=target, **more))


def asking_nd(target: str) -> bytes:
    ends = Ether(src=GUEST_MAC) / IPv6(src=GUEST_LINK_LOCAL, dst="ff02::1:ff00:1", hlim=255)
    return bytes(ends / inet6.ICMPv6ND_NS(tgt=target))


@pytest.mark.parametrize("name", GUESTS)
def test_each_service_that_a_guest_has_sees_its_frames_and_no_other_does(name: str) -> None:
    guest = GUESTS[name]
    for service, frame in SOUND.items():
        answered = services.answer(guest, frame).frames != ()
        # Where there are too many neighbours to list, questions about others pass as well.
        unlisted = name == "many-neighbours" and service in ("arp", "nd")
        assert passes(guest, frame) == (answered or unlisted), service


@pytest.mark.parametrize("name", GUESTS)
def test_the_program_is_short_and_the_kernel_takes_it(name: str) -> None:
    assert len(bpf.program(GUESTS[name])) < ALLOWED_STEPS
    assert not passes(GUESTS[name], b"\0" * 60)


def test_only_questions_about_known_neighbours_pass() -> None:
    assert passes(BRIDGED, asking_arp("169.254.1.1"))
    assert passes(BRIDGED, asking_arp("169.254.75.10"))
    assert not passes(BRIDGED, asking_arp("169.254.1.2"))
    assert not passes(BRIDGED, asking_arp("169.254.1.1", op=2))
    assert passes(BRIDGED, asking_nd("fe80::1"))
    assert not passes(BRIDGED, asking_nd("fe80::2"))
    assert not passes(BRIDGED, asking_nd("fe80:0:0:1::1"))
    few = GUESTS["neighbours"]
    for neighbour in (*MANY[:FEW], *MANY6[:FEW]):
        ask = asking_nd if neighbour.address.version == 6 else asking_arp
        assert passes(few, ask(str(neighbour.address)))
    assert not passes(few, asking_arp(str(MANY[FEW].address)))
    assert not passes(few, asking_nd(str(MANY6[FEW].address)))


def with_options(frame: bytes, words: int = 3) -> bytes:
    """The same datagram behind an IP header with options, which make it longer."""
    total = int.from_bytes(frame[16:18], "big") + 4 * words
    header = bytes((0x45 + words, frame[15])) + total.to_bytes(2, "big") + frame[18:24]
    ends = frame[26:34] + b"\x01" * (4 * words)
    field = frames.checksum(header + bytes(2) + ends).to_bytes(2, "big")
    return frame[:14] + header + field + ends + frame[34:]


def longer(frame: bytes, size: int) -> bytes:
    """The same DHCP message with zeroes behind it, `size` bytes long."""
    head = Ether(frame)
    message = bytes(head[UDP].payload)
    head[UDP].remove_payload()
    for layer, field in ((IP, "len"), (IP, "chksum"), (UDP, "len"), (UDP, "chksum")):
        head[layer].delfieldval(field)
    return bytes(head / (message + bytes(size - len(message))))


@pytest.mark.parametrize("words", [1, 3, 10])
def test_ip_options_do_not_hide_the_port(words: int) -> None:
    frame = with_options(SOUND["dhcp4"], words)
    assert frame[14] == 0x45 + words
    assert services.answer(GUEST, frame).frames
    assert passes(GUEST, frame)


def test_the_port_is_not_looked_for_among_the_ip_options() -> None:
    other = bytes(Ether(src=GUEST_MAC) / IP(dst="10.0.2.1") / UDP(sport=68, dport=53) / bytes(300))
    disguised = bytearray(with_options(other))
    disguised[36:38] = b"\0\x43"
    assert not passes(GUEST, bytes(disguised))


def test_later_fragments_never_pass() -> None:
    for fragment in (1, 0x1000, 0x1FFF, 0x2001):
        frame = bytearray(SOUND["dhcp4"])
        frame[20:22] = fragment.to_bytes(2, "big")
        assert not passes(GUEST, bytes(frame))
    whole = bytearray(SOUND["dhcp4"])
    whole[20] = 0x40  # do not fragment
    assert passes(GUEST, bytes(whole))


def test_nothing_behind_an_ipv6_extension_header_passes() -> None:
    ends = Ether(src=GUEST_MAC) / IPv6(src=GUEST_LINK_LOCAL, dst="ff02::2", hlim=255)
    hops = inet6.IPv6ExtHdrHopByHop()
    for frame in (
        ends / hops / inet6.ICMPv6ND_RS(),
        ends / hops / UDP(sport=546, dport=547) / b"\1abc",
        ends / inet6.IPv6ExtHdrFragment() / UDP(sport=546, dport=547) / b"\1abc",
    ):
        assert services.answer(GUEST, bytes(frame)) == services.PASSED
        assert not passes(GUEST, bytes(frame))


def test_a_tag_that_is_still_in_the_frame_makes_it_another_kind() -> None:
    frame = SOUND["dhcp4"]
    for tag in (b"\x81\x00\x00\x07", b"\x88\xa8\x00\x07"):
        assert not passes(GUEST, frame[:12] + tag + frame[12:])


@pytest.mark.parametrize("service", SOUND)
def test_a_frame_that_is_cut_before_what_is_looked_at_is_dropped(service: str) -> None:
    guest = BRIDGED if service == "nd" else GUEST
    frame = SOUND[service]
    looked_at = {"dhcp4": 38, "dhcp6": 58, "ra": 55, "nd": 78, "arp": 42}[service]
    for length in range(1, looked_at):
        assert received(guest, frame[:length]) is None
    assert passes(guest, frame[:looked_at])


def test_a_frame_longer_than_any_clients_is_cut_and_not_answered() -> None:
    cut = received(GUEST, longer(SOUND["dhcp4"], 6000))
    assert cut is not None
    assert len(cut) == bpf.LONGEST_FRAME
    assert services.answer(GUEST, cut).frames == ()


def test_the_longest_message_that_is_answered_arrives_whole() -> None:
    frame = with_options(longer(SOUND["dhcp4"], 4096), 10)
    assert services.answer(GUEST, frame).event == "offer"
    assert passes(GUEST, frame)


@pytest.mark.parametrize("name", [name for name in CORPUS if name.startswith("none-")])
def test_the_guests_ordinary_traffic_stays_outside(name: str) -> None:
    _, frame = scapy_packets.fixture(f"fuzz/{name}.hex")
    assert not received(GUEST, frame)


guests = st.sampled_from(sorted(GUESTS))


@given(guests, st.binary(max_size=200))
def test_what_is_answered_among_random_bytes_passes(name: str, frame: bytes) -> None:
    if services.answer(GUESTS[name], frame).frames:
        assert passes(GUESTS[name], frame)


@given(guests, st.sampled_from(sorted(SOUND)), st.data())
def test_what_is_answered_among_damaged_frames_passes(name: str, service: str, data: st.DataObject) -> None:
    frame = bytearray(SOUND[service])
    for _ in range(data.draw(st.integers(0, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(frame) + data.draw(st.binary(max_size=60))
    if services.answer(GUESTS[name], damaged).frames:
        assert passes(GUESTS[name], damaged)


def ipv4(data: st.DataObject) -> bytes:
    """A datagram whose headers say anything, with the checksums right."""
    options = bytes(4 * data.draw(st.integers(0, 10)))
    port = data.draw(st.sampled_from([67, 67, 67, 68, 547, 0x4300]))
    payload = SOUND["dhcp4"][42:]
    length = 8 + len(payload)
    protocol = data.draw(st.sampled_from([17, 17, 17, 6]))
    fragment = data.draw(st.sampled_from([0, 0, 0x4000, 0x8000, 0x2000, 1]))
    first = bytes((0x45 + len(options) // 4, data.draw(st.integers(0, 255))))
    total = 20 + len(options) + length
    header = first + total.to_bytes(2, "big") + data.draw(st.binary(min_size=2, max_size=2))
    header += fragment.to_bytes(2, "big") + bytes((data.draw(st.integers(0, 255)), protocol))
    ends = bytes(4) + b"\xff" * 4 + options
    field = frames.checksum(header + bytes(2) + ends).to_bytes(2, "big")
    udp = data.draw(st.binary(min_size=2, max_size=2)) + port.to_bytes(2, "big") + length.to_bytes(2, "big")
    ethernet = data.draw(st.binary(min_size=6, max_size=6)) + scapy_packets.packed(GUEST_MAC) + b"\x08\x00"
    return ethernet + header + field + ends + udp + bytes(2) + payload


@given(st.sampled_from(["all", "only-v4", "only-v6"]), st.data())
def test_what_is_answered_whatever_its_ip_header_is_like_passes(name: str, data: st.DataObject) -> None:
    frame = ipv4(data)
    if services.answer(GUESTS[name], frame).frames:
        assert passes(GUESTS[name], frame)
    # And little else: the port and the first fragment decide.
    decided = frame[23] == 17 and not int.from_bytes(frame[20:22], "big") & 0x1FFF and name != "only-v6"
    start = 14 + (frame[14] & 15) * 4
    assert passes(GUESTS[name], frame) == (decided and frame[start + 2 : start + 4] == b"\0\x43")
