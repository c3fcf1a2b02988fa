"""Frames an honest guest sends, and frames that lie, each with the reason for which it is dropped.

scapy builds them. It has no types, hence Any.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from tests.functional.datapath.guarded_bridge import Guest, frame_mac

_dhcp: Any = import_module("scapy.layers.dhcp")
_dhcp6: Any = import_module("scapy.layers.dhcp6")
_inet: Any = import_module("scapy.layers.inet")
_inet6: Any = import_module("scapy.layers.inet6")
_l2: Any = import_module("scapy.layers.l2")
_packet: Any = import_module("scapy.packet")

BOOTP: Any = _dhcp.BOOTP
DHCP: Any = _dhcp.DHCP
DHCP6_Advertise: Any = _dhcp6.DHCP6_Advertise
DHCP6_Solicit: Any = _dhcp6.DHCP6_Solicit
ICMP: Any = _inet.ICMP
IP: Any = _inet.IP
TCP: Any = _inet.TCP
UDP: Any = _inet.UDP
IPOption_Router_Alert: Any = _inet.IPOption_Router_Alert
ICMPv6EchoRequest: Any = _inet6.ICMPv6EchoRequest
ICMPv6MLQuery: Any = _inet6.ICMPv6MLQuery
ICMPv6MLReport2: Any = _inet6.ICMPv6MLReport2
ICMPv6ND_NA: Any = _inet6.ICMPv6ND_NA
ICMPv6ND_NS: Any = _inet6.ICMPv6ND_NS
ICMPv6ND_RA: Any = _inet6.ICMPv6ND_RA
ICMPv6ND_Redirect: Any = _inet6.ICMPv6ND_Redirect
ICMPv6ND_RS: Any = _inet6.ICMPv6ND_RS
ICMPv6NDOptDstLLAddr: Any = _inet6.ICMPv6NDOptDstLLAddr
ICMPv6NDOptPrefixInfo: Any = _inet6.ICMPv6NDOptPrefixInfo
ICMPv6NDOptSrcLLAddr: Any = _inet6.ICMPv6NDOptSrcLLAddr
ICMPv6NDOptUnknown: Any = _inet6.ICMPv6NDOptUnknown
IPv6: Any = _inet6.IPv6
IPv6ExtHdrDestOpt: Any = _inet6.IPv6ExtHdrDestOpt
IPv6ExtHdrFragment: Any = _inet6.IPv6ExtHdrFragment
IPv6ExtHdrHopByHop: Any = _inet6.IPv6ExtHdrHopByHop
PadN: Any = _inet6.PadN
RouterAlert: Any = _inet6.RouterAlert
ARP: Any = _l2.ARP
LLC: Any = _l2.LLC
SNAP: Any = _l2.SNAP
Dot1AD: Any = _l2.Dot1AD
Dot1Q: Any = _l2.Dot1Q
Dot3: Any = _l2.Dot3
Ether: Any = _l2.Ether
Raw: Any = _packet.Raw

# Another host on the LAN.
MAC = "02:00:00:00:00:ee"
V4, V6, V6_LOCAL = "10.1.2.66", "fd00::66", "fe80::66"
GATEWAY4 = "10.1.2.1"
ALL_NODES = "ff02::1"
BROADCAST = "ff:ff:ff:ff:ff:ff"
PASSED = "passed"

T = TypeVar("T")
Build = Callable[[Guest], Any]


class Case(NamedTuple):
    """A frame by its description, and what becomes of it: "passed", or the counter that notes why not."""

    name: str
    verdict: str
    build: Build


def honest(name: str, build: Build) -> Case:
    return Case(name, PASSED, build)


def lie(name: str, verdict: str, build: Build) -> Case:
    return Case(name, verdict, build)


def each(verdict: str, values: Mapping[str, T], build: Callable[[Guest, T], Any]) -> list[Case]:
    """A case for each of these values, by its name."""

    def of(value: T) -> Build:
        return lambda guest: build(guest, value)

    return [Case(name, verdict, of(value)) for name, value in values.items()]


def named(prefix: str, numbers: Iterable[int], form: str = "d") -> dict[str, int]:
    return {f"{prefix}-{number:{form}}": number for number in numbers}


def tagged(frame: bytes, vid: int = 7) -> bytes:
    """The frame with one 802.1Q tag more."""
    return frame[:12] + b"\x81\x00" + vid.to_bytes(2) + frame[12:]


def ether(guest: Guest, *, src: str = "", dst: str = BROADCAST) -> Any:
    return Ether(src=src or guest.mac, dst=dst)


def typed(guest: Guest, ethertype: int, payload: bytes, *, src: str = "") -> Any:
    return Ether(src=src or guest.mac, dst=BROADCAST, type=ethertype) / Raw(payload)


def arp(guest: Guest, op: int = 1, **fields: Any) -> Any:
    fields = {"hwsrc": guest.mac, "psrc": guest.ipv4, "hwdst": "00:00:00:00:00:00", "pdst": V4, **fields}
    return ether(guest) / ARP(op=op, **fields)


def ipv4(guest: Guest, src: str = "", **fields: Any) -> Any:
    return ether(guest) / IP(src=src or guest.ipv4, dst=fields.pop("dst", GATEWAY4), **fields)


def ipv6(guest: Guest, src: str = "", dst: str = ALL_NODES, **fields: Any) -> Any:
    return ether(guest, dst="33:33:00:00:00:01") / IPv6(src=src or guest.ipv6, dst=dst, **fields)


def local(guest: Guest) -> Any:
    """From the guest's own link-local address."""
    return ipv6(guest, guest.link_local)


