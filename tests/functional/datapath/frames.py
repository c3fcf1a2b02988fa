"""Frames an honest guest sends, and frames that lie, each with the reason for which it is dropped."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DHCP6_Advertise, DHCP6_Solicit
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Raw

from tests.functional.datapath.lab import Guest

# Everybody else on the LAN.
MAC = "02:00:00:00:00:ee"
V4, V6, V6_LOCAL = "10.1.2.66", "fd00::66", "fe80::66"
GATEWAY4 = "10.1.2.1"
ALL_NODES = "ff02::1"
EVERYBODY = "ff:ff:ff:ff:ff:ff"
PASSED = "passed"

# scapy has no types; a packet is what `/` makes of two.
Build = Callable[[Guest], Any]


class Case(NamedTuple):
    """A frame by its description, and what becomes of it: "passed", or the counter that notes why not."""

    name: str
    verdict: str
    build: Build


def tagged(frame: bytes, vid: int = 7) -> bytes:
    """The frame with one 802.1Q tag more."""
    return frame[:12] + b"\x81\x00" + vid.to_bytes(2) + frame[12:]


def ether(guest: Guest, *, src: str = "", dst: str = EVERYBODY) -> Any:
    return Ether(src=src or guest.mac, dst=dst)


def typed(guest: Guest, ethertype: int, payload: bytes, *, src: str = "") -> Any:
    return Ether(src=src or guest.mac, dst=EVERYBODY, type=ethertype) / Raw(payload)


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
    """An ICMPv6 message as bytes; nobody on the way looks at the checksum."""
    return bytes(IPv6(src="::1", dst="::1") / layer)[40:]


def rarp(guest: Guest, **fields: Any) -> Any:
    """What QEMU sends after a migration."""
    own = {"hwsrc": guest.mac, "hwdst": guest.mac, "psrc": "0.0.0.0", "pdst": "0.0.0.0", **fields}
    return Ether(src=guest.mac, dst=EVERYBODY, type=0x8035) / ARP(op=3, **own)


def dhcp_offer(*, sport: int = 67) -> Any:
    offer = DHCP(options=[("message-type", "offer"), ("router", V4), "end"])
    return UDP(sport=sport, dport=68) / BOOTP(op=2, yiaddr="10.1.2.99") / offer


def discover(guest: Guest) -> Any:
    options = DHCP(options=[("message-type", "discover"), "end"])
    return (
        ipv4(guest, "0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / BOOTP(chaddr=guest.mac.encode())
        / options
    )


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

HONEST = [
    Case("arp-request", PASSED, arp),
    Case("arp-reply", PASSED, lambda g: arp(g, 2, hwdst=MAC)),
    Case("arp-announcement", PASSED, lambda g: arp(g, pdst=g.ipv4)),
    Case("arp-probe", PASSED, lambda g: arp(g, psrc="0.0.0.0", pdst=g.ipv4)),
    Case("arp-probe-of-another", PASSED, lambda g: arp(g, psrc="0.0.0.0")),
    Case("rarp-of-qemu", PASSED, rarp),
    Case("udp", PASSED, lambda g: ipv4(g) / DNS),
    Case("tcp", PASSED, lambda g: ipv4(g) / TCP(sport=40000, dport=80, flags="S")),
    Case("ping", PASSED, lambda g: ipv4(g) / ICMP() / b"hello"),
    Case("ipv4-options", PASSED, lambda g: ipv4(g, options=[IPOption_Router_Alert()]) / DNS),
    Case("ipv4-first-fragment", PASSED, lambda g: ipv4(g, flags="MF") / DNS),
    Case("ipv4-later-fragment", PASSED, lambda g: ipv4(g, frag=100, proto=17) / b"a later part"),
    Case("igmp-without-address", PASSED, lambda g: ipv4(g, "0.0.0.0", proto=2) / b"\x22\0\0\0\0\0\0\0"),
    Case("dhcp-discover", PASSED, discover),
    Case("dhcp-renewal", PASSED, lambda g: ipv4(g) / UDP(sport=68, dport=67) / BOOTP(ciaddr=g.ipv4)),
    Case("ping6", PASSED, lambda g: ipv6(g) / ECHO),
    Case("ping6-link-local", PASSED, lambda g: local(g) / ECHO),
    Case("tcp6", PASSED, lambda g: ipv6(g) / TCP(sport=40000, dport=80, flags="S")),
    Case("udp6-behind-options", PASSED, lambda g: ipv6(g) / options_header() / DNS),
    Case("ping6-first-fragment", PASSED, lambda g: fragment(ipv6(g), checksummed(ECHO))),
    Case("ping6-later-fragment", PASSED, lambda g: fragment(ipv6(g), b"a later part", offset=9, more=0)),
    Case("dad", PASSED, lambda g: ipv6(g, "::") / solicitation(g.ipv6)),
    Case("dad-with-nonce", PASSED, lambda g: ipv6(g, "::") / solicitation(g.ipv6, nonce())),
    Case("dad-link-local", PASSED, lambda g: ipv6(g, "::") / solicitation(g.link_local)),
    Case("ns", PASSED, lambda g: ipv6(g) / solicitation(V6, source_mac(g.mac))),
    Case("ns-without-mac", PASSED, lambda g: local(g) / solicitation(V6_LOCAL)),
    Case("na", PASSED, lambda g: ipv6(g) / advertisement(g.ipv6, target_mac(g.mac))),
    Case("na-link-local", PASSED, lambda g: local(g) / advertisement(g.link_local, target_mac(g.mac))),
    Case("na-without-mac", PASSED, lambda g: ipv6(g) / advertisement(g.ipv6)),
    Case("rs", PASSED, lambda g: local(g) / ICMPv6ND_RS() / source_mac(g.mac)),
    Case("rs-without-address", PASSED, lambda g: ipv6(g, "::") / ICMPv6ND_RS()),
    Case(
        "mld-without-address",
        PASSED,
        lambda g: ipv6(g, "::") / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / ICMPv6MLReport2(),
    ),
    Case("dhcp6-solicit", PASSED, lambda g: local(g) / UDP(sport=546, dport=547) / DHCP6_Solicit(trid=1)),
    Case("other-ethertype", PASSED, lambda g: typed(g, 0x88CC, b"lldp" * 12)),
    Case("llc", PASSED, lambda g: Dot3(src=g.mac, dst=EVERYBODY) / LLC(dsap=0x42, ssap=0x42) / b"bpdu"),
]

LYING = [
    Case("mac", "spoofed_mac", lambda g: ether(g, src=MAC) / IP(src=g.ipv4, dst=GATEWAY4) / DNS),
    Case("mac-of-anything", "spoofed_mac", lambda g: typed(g, 0x88CC, b"lldp" * 12, src=MAC)),
    Case("mac-of-rarp", "spoofed_mac", lambda g: Ether(src=MAC, dst=EVERYBODY, type=0x8035) / ARP(op=3)),
    Case("rarp-sender", "spoofed_rarp", lambda g: rarp(g, hwsrc=MAC)),
    Case("rarp-target", "spoofed_rarp", lambda g: rarp(g, hwdst=MAC)),
    Case("rarp-cut", "spoofed_rarp", lambda g: Ether(src=g.mac, dst=EVERYBODY, type=0x8035) / Raw(b"\0\1")),
    Case("arp-request", "spoofed_arp", lambda g: arp(g, psrc=V4, pdst=GATEWAY4)),
    Case("arp-reply", "spoofed_arp", lambda g: arp(g, 2, psrc=V4)),
    Case("arp-announcement", "spoofed_arp", lambda g: arp(g, psrc=V4, pdst=V4)),
    Case("arp-sender-mac", "spoofed_arp", lambda g: arp(g, hwsrc=MAC)),
    Case("arp-reply-mac", "spoofed_arp", lambda g: arp(g, 2, hwsrc=MAC)),
    Case("arp-reply-of-nobody", "spoofed_arp", lambda g: arp(g, 2, psrc="0.0.0.0")),
    Case("arp-probe-mac", "spoofed_arp", lambda g: arp(g, psrc="0.0.0.0", hwsrc=MAC)),
    Case("arp-long-addresses", "spoofed_arp", lambda g: arp(g, hwlen=8, hwsrc=b"12345678")),
    Case("arp-cut", "spoofed_arp", lambda g: typed(g, 0x0806, bytes(arp(g, 2, psrc=V4))[14:28])),
    Case("ipv4", "spoofed_ipv4", lambda g: ipv4(g, V4) / DNS),
    Case("ipv4-gateway", "spoofed_ipv4", lambda g: ipv4(g, GATEWAY4, dst=V4) / ICMP()),
    Case("ipv4-options", "spoofed_ipv4", lambda g: ipv4(g, V4, options=[IPOption_Router_Alert()]) / DNS),
    Case("ipv4-later-fragment", "spoofed_ipv4", lambda g: ipv4(g, V4, frag=100, proto=17) / b"a later part"),
    Case("ipv4-of-nobody", "spoofed_ipv4", lambda g: ipv4(g, "0.0.0.0") / DNS),
    Case("ipv4-of-nobody-ping", "spoofed_ipv4", lambda g: ipv4(g, "0.0.0.0") / ICMP()),
    Case("ipv4-broadcast", "spoofed_ipv4", lambda g: ipv4(g, "255.255.255.255") / DNS),
    Case("ipv4-length-lies", "malformed", lambda g: ipv4(g, len=9000) / DNS),
    Case("ipv6", "spoofed_ipv6", lambda g: ipv6(g, V6) / ECHO),
    Case("ipv6-link-local", "spoofed_ipv6", lambda g: ipv6(g, V6_LOCAL) / ECHO),
    Case("ipv6-of-nobody", "spoofed_ipv6", lambda g: ipv6(g, "::") / DNS),
    Case("ipv6-of-nobody-ping", "spoofed_ipv6", lambda g: ipv6(g, "::") / ECHO),
    Case("ipv6-later-fragment", "spoofed_ipv6", lambda g: fragment(ipv6(g, V6), b"part", offset=9)),
    Case("na-by-another", "spoofed_ipv6", lambda g: ipv6(g, V6) / advertisement(V6, target_mac(g.mac))),
    Case("na", "spoofed_nd", lambda g: ipv6(g) / advertisement(V6, target_mac(g.mac))),
    Case("na-link-local", "spoofed_nd", lambda g: local(g) / advertisement(V6_LOCAL, target_mac(g.mac))),
    Case("na-behind-options", "spoofed_nd", lambda g: ipv6(g) / options_header() / advertisement(V6)),
    Case(
        "na-behind-hop-by-hop",
        "spoofed_nd",
        lambda g: ipv6(g) / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]) / advertisement(V6),
    ),
    Case(
        "na-behind-many-options",
        "spoofed_nd",
        lambda g: ipv6(g) / options_header() / options_header(pad=12) / advertisement(V6),
    ),
    Case("na-mac", "spoofed_nd", lambda g: ipv6(g) / advertisement(g.ipv6, target_mac(MAC))),
    Case("na-second-mac", "spoofed_nd", lambda g: ipv6(g) / advertisement(g.ipv6, nonce(), target_mac(MAC))),
    Case("na-cut", "spoofed_nd", lambda g: ipv6(g, nh=58) / Raw(checksummed(advertisement(g.ipv6))[:12])),
    Case("ns-mac", "spoofed_nd", lambda g: ipv6(g) / solicitation(V6, source_mac(MAC))),
    Case("ns-by-another", "spoofed_ipv6", lambda g: ipv6(g, V6) / solicitation(GATEWAY6, source_mac(g.mac))),
    Case("dad-of-another", "spoofed_nd", lambda g: ipv6(g, "::") / solicitation(V6)),
    Case("rs-mac", "spoofed_nd", lambda g: local(g) / ICMPv6ND_RS() / source_mac(MAC)),
    Case("fragmented-na", "fragmented_nd", lambda g: fragment(ipv6(g), checksummed(advertisement(V6)))),
    Case(
        "fragmented-whole-na",
        "fragmented_nd",
        lambda g: fragment(ipv6(g), checksummed(advertisement(V6)), more=0),
    ),
    Case("fragmented-ns", "fragmented_nd", lambda g: fragment(ipv6(g), checksummed(solicitation(V6)))),
    Case("fragmented-ra", "fragmented_nd", lambda g: fragment(local(g), checksummed(ROUTER))),
    Case("fragmented-redirect", "fragmented_nd", lambda g: fragment(local(g), checksummed(REDIRECT))),
    Case(
        "fragmented-before-the-na",
        "fragmented_nd",
        lambda g: fragment(ipv6(g), cut_header(58), next_header=60),
    ),
    Case(
        "fragmented-behind-options",
        "fragmented_nd",
        lambda g: fragment(ipv6(g) / options_header(), checksummed(advertisement(V6))),
    ),
    Case(
        "later-fragment-of-options",
        "fragmented_nd",
        lambda g: fragment(ipv6(g), cut_header(58), offset=1, next_header=60),
    ),
    Case("header-without-end", "malformed", lambda g: ipv6(g, nh=60) / Raw(cut_header(58))),
    Case("no-header", "malformed", lambda g: ipv6(g, nh=58)),
    Case("ra", "router", lambda g: local(g) / ROUTER),
    Case("ra-behind-options", "router", lambda g: local(g) / options_header() / ROUTER),
    Case("redirect", "router", lambda g: local(g) / REDIRECT),
    Case("icmp-redirect", "router", lambda g: ipv4(g) / ICMP(type=5, code=1, gw=V4) / b"header"),
    Case("icmp-router", "router", lambda g: ipv4(g) / ICMP(type=9) / b"addresses"),
    Case("dhcp-offer", "dhcp_server", lambda g: ipv4(g) / dhcp_offer()),
    Case("dhcp-offer-other-port", "dhcp_server", lambda g: ipv4(g) / dhcp_offer(sport=1067)),
    Case(
        "dhcp-offer-ipv4-options",
        "dhcp_server",
        lambda g: ipv4(g, options=[IPOption_Router_Alert()]) / dhcp_offer(),
    ),
    Case("dhcp-offer-fragmented", "dhcp_server", lambda g: ipv4(g, flags="MF", proto=17) / FIRST_OF_OFFER),
    Case("dhcp6-advertise", "dhcp_server", lambda g: local(g) / ADVERTISE),
    Case(
        "dhcp6-advertise-other-port",
        "dhcp_server",
        lambda g: local(g) / UDP(sport=1547, dport=546) / DHCP6_Advertise(trid=1),
    ),
    Case("dhcp6-behind-options", "dhcp_server", lambda g: local(g) / options_header() / ADVERTISE),
    Case(
        "dhcp6-fragmented",
        "dhcp_server",
        lambda g: fragment(local(g), bytes(ADVERTISE), next_header=17),
    ),
    Case(
        "snap",
        "snap",
        lambda g: (
            Dot3(src=g.mac, dst=EVERYBODY) / LLC() / SNAP(code=0x0800) / IP(src=V4, dst=GATEWAY4) / DNS
        ),
    ),
    Case(
        "snap-with-a-false-length",
        "snap",
        lambda g: Dot3(src=g.mac, dst=EVERYBODY, len=3) / LLC() / SNAP(code=0x86DD) / IPv6(src=V6) / ROUTER,
    ),
]

GATEWAY6 = "fd00::1"

# One tag too many; the second one may look like anything. Their inside is honest: the tags are the offence.
STACKED = [
    Case("8021q-8021q", "stacked_tags", lambda g: ether(g) / Dot1Q(vlan=7) / Dot1Q(vlan=8) / inside(g)),
    Case("8021q-of-0", "stacked_tags", lambda g: ether(g) / Dot1Q(vlan=0) / Dot1Q(vlan=0) / inside(g)),
    Case("8021ad-8021q", "stacked_tags", lambda g: ether(g) / Dot1AD(vlan=7) / Dot1Q(vlan=8) / inside(g)),
    Case("8021q-8021ad", "stacked_tags", lambda g: ether(g) / Dot1Q(vlan=7) / Dot1AD(vlan=8) / inside(g)),
    Case(
        "three",
        "stacked_tags",
        lambda g: ether(g) / Dot1Q(vlan=7) / Dot1Q(vlan=8) / Dot1Q(vlan=9) / inside(g),
    ),
    Case("9100", "stacked_tags", lambda g: typed(g, 0x9100, b"\0\7\x08\x00" + bytes(inside(g)))),
]


def inside(guest: Guest) -> Any:
    return IP(src=guest.ipv4, dst=GATEWAY4, proto=socket.IPPROTO_UDP) / DNS
