from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.guest import frames
from cnvnet.guest.frames import Endpoints, Ignored
from tests.unit.guest import scapy_packets
from tests.unit.guest.scapy_packets import UDP, Ether, IPv6

ports = st.integers(1, 65535)
payloads = st.binary(max_size=600)
ENDS4 = Endpoints(b"\x02" * 6, b"\x52" * 6, bytes((10, 0, 2, 1)), bytes((10, 0, 2, 2)))
ENDS6 = ENDS4._replace(source=bytes.fromhex("fe80" + "0" * 27 + "1"), destination=frames.ALL_NODES)


@given(st.binary(max_size=100))
def test_the_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert frames.checksum(data) == 0xFFFF - total


@given(payloads, ports, ports)
def test_a_built_ipv4_datagram_is_read_by_scapy_and_by_us(payload: bytes, source: int, port: int) -> None:
    frame = frames.build_udp4(ENDS4, source, port, payload)
    assert bytes(scapy_packets.recomputed(frame)[UDP].payload) == payload
    read = frames.udp4(frame, port)
    assert read == frames.Datagram(ENDS4.link_source, ENDS4.source, ENDS4.destination, source, payload)


@given(payloads, ports, ports)
def test_a_built_ipv6_datagram_is_read_by_scapy_and_by_us(payload: bytes, source: int, port: int) -> None:
    frame = frames.build_udp6(ENDS6, source, port, payload)
    assert bytes(scapy_packets.recomputed(frame)[UDP].payload) == payload
    read = frames.udp6(frame, port)
    assert read == frames.Datagram(ENDS6.link_source, ENDS6.source, ENDS6.destination, source, payload)


@given(payloads)
def test_a_datagram_of_scapys_is_read(payload: bytes) -> None:
    frame = bytes(
        Ether(src=scapy_packets.GUEST_MAC)
        / scapy_packets.IP(src="10.0.2.2", dst="10.0.2.1")
        / UDP(dport=67)
        / payload
    )
    read = frames.udp4(frame + b"\0" * 9, 67)  # Ethernet pads short frames
    assert read is not None
    assert read.payload == payload


@given(st.binary(min_size=4, max_size=200))
def test_a_built_icmp6_message_has_scapys_checksum_and_is_read_by_us(body: bytes) -> None:
    frame = frames.build_icmp6(ENDS6, 200, body)
    unsummed = frame[54:56] + b"\0\0" + body
    assert int.from_bytes(frame[56:58], "big") == scapy_packets.inet6.in6_chksum(
        58, IPv6(frame[14:54]), unsummed
    )
    read = frames.icmp6(frame)
    assert read == (ENDS6.link_source, ENDS6.source, ENDS6.destination, 255, 200, 0, body)


def test_a_checksum_that_the_guest_left_to_its_card_is_let_through() -> None:
    frame = bytearray(scapy_packets.discover4())
    length = len(frame) - 34
    pseudo = bytes(frame[26:34]) + struct.pack("!HH", 17, length)
    total = sum(struct.unpack("!6H", pseudo))
    frame[40:42] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    assert frames.udp4(bytes(frame), 67) is not None
    frame[41] ^= 1
    with pytest.raises(Ignored):
        frames.udp4(bytes(frame), 67)


def test_no_checksum_is_fine_for_ipv4() -> None:
    frame = bytearray(scapy_packets.discover4())
    frame[40:42] = b"\0\0"
    assert frames.udp4(bytes(frame), 67) is not None


@given(payloads, st.data())
def test_a_flipped_bit_in_a_datagram_is_noticed(payload: bytes, data: st.DataObject) -> None:
    frame = bytearray(frames.build_udp4(ENDS4, 68, 67, payload))
    # All that a checksum covers; the checksum's own bits may give "none" or a partial one.
    place = data.draw(st.sampled_from([*range(14, 40), *range(42, len(frame))]))
    frame[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert frames.udp4(bytes(frame), 67) is None
    except Ignored:
        pass


@pytest.mark.parametrize(
    "text", ["", "02:00:00:00:00", "0200:0000:0000", "02:00:00:00:00:0g", "020000000000"]
)
def test_what_is_no_mac_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"MAC address|hexadecimal"):
        frames.mac(text)