def fragment(packet: Any, payload: Any, *, offset: int = 0, more: int = 1, next_header: int = 58) -> Any:
    """A fragment as it is on the wire, without scapy's own opinion of what is inside."""
    return packet / IPv6ExtHdrFragment(nh=next_header, offset=offset, m=more, id=7) / Raw(payload)


def checksummed(layer: Any) -> bytes:
    """An ICMPv6 message as bytes; no rule on the way looks at the checksum."""
    return bytes(IPv6(src="::1", dst="::1") / layer)[40:]


def rarp(guest: Guest, **fields: Any) -> Any:
    """What QEMU sends after a migration."""
    own = {"hwsrc": guest.mac, "hwdst": guest.mac, "psrc": "0.0.0.0", "pdst": "0.0.0.0", **fields}
    return Ether(src=guest.mac, dst=BROADCAST, type=0x8035) / ARP(op=3, **own)


def dhcp_offer(*, sport: int = 67) -> Any:
    offer = DHCP(options=[("message-type", "offer"), ("router", V4), "end"])
    return UDP(sport=sport, dport=68) / BOOTP(op=2, yiaddr="10.1.2.99") / offer


def discover(guest: Guest, **fields: Any) -> Any:
    return ipv4(guest, "0.0.0.0", dst="255.255.255.255") / dhcp_request(guest, "discover", **fields)


def dhcp_request(guest: Guest, kind: str = "request", *, sport: int = 68, **fields: Any) -> Any:
    """What a client says; `fields` are those of BOOTP."""
    bootp = BOOTP(**{"op": 1, "chaddr": frame_mac(guest.mac), **fields})
    return UDP(sport=sport, dport=67) / bootp / DHCP(options=[("message-type", kind), "end"])


def dhcp6_message(kind: int, *, sport: int = 546) -> Any:
    """A message to a server that has nothing but its type and a transaction ID."""
    return UDP(sport=sport, dport=547) / Raw(bytes((kind, 0, 0, 1)))


def authenticated(packet: Any, next_header: int, payload: bytes, **fields: Any) -> Any:
    """Behind an authentication header (RFC 4302) of 24 bytes."""
    header = bytes((next_header, 4, 0, 0)) + b"spi." + bytes(16)
    return stacked(packet, *([IPv6ExtHdrFragment(**fields)] if fields else []), Raw(header + payload))


def multicast4(guest: Guest, protocol: int, payload: bytes, **fields: Any) -> Any:
    fields = {"src": guest.ipv4, "dst": "224.0.0.1", "ttl": 1, **fields}
    # By broadcast: frames to a group's own address the bridge sends to its members alone.
    return ether(guest) / IP(proto=protocol, **fields) / Raw(payload)


def multicast_listener(message: Any, guest: Guest) -> Any:
    return local(guest) / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / message


def switch_frame(guest: Guest, last: int, payload: Any) -> Any:
    """A frame to one of the addresses that bridges keep for what they say to each other."""
    return to_switches(Dot3(src=guest.mac) / payload, last)


def to_switches(frame: Any, last: int) -> Any:
    frame.dst = f"01:80:c2:00:00:{last:02x}"
    return frame


def cut(packet: Any, payload: Any, length: int) -> Any:
    """The packet with the first bytes of its payload, whatever they say of their length."""
    return packet / Raw(bytes(payload)[:length])


