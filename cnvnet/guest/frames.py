"""Ethernet, IPv4, IPv6, UDP and ICMPv6 headers: decoded with every check that a host makes, and encoded.

A frame comes from a guest, so every field is checked. Functions that decode one return None for traffic of
another kind and raise `Ignored` for traffic of their kind that must not be answered.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

ETHERTYPE_IPV4: Final = b"\x08\x00"
ETHERTYPE_ARP: Final = b"\x08\x06"
ETHERTYPE_IPV6: Final = b"\x86\xdd"
PROTOCOL_UDP: Final = 17
PROTOCOL_ICMP6: Final = 58

BROADCAST_MAC: Final = b"\xff" * 6
# ff02::1, and the MAC that IPv6 multicast makes of it: 33:33 and the address's last four bytes (RFC 2464).
ALL_NODES: Final = bytes.fromhex("ff020000000000000000000000000001")
ALL_NODES_MAC: Final = bytes.fromhex("333300000001")
UNSPECIFIED6: Final = bytes(16)

MALFORMED: Final = "malformed"
OTHER_TRAFFIC: Final = "other_traffic"

# The first 14 bytes, then a header without options: less than this is no datagram of its kind.
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_IPV6: Final = struct.Struct("!IHBB16s16s")
_UDP: Final = struct.Struct("!HHHH")
_ICMP6: Final = struct.Struct("!BBH")
_LENGTH_AND_PROTOCOL: Final = struct.Struct("!IHBB")


class Ignored(Exception):
    """A frame that gets no answer; `event` names the counter that goes up instead."""

    def __init__(self, event: str = MALFORMED) -> None:
        super().__init__(event)
        self.event = event


class Reply(NamedTuple):
    """What one frame leads to: whole frames for the same tap (often none) and the counter that goes up."""

    frames: tuple[bytes, ...]
    event: str


class Datagram(NamedTuple):
    """One UDP datagram with what is needed to answer it. Addresses are packed."""

    link_source: bytes
    source: bytes
    destination: bytes
    source_port: int
    payload: bytes


class Icmp6(NamedTuple):
    """One ICMPv6 message. `body` begins behind the checksum."""

    link_source: bytes
    source: bytes
    destination: bytes
    hop_limit: int
    type: int
    code: int
    body: bytes


def mac(text: str) -> bytes:
    """The six bytes of aa:bb:cc:dd:ee:ff. ValueError when that is not what it is."""
    packed = bytes.fromhex(text.replace(":", ""))
    if len(packed) != 6 or text.count(":") != 5:
        raise ValueError(f"{text!r} is not a MAC address")
    return packed


def is_station(address: bytes) -> bool:
    """Whether a MAC address can belong to one network card: neither a group's nor zero."""
    return not address[0] & 1 and address != b"\0\0\0\0\0\0"


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`.

    A sum of 16-bit words with the carries added is the remainder of the whole number divided by 65535, which
    Python computes many times faster than a loop. Only a remainder of 0 has two meanings: it stands for
    0xffff, unless all bytes are zero.
    """
    number = int.from_bytes(data if len(data) % 2 == 0 else data + b"\0", "big")
    return 0xFFFF - (number % 0xFFFF or (0xFFFF if number else 0))


def _pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """The pseudo header of UDP and ICMPv6; for IPv4 the longer fields only add zeroes to the sum."""
    return source + destination + _LENGTH_AND_PROTOCOL.pack(length, 0, 0, protocol)


def _sound(pseudo: bytes, data: bytes, field: int) -> bool:
    """Whether a checksum is right, or still is the pseudo header's sum alone.

    The latter is what a packet socket on the tap shows when the guest leaves checksums to its virtio card,
    which fills them in only when the frame leaves the node.
    """
    return not checksum(pseudo + data) or field == 0xFFFF - checksum(pseudo)


def _link_source(frame: bytes) -> bytes:
    source = frame[6:12]
    if not is_station(source):
        raise Ignored
    return source


def udp4(frame: bytes, port: int) -> Datagram | None:
    """The IPv4 datagram to UDP `port` in a frame; None for anything else."""
    if frame[12:14] != ETHERTYPE_IPV4:
        return None
    if len(frame) < 34:
        raise Ignored
    first, _, total, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(frame, 14)
    if protocol != PROTOCOL_UDP or fragment & 0x1FFF:
        return None  # a later fragment has no ports: it cannot be for a service
    start = 14 + (first & 15) * 4
    end = 14 + total
    if first >> 4 != 4 or start < 34 or not start + 8 <= end <= len(frame):
        raise Ignored
    if checksum(frame[14:start]):
        raise Ignored
    source_port, destination_port, length, field = _UDP.unpack_from(frame, start)
    if destination_port != port:
        return None
    if fragment & 0x2000 or not 8 <= length <= end - start:
        raise Ignored
    data = frame[start : start + length]
    if field and not _sound(_pseudo(source, destination, PROTOCOL_UDP, length), data, field):
        raise Ignored
    return Datagram(_link_source(frame), source, destination, source_port, data[8:])


def _ipv6(frame: bytes, protocol: int) -> tuple[bytes, bytes, int, bytes] | None:
    """Source, destination, hop limit and payload of an IPv6 frame without extension headers."""
    if frame[12:14] != ETHERTYPE_IPV6:
        return None
    if len(frame) < 54:
        raise Ignored
    first, length, next_header, hops, source, destination = _IPV6.unpack_from(frame, 14)
    if next_header != protocol:
        return None
    if first >> 28 != 6 or not 4 <= length <= len(frame) - 54 or source[0] == 0xFF:
        raise Ignored
    return source, destination, hops, frame[54 : 54 + length]


def udp6(frame: bytes, port: int) -> Datagram | None:
    """The IPv6 datagram to UDP `port` in a frame; None for anything else."""
    packet = _ipv6(frame, PROTOCOL_UDP)
    if packet is None:
        return None
    source, destination, _, data = packet
    if len(data) < 8:
        raise Ignored
    source_port, destination_port, length, field = _UDP.unpack_from(data)
    if destination_port != port:
        return None
    # Unlike IPv4's, a checksum of zero is not allowed (RFC 8200, section 8.1).
    if not 8 <= length <= len(data) or not field:
        raise Ignored
    data = data[:length]
    if not _sound(_pseudo(source, destination, PROTOCOL_UDP, length), data, field):
        raise Ignored
    return Datagram(_link_source(frame), source, destination, source_port, data[8:])


def icmp6(frame: bytes) -> Icmp6 | None:
    """The ICMPv6 message in a frame; None for anything else."""
    packet = _ipv6(frame, PROTOCOL_ICMP6)
    if packet is None:
        return None
    source, destination, hops, data = packet
    kind, code, field = _ICMP6.unpack_from(data)
    if not _sound(_pseudo(source, destination, PROTOCOL_ICMP6, len(data)), data, field):
        raise Ignored
    return Icmp6(_link_source(frame), source, destination, hops, kind, code, data[4:])


def neighbour_options(body: bytes, offset: int) -> dict[int, bytes]:
    """The options of an ND message behind `offset`: the first of each type, without its two-byte header.

    One of length zero makes the whole message invalid (RFC 4861, section 4.6).
    """
    options: dict[int, bytes] = {}
    end = len(body)
    while offset < end:
        length = body[offset + 1] * 8 if offset + 1 < end else 0
        if not length or offset + length > end:
            raise Ignored
        options.setdefault(body[offset], body[offset + 2 : offset + length])
        offset += length
    return options


class Endpoints(NamedTuple):
    """From where to where a datagram goes: link addresses, then packed network addresses."""

    link_source: bytes
    link_destination: bytes
    source: bytes
    destination: bytes


def _udp(ends: Endpoints, source_port: int, destination_port: int, payload: bytes) -> bytes:
    length = 8 + len(payload)
    pseudo = _pseudo(ends.source, ends.destination, PROTOCOL_UDP, length)
    # A computed zero is sent as all ones, for zero means "no checksum" (RFC 768).
    field = checksum(pseudo + _UDP.pack(source_port, destination_port, length, 0) + payload) or 0xFFFF
    return _UDP.pack(source_port, destination_port, length, field) + payload


def build_udp4(ends: Endpoints, source_port: int, destination_port: int, payload: bytes) -> bytes:
    """A whole frame with one unfragmented IPv4 datagram."""
    data = _udp(ends, source_port, destination_port, payload)
    fields = (0x45, 0, 20 + len(data), 0, 0, 64, PROTOCOL_UDP)
    field = checksum(_IPV4.pack(*fields, 0, ends.source, ends.destination))
    header = _IPV4.pack(*fields, field, ends.source, ends.destination)
    return ends.link_destination + ends.link_source + ETHERTYPE_IPV4 + header + data


def _build_ipv6(ends: Endpoints, protocol: int, hop_limit: int, data: bytes) -> bytes:
    header = _IPV6.pack(6 << 28, len(data), protocol, hop_limit, ends.source, ends.destination)
    return ends.link_destination + ends.link_source + ETHERTYPE_IPV6 + header + data


def build_udp6(ends: Endpoints, source_port: int, destination_port: int, payload: bytes) -> bytes:
    """A whole frame with one IPv6 datagram."""
    return _build_ipv6(ends, PROTOCOL_UDP, 64, _udp(ends, source_port, destination_port, payload))


def build_icmp6(ends: Endpoints, kind: int, body: bytes) -> bytes:
    """A whole frame with one ICMPv6 message of code 0; hop limit 255, as all of ND has it (RFC 4861)."""
    pseudo = _pseudo(ends.source, ends.destination, PROTOCOL_ICMP6, 4 + len(body))
    field = checksum(pseudo + _ICMP6.pack(kind, 0, 0) + body)
    return _build_ipv6(ends, PROTOCOL_ICMP6, 255, _ICMP6.pack(kind, 0, field) + body)
