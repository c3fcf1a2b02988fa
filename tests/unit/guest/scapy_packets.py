"""Packets made and read by scapy, as a check of ours: what clients send, and what we answer.

Nothing of the product is used here. scapy has no types, hence Any.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

_l2: Any = import_module("scapy.layers.l2")
_inet: Any = import_module("scapy.layers.inet")
_dhcp: Any = import_module("scapy.layers.dhcp")
_dns: Any = import_module("scapy.layers.dns")
inet6: Any = import_module("scapy.layers.inet6")
dhcp6: Any = import_module("scapy.layers.dhcp6")

Ether: Any = _l2.Ether
ARP: Any = _l2.ARP
IP: Any = _inet.IP
UDP: Any = _inet.UDP
BOOTP: Any = _dhcp.BOOTP
DHCP: Any = _dhcp.DHCP
IPv6: Any = inet6.IPv6

GUEST_MAC = "52:54:00:12:34:56"
GUEST_LINK_LOCAL = "fe80::5054:ff:fe12:3456"
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"
XID = 0x3903F326
DATA = Path(__file__).parents[2] / "data" / "guest"


def fixture(name: str) -> tuple[str, bytes]:
    """The comment and the frame of a file below tests/data/guest."""
    lines = (DATA / name).read_text().splitlines()
    comment = " ".join(line[2:] for line in lines if line.startswith("#"))
    return comment, bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


def packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def discover4(*options: Any, **more: Any) -> bytes:
    return client4("discover", *options, **more)


def client4(kind: Any, *options: Any, **more: Any) -> bytes:
    """A DHCPv4 client's frame. `more`: BOOTP's fields; `source`, `destination` and `mac` of the frame."""
    mac: str = more.pop("mac", GUEST_MAC)
    ends = Ether(src=mac, dst=BROADCAST_MAC)
    ends = ends / IP(src=more.pop("source", "0.0.0.0"), dst=more.pop("destination", "255.255.255.255"))
    bootp = BOOTP(**{"op": 1, "chaddr": packed(mac), "xid": XID, **more})
    dhcp = DHCP(options=[("message-type", kind), *options, "end"])
    return bytes(ends / UDP(sport=68, dport=67) / bootp / dhcp)


class Seen4:
    """A DHCPv4 answer as scapy reads it, with the checks that hold for every one of them."""

    def __init__(self, frame: bytes) -> None:
        self.packet = recomputed(frame)
        self.bootp = self.packet[BOOTP]
        assert (self.bootp.op, self.bootp.xid, self.packet[UDP].sport) == (2, XID, 67)
        payload = bytes(self.packet[UDP].payload)
        assert len(payload) >= 300
        self.options = options4(payload)
        self.kind = self.options[53][0]

    def address(self, code: int) -> str:
        """The one IPv4 address in an option."""
        value = self.options[code]
        assert len(value) == 4
        return ".".join(map(str, value))

    def number(self, code: int) -> int:
        return int.from_bytes(self.options[code], "big")


def options4(payload: bytes) -> dict[int, bytes]:
    """The options of a DHCPv4 message in their order, joined over all fields (RFC 2131, RFC 3396)."""
    found: dict[int, bytes] = {}
    fields = [payload[240:]]
    while fields:
        field = fields.pop(0)
        while field and field[0] != 255:
            if field[0] == 0:
                field = field[1:]
                continue
            code, value = field[0], field[2 : 2 + field[1]]
            assert len(value) == field[1], "an option goes beyond its field"
            found[code] = found.get(code, b"") + value
            if code == 52:
                fields += [payload[108:236]] * (value[0] & 1) + [payload[44:108]] * (value[0] >> 1)
            field = field[2 + len(value) :]
        assert field, "a field without an end"
    return found


def recomputed(frame: bytes) -> Any:
    """The frame as scapy reads it; every length and checksum must be what scapy computes for it."""
    packet = Ether(frame)
    again = packet.copy()
    layer = again
    while layer:
        for field in ("len", "plen", "chksum", "cksum"):
            if field in layer.fields and not type(layer).__name__.startswith(
                ("ICMPv6NDOpt", "DHCP6Opt", "ARP")
            ):
                layer.delfieldval(field)
        layer = layer.payload
    assert bytes(again) == frame, "a length or a checksum is wrong"
    return packet


def names(data: bytes) -> list[str]:
    """The domain names in a search list, compressed or not, as scapy's DNS code reads them."""
    found: list[str] = []
    rest = data
    while rest:
        name, rest = _dns.dns_get_str(rest, full=data)
        found.append(name.decode().removesuffix("."))
    return found


def client6(message: Any, *options: Any, **more: Any) -> bytes:
    """A DHCPv6 client's frame. `more`: `source`, `destination` and `mac` of the frame."""
    packet = Ether(src=more.get("mac", GUEST_MAC), dst="33:33:00:01:00:02")
    packet = packet / IPv6(
        src=more.get("source", GUEST_LINK_LOCAL), dst=more.get("destination", "ff02::1:2")
    )
    packet = packet / UDP(sport=546, dport=547) / message
    for option in options:
        packet = packet / option
    return bytes(packet)


def layers(packet: Any, kind: Any) -> list[Any]:
    """All layers of one kind."""
    found: list[Any] = []
    layer = packet.getlayer(kind)
    while layer is not None:
        found.append(layer)
        layer = layer.payload.getlayer(kind)
    return found


def is_dhcp4_answer(frame: bytes) -> bool:
    """Whether a frame is a DHCP server's, whatever is in it."""
    packet = Ether(frame)
    return bool(packet.haslayer(UDP)) and packet[UDP].sport == 67