def advertisement(target: str, *options: Any) -> Any:
    return stacked(ICMPv6ND_NA(R=0, S=0, O=1, tgt=target), *options)


def solicitation(target: str, *options: Any) -> Any:
    return stacked(ICMPv6ND_NS(tgt=target), *options)


def stacked(first: Any, *others: Any) -> Any:
    for other in others:
        first = first / other
    return first


def target_mac(mac: str) -> Any:
    return ICMPv6NDOptDstLLAddr(lladdr=mac)


def source_mac(mac: str) -> Any:
    return ICMPv6NDOptSrcLLAddr(lladdr=mac)


def nonce() -> Any:
    return ICMPv6NDOptUnknown(type=14, len=1, data=b"123456")


def options_header(*, pad: int = 4, size: int | None = None) -> Any:
    return IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * pad)], len=size)


def cut_header(next_header: int) -> bytes:
    """Destination options that promise 2,048 bytes and end after eight: the rest is in another fragment."""
    return bytes((next_header, 255, 1, 4, 0, 0, 0, 0))


ROUTER = ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::", prefixlen=64)
REDIRECT = ICMPv6ND_Redirect(tgt=V6_LOCAL, dst="2001:db8::1")
ECHO = ICMPv6EchoRequest(data=b"hello")
DNS = UDP(sport=40000, dport=53) / b"question"
FIRST_OF_OFFER = bytes(dhcp_offer())[:64]
ADVERTISE = UDP(sport=547, dport=546) / DHCP6_Advertise(trid=1)
# Data that would be ports or types, were it not in the middle of a packet: of DHCP and DHCPv6 both ways, and
# of an authentication header before UDP.
PORTS = {port: (17, port.to_bytes(2) * 600) for port in (67, 68, 546, 547)}
LOOKS: dict[str, tuple[int, bytes]] = {
    **{f"ipv4-later-fragment-like-{port}": looks for port, looks in PORTS.items()},
    "ipv4-later-fragment-like-68-67": (17, b"\0\x44\0\x43" * 300),
    "ipv4-later-fragment-short": (17, b"\0\x43"),
    **{f"ipv4-later-fragment-like-icmp-{kind}": (1, bytes([kind]) * 1200) for kind in (5, 9)},
    "ipv4-later-fragment-like-ah": (51, b"\x11" * 1000),
}
LOOKS6: dict[str, tuple[int, bytes]] = {
    **{f"ipv6-later-fragment-like-{port}": looks for port, looks in PORTS.items()},
    **{f"ipv6-later-fragment-like-icmp-{kind}": (58, bytes([kind]) * 1200) for kind in (130, 134, 136, 137)},
}
BPDU = LLC(dsap=0x42, ssap=0x42, ctrl=3) / Raw(bytes(35))

HONEST: list[Case] = [
    honest("arp-request", arp),
    honest("arp-reply", lambda g: arp(g, 2, hwdst=MAC)),
    honest("arp-announcement", lambda g: arp(g, pdst=g.ipv4)),
    honest("arp-probe", lambda g: arp(g, psrc="0.0.0.0", pdst=g.ipv4)),
    honest("arp-probe-of-another", lambda g: arp(g, psrc="0.0.0.0")),
    honest("rarp-of-qemu", rarp),
    honest("udp", lambda g: ipv4(g) / DNS),
    honest("tcp", lambda g: ipv4(g) / TCP(sport=40000, dport=80, flags="S")),
    honest("ping", lambda g: ipv4(g) / ICMP() / b"hello"),
    honest("ipv4-options", lambda g: ipv4(g, options=[IPOption_Router_Alert()]) / DNS),
    honest("ipv4-first-fragment", lambda g: ipv4(g, flags="MF") / DNS),
    honest("ipv4-later-fragment", lambda g: ipv4(g, frag=100, proto=17) / b"a later part"),
    *each(PASSED, LOOKS, lambda g, looks: ipv4(g, frag=185, proto=looks[0]) / looks[1]),
    *each(PASSED, LOOKS6, lambda g, looks: fragment(ipv6(g), looks[1], offset=181, next_header=looks[0])),
    # nft takes the IPv6 header for the transport header of a later fragment: 546 is in the flow label there.
    *each(
        PASSED,
        named("ipv6-later-fragment-of-flow", (67, 68, 546, 547)),
        lambda g, flow: fragment(ipv6(g, fl=0x40000 + flow), b"part", offset=181, next_header=17),
    ),
    honest("igmp-without-address", lambda g: ipv4(g, "0.0.0.0", proto=2) / b"\x22\0\0\0\0\0\0\0"),
    *each(
        PASSED,
        named("igmp", (0x12, 0x16, 0x17, 0x22, 0x31), "x"),
        lambda g, kind: multicast4(g, 2, bytes([kind]) + bytes(7)),
    ),
    honest("dhcp-discover", discover),
    honest("dhcp-renewal", lambda g: ipv4(g) / dhcp_request(g, ciaddr=g.ipv4)),
    honest("dhcp-release-other-port", lambda g: ipv4(g) / dhcp_request(g, "release", sport=1068)),
    honest("ping6", lambda g: ipv6(g) / ECHO),
    honest("ping6-link-local", lambda g: local(g) / ECHO),
    honest("tcp6", lambda g: ipv6(g) / TCP(sport=40000, dport=80, flags="S")),
    honest("udp6-behind-options", lambda g: ipv6(g) / options_header() / DNS),
    honest("ping6-first-fragment", lambda g: fragment(ipv6(g), checksummed(ECHO))),
    # What was cut up began with options: the first fragment has them, and nft finds no protocol in this one.
    *each(
        PASSED,
        named("later-fragment-of-header", (0, 43, 44, 51, 60)),
        lambda g, header: fragment(ipv6(g), b"\x3a" * 1200, offset=181, more=0, next_header=header),
    ),
    honest("ping6-later-fragment", lambda g: fragment(ipv6(g), b"a later part", offset=9, more=0)),
    honest("dad", lambda g: ipv6(g, "::") / solicitation(g.ipv6)),
    honest("dad-with-nonce", lambda g: ipv6(g, "::") / solicitation(g.ipv6, nonce())),
    honest("dad-link-local", lambda g: ipv6(g, "::") / solicitation(g.link_local)),
    honest("ns", lambda g: ipv6(g) / solicitation(V6, source_mac(g.mac))),
    honest("ns-without-mac", lambda g: local(g) / solicitation(V6_LOCAL)),
    honest("na", lambda g: ipv6(g) / advertisement(g.ipv6, target_mac(g.mac))),
    honest("na-link-local", lambda g: local(g) / advertisement(g.link_local, target_mac(g.mac))),
    honest("na-without-mac", lambda g: ipv6(g) / advertisement(g.ipv6)),
    honest("rs", lambda g: local(g) / ICMPv6ND_RS() / source_mac(g.mac)),
    honest("rs-without-address", lambda g: ipv6(g, "::") / ICMPv6ND_RS()),
    honest(
        "mld-without-address",
        lambda g: ipv6(g, "::") / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / ICMPv6MLReport2(),
    ),
    honest("mld-report", lambda g: multicast_listener(ICMPv6MLReport2(), g)),
    honest("dhcp6-solicit", lambda g: local(g) / UDP(sport=546, dport=547) / DHCP6_Solicit(trid=1)),
    *each(
        PASSED,
        named("dhcp6", (1, 3, 4, 5, 6, 8, 9, 11, 20)),
        lambda g, kind: local(g) / dhcp6_message(kind),
    ),
    honest("ah-of-tcp", lambda g: authenticated(ipv4(g, proto=51), 6, bytes(20))),
    honest("ah6-of-tcp", lambda g: authenticated(ipv6(g, nh=51), 6, bytes(20))),
    honest("esp", lambda g: ipv4(g, proto=50) / bytes(40)),
    honest("gre", lambda g: ipv4(g, proto=47) / bytes(40)),
    honest("other-ethertype", lambda g: typed(g, 0x88CC, b"lldp" * 12)),
    honest("llc", lambda g: Dot3(src=g.mac, dst=BROADCAST) / LLC(dsap=0x42, ssap=0x42) / b"bpdu"),
    # Of all that begin with 01:80:c2:00:00, neither bridges' (0X) nor registration's (2X).
    honest("llc-to-10", lambda g: switch_frame(g, 0x10, BPDU)),
    honest("llc-to-30", lambda g: switch_frame(g, 0x30, BPDU)),
]

LYING: list[Case] = [
    lie("mac", "spoofed_mac", lambda g: ether(g, src=MAC) / IP(src=g.ipv4, dst=GATEWAY4) / DNS),
    lie("mac-of-anything", "spoofed_mac", lambda g: typed(g, 0x88CC, b"lldp" * 12, src=MAC)),
    lie("mac-of-rarp", "spoofed_mac", lambda g: Ether(src=MAC, dst=BROADCAST, type=0x8035) / ARP(op=3)),
    lie("rarp-sender", "spoofed_rarp", lambda g: rarp(g, hwsrc=MAC)),
    lie("rarp-target", "spoofed_rarp", lambda g: rarp(g, hwdst=MAC)),
    lie("rarp-cut", "spoofed_rarp", lambda g: Ether(src=g.mac, dst=BROADCAST, type=0x8035) / Raw(b"\0\1")),
    lie("arp-request", "spoofed_arp", lambda g: arp(g, psrc=V4, pdst=GATEWAY4)),
    lie("arp-reply", "spoofed_arp", lambda g: arp(g, 2, psrc=V4)),
    lie("arp-announcement", "spoofed_arp", lambda g: arp(g, psrc=V4, pdst=V4)),
    lie("arp-sender-mac", "spoofed_arp", lambda g: arp(g, hwsrc=MAC)),
    lie("arp-reply-mac", "spoofed_arp", lambda g: arp(g, 2, hwsrc=MAC)),
    lie("arp-reply-unspecified", "spoofed_arp", lambda g: arp(g, 2, psrc="0.0.0.0")),
    lie("arp-probe-mac", "spoofed_arp", lambda g: arp(g, psrc="0.0.0.0", hwsrc=MAC)),
    lie("arp-long-addresses", "spoofed_arp", lambda g: arp(g, hwlen=8, hwsrc=b"12345678")),
    lie("arp-cut", "spoofed_arp", lambda g: typed(g, 0x0806, bytes(arp(g, 2, psrc=V4))[14:28])),
    lie("ipv4", "spoofed_ipv4", lambda g: ipv4(g, V4) / DNS),
    lie("ipv4-gateway", "spoofed_ipv4", lambda g: ipv4(g, GATEWAY4, dst=V4) / ICMP()),
    lie("ipv4-options", "spoofed_ipv4", lambda g: ipv4(g, V4, options=[IPOption_Router_Alert()]) / DNS),
    lie("ipv4-later-fragment", "spoofed_ipv4", lambda g: ipv4(g, V4, frag=100, proto=17) / b"a later part"),
    lie("ipv4-unspecified", "spoofed_ipv4", lambda g: ipv4(g, "0.0.0.0") / DNS),
    lie("ipv4-from-0.0.0.0-ping", "spoofed_ipv4", lambda g: ipv4(g, "0.0.0.0") / ICMP()),
    lie("ipv4-broadcast", "spoofed_ipv4", lambda g: ipv4(g, "255.255.255.255") / DNS),
    lie(
        "ipv4-from-0.0.0.0-later-fragment",
        "spoofed_ipv4",
        lambda g: ipv4(g, "0.0.0.0", frag=100, proto=17) / b"\0\x44\0\x43and data",
    ),
    lie(
        "ipv4-from-0.0.0.0-first-fragment",
        "spoofed_ipv4",
        lambda g: ipv4(g, "0.0.0.0", flags="MF") / dhcp_request(g, "discover"),
    ),
    lie(
        "ipv4-from-0.0.0.0-igmp-fragment",
        "spoofed_ipv4",
        lambda g: ipv4(g, "0.0.0.0", proto=2, frag=1) / b"\x22\0\0\0\0\0\0\0",
    ),
    # What nearly all frames are is judged first.
    lie("ipv4-tcp", "spoofed_ipv4", lambda g: ipv4(g, V4) / TCP(sport=40000, dport=80, flags="S")),
    lie("ipv4-tcp-later-fragment", "spoofed_ipv4", lambda g: ipv4(g, V4, frag=100, proto=6) / b"a part"),
    lie("ipv6-tcp", "spoofed_ipv6", lambda g: ipv6(g, V6) / TCP(sport=40000, dport=80, flags="S")),
    lie("ipv6-udp", "spoofed_ipv6", lambda g: ipv6(g, V6) / DNS),
    lie("ipv6-tcp-empty", "malformed", lambda g: ipv6(g, nh=6)),
    lie("ipv6-udp-empty", "malformed", lambda g: ipv6(g, nh=17)),
    lie("ipv4-length-lies", "malformed", lambda g: ipv4(g, len=9000) / DNS),
    lie("ipv6", "spoofed_ipv6", lambda g: ipv6(g, V6) / ECHO),
    lie("ipv6-link-local", "spoofed_ipv6", lambda g: ipv6(g, V6_LOCAL) / ECHO),
    lie("ipv6-unspecified", "spoofed_ipv6", lambda g: ipv6(g, "::") / DNS),
    lie("ipv6-unspecified-ping", "spoofed_ipv6", lambda g: ipv6(g, "::") / ECHO),
    lie("ipv6-later-fragment", "spoofed_ipv6", lambda g: fragment(ipv6(g, V6), b"part", offset=9)),
    lie("na-by-another", "spoofed_ipv6", lambda g: ipv6(g, V6) / advertisement(V6, target_mac(g.mac))),
    lie("na", "spoofed_nd", lambda g: ipv6(g) / advertisement(V6, target_mac(g.mac))),
    lie("na-link-local", "spoofed_nd", lambda g: local(g) / advertisement(V6_LOCAL, target_mac(g.mac))),
    lie("na-behind-options", "spoofed_nd", lambda g: ipv6(g) / options_header() / advertisement(V6)),
    lie(
        "na-behind-hop-by-hop",
        "spoofed_nd",
        lambda g: ipv6(g) / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]) / advertisement(V6),
    ),
    lie(
        "na-behind-many-options",
        "spoofed_nd",
        lambda g: ipv6(g) / options_header() / options_header(pad=12) / advertisement(V6),
    ),
    lie("na-mac", "spoofed_nd", lambda g: ipv6(g) / advertisement(g.ipv6, target_mac(MAC))),
    lie("na-second-mac", "spoofed_nd", lambda g: ipv6(g) / advertisement(g.ipv6, nonce(), target_mac(MAC))),
    lie("na-cut", "spoofed_nd", lambda g: ipv6(g, nh=58) / Raw(checksummed(advertisement(g.ipv6))[:12])),
    lie("ns-mac", "spoofed_nd", lambda g: ipv6(g) / solicitation(V6, source_mac(MAC))),
    lie("ns-by-another", "spoofed_ipv6", lambda g: ipv6(g, V6) / solicitation(GATEWAY6, source_mac(g.mac))),
    lie("dad-of-another", "spoofed_nd", lambda g: ipv6(g, "::") / solicitation(V6)),
    lie("rs-mac", "spoofed_nd", lambda g: local(g) / ICMPv6ND_RS() / source_mac(MAC)),
    lie("fragmented-na", "fragmented_nd", lambda g: fragment(ipv6(g), checksummed(advertisement(V6)))),
    lie(
        "fragmented-whole-na",
        "fragmented_nd",
        lambda g: fragment(ipv6(g), checksummed(advertisement(V6)), more=0),
    ),
    lie("fragmented-ns", "fragmented_nd", lambda g: fragment(ipv6(g), checksummed(solicitation(V6)))),
    lie("fragmented-ra", "fragmented_nd", lambda g: fragment(local(g), checksummed(ROUTER))),
    lie("fragmented-redirect", "fragmented_nd", lambda g: fragment(local(g), checksummed(REDIRECT))),
    lie(
        "fragmented-before-the-na",
        "fragmented_nd",
        lambda g: fragment(ipv6(g), cut_header(58), next_header=60),
    ),
    lie(
        "fragmented-behind-options",
        "fragmented_nd",
        lambda g: fragment(ipv6(g) / options_header(), checksummed(advertisement(V6))),
    ),
    lie(
        "foreign-later-fragment-of-options",
        "spoofed_ipv6",
        lambda g: fragment(ipv6(g, V6), b"part", offset=9, next_header=60),
    ),
    lie("header-without-end", "malformed", lambda g: ipv6(g, nh=60) / Raw(cut_header(58))),
    lie("no-header", "malformed", lambda g: ipv6(g, nh=58)),
    lie("ra", "router", lambda g: local(g) / ROUTER),
    lie("ra-behind-options", "router", lambda g: local(g) / options_header() / ROUTER),
    lie("redirect", "router", lambda g: local(g) / REDIRECT),
    lie("icmp-redirect", "router", lambda g: ipv4(g) / ICMP(type=5, code=1, gw=V4) / b"header"),
    lie("icmp-router", "router", lambda g: ipv4(g) / ICMP(type=9) / b"addresses"),
    lie("dvmrp", "router", lambda g: multicast4(g, 2, b"\x13" + bytes(7))),
    lie("pim1", "router", lambda g: multicast4(g, 2, b"\x14" + bytes(7))),
    lie("igmp-query", "router", lambda g: multicast4(g, 2, b"\x11" + bytes(7))),
    lie("igmp-query-from-0.0.0.0", "router", lambda g: multicast4(g, 2, b"\x11" + bytes(7), src="0.0.0.0")),
    lie(
        "igmp-query-behind-options",
        "router",
        lambda g: multicast4(g, 2, b"\x11" + bytes(7), options=[IPOption_Router_Alert()]),
    ),
    # The bridge reads such a fragment as if it were whole.
    lie("igmp-later-fragment", "router", lambda g: multicast4(g, 2, b"\x11" + bytes(7), frag=1)),
    lie("igmp-first-fragment", "router", lambda g: multicast4(g, 2, b"\x22" + bytes(7), flags="MF")),
    lie("multicast-router", "router", lambda g: multicast4(g, 2, b"\x30" + bytes(7), dst="224.0.0.106")),
    lie("multicast-router-ends", "router", lambda g: multicast4(g, 2, b"\x32" + bytes(7))),
    lie("pim-hello", "router", lambda g: multicast4(g, 103, b"\x20\0\0\0" + bytes(8), dst="224.0.0.13")),
    lie("pim-hello6", "router", lambda g: ipv6(g, dst="ff02::d", nh=103) / (b"\x20\0\0\0" + bytes(8))),
    lie("mld-query", "router", lambda g: multicast_listener(ICMPv6MLQuery(), g)),
    *each(
        "router",
        named("multicast-router6", (151, 153)),
        lambda g, kind: ipv6(g, nh=58) / bytes([kind, *bytes(7)]),
    ),
    *each(
        "hidden",
        named("ah-of", (1, 2, 17, 51, 103)),
        lambda g, kind: authenticated(ipv4(g, proto=51), kind, bytes(40)),
    ),
    *each(
        "hidden",
        named("ah6-of", (0, 17, 43, 44, 51, 58, 60, 103, 135, 139, 140)),
        lambda g, kind: authenticated(ipv6(g, nh=51), kind, bytes(40)),
    ),
    lie(
        "ah-first-fragment",
        "hidden",
        lambda g: authenticated(ipv4(g, proto=51, flags="MF"), 17, bytes(40)),
    ),
    lie(
        "ah6-first-fragment",
        "hidden",
        lambda g: authenticated(ipv6(g), 58, bytes(40), nh=51, offset=0, m=1, id=7),
    ),
    lie("dhcp-relay-answer", "dhcp_server", lambda g: ipv4(g) / dhcp_request(g, sport=1067, op=2)),
    lie("dhcp-relay-answer-of-a-client", "dhcp_server", lambda g: ipv4(g) / dhcp_request(g, op=2)),
    lie("dhcp-relayed", "dhcp_server", lambda g: ipv4(g) / dhcp_request(g, giaddr=V4, sport=1067)),
    lie("dhcp-cut", "dhcp_server", lambda g: ipv4(g) / UDP(sport=68, dport=67) / b"\1"),
    lie("dhcp-discover-of-another", "spoofed_dhcp", lambda g: discover(g, chaddr=frame_mac(MAC))),
    *each(
        "spoofed_dhcp",
        {f"dhcp-{kind}-of-another": kind for kind in ("release", "decline", "request", "inform")},
        lambda g, kind: ipv4(g) / dhcp_request(g, kind, chaddr=frame_mac(MAC)),
    ),
    lie("dhcp-of-a-longer-mac", "spoofed_dhcp", lambda g: discover(g, hlen=16)),
    lie("dhcp-of-another-hardware", "spoofed_dhcp", lambda g: discover(g, htype=32)),
    lie("dhcp-cut-before-the-mac", "spoofed_dhcp", lambda g: cut(ipv4(g, proto=17), dhcp_request(g), 41)),
    lie("dhcp-fragmented", "hidden", lambda g: ipv4(g, flags="MF") / dhcp_request(g)),
    lie("udp-first-fragment-cut", "malformed", lambda g: ipv4(g, flags="MF", proto=17) / b"\0\x44\0\x35"),
    lie("udp-cut", "malformed", lambda g: ipv4(g, proto=17) / b"\0\x44\0\x35\0\4"),
    lie("udp6-cut", "malformed", lambda g: ipv6(g, nh=17) / b"\0\x44\0\x35\0\4"),
    *each(
        "dhcp_server",
        named("dhcp6", (2, 7, 10, 12, 13, 14, 15)),
        lambda g, kind: local(g) / dhcp6_message(kind, sport=40000),
    ),
    lie("dhcp6-cut", "dhcp_server", lambda g: local(g) / UDP(sport=546, dport=547)),
    lie(
        "dhcp6-solicit-fragmented",
        "hidden",
        lambda g: fragment(local(g), bytes(dhcp6_message(1)) * 2, next_header=17),
    ),
    lie("dhcp-offer", "dhcp_server", lambda g: ipv4(g) / dhcp_offer()),
    lie("dhcp-offer-other-port", "dhcp_server", lambda g: ipv4(g) / dhcp_offer(sport=1067)),
    lie(
        "dhcp-offer-ipv4-options",
        "dhcp_server",
        lambda g: ipv4(g, options=[IPOption_Router_Alert()]) / dhcp_offer(),
    ),
    lie("dhcp-offer-fragmented", "dhcp_server", lambda g: ipv4(g, flags="MF", proto=17) / FIRST_OF_OFFER),
    lie("dhcp6-advertise", "dhcp_server", lambda g: local(g) / ADVERTISE),
    lie(
        "dhcp6-advertise-other-port",
        "dhcp_server",
        lambda g: local(g) / UDP(sport=1547, dport=546) / DHCP6_Advertise(trid=1),
    ),
    lie("dhcp6-behind-options", "dhcp_server", lambda g: local(g) / options_header() / ADVERTISE),
    lie(
        "dhcp6-fragmented",
        "dhcp_server",
        lambda g: fragment(local(g), bytes(ADVERTISE), next_header=17),
    ),
    lie(
        "snap",
        "snap",
        lambda g: (
            Dot3(src=g.mac, dst=BROADCAST) / LLC() / SNAP(code=0x0800) / IP(src=V4, dst=GATEWAY4) / DNS
        ),
    ),
    lie(
        "snap-with-a-false-length",
        "snap",
        lambda g: Dot3(src=g.mac, dst=BROADCAST, len=3) / LLC() / SNAP(code=0x86DD) / IPv6(src=V6) / ROUTER,
    ),
]

LYING.extend(
    [
        *each(
            "snap",
            {f"snap-{sap:x}": sap for sap in (0xAAAB, 0xABAA, 0xABAB)},
            lambda g, sap: (
                Dot3(src=g.mac, dst=BROADCAST)
                / Raw(sap.to_bytes(2) + b"\3\0\0\0\x08\0")
                / IP(src=V4, dst=GATEWAY4)
                / DNS
            ),
        ),
        # Some the bridge keeps for itself: guard_local drops these (0E passes by all hooks).
        *each(
            "switch",
            named("switch", (0x00, 0x02, 0x03, 0x08, 0x0D, 0x0F, 0x20, 0x21, 0x2F), "x"),
            lambda g, last: switch_frame(g, last, BPDU),
        ),
        lie("mvrp", "switch", lambda g: to_switches(typed(g, 0x88F5, bytes(46)), 0x21)),
        lie("lacp", "switch", lambda g: to_switches(typed(g, 0x8809, bytes(46)), 0x02)),
    ]
)

GATEWAY6 = "fd00::1"

# One tag too many; the second one may look like anything. Their inside is honest: the tags are the offence.
STACKED: list[Case] = [
    lie("8021q-8021q", "stacked_tags", lambda g: ether(g) / Dot1Q(vlan=7) / Dot1Q(vlan=8) / inside(g)),
    lie("8021q-of-0", "stacked_tags", lambda g: ether(g) / Dot1Q(vlan=0) / Dot1Q(vlan=0) / inside(g)),
    lie("8021ad-8021q", "stacked_tags", lambda g: ether(g) / Dot1AD(vlan=7) / Dot1Q(vlan=8) / inside(g)),
    lie("8021q-8021ad", "stacked_tags", lambda g: ether(g) / Dot1Q(vlan=7) / Dot1AD(vlan=8) / inside(g)),
    lie(
        "three",
        "stacked_tags",
        lambda g: ether(g) / Dot1Q(vlan=7) / Dot1Q(vlan=8) / Dot1Q(vlan=9) / inside(g),
    ),
    lie("9100", "stacked_tags", lambda g: typed(g, 0x9100, b"\0\7\x08\x00" + bytes(inside(g)))),
]


def inside(guest: Guest) -> Any:
    return IP(src=guest.ipv4, dst=GATEWAY4, proto=socket.IPPROTO_UDP) / DNS
