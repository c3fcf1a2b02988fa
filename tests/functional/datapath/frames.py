"""Frames an honest guest sends, and frames that lie, each with the reason for which it is dropped.

scapy builds them. It has no types, hence Any.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from tests.functional.datapath.lab import Guest

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

# Everybody else on the LAN.
MAC = "02:00:00:00:00:ee"
V4, V6, V6_LOCAL = "10.1.2.66", "fd00::66", "fe80::66"
GATEWAY4 = "10.1.2.1"
ALL_NODES = "ff02::1"
EVERYBODY = "ff:ff:ff:ff:ff:ff"
PASSED = "passed"

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
    honest("igmp-without-address", lambda g: ipv4(g, "0.0.0.0", proto=2) / b"\x22\0\0\0\0\0\0\0"),
    honest("dhcp-discover", discover),
    honest("dhcp-renewal", lambda g: ipv4(g) / UDP(sport=68, dport=67) / BOOTP(ciaddr=g.ipv4)),
    honest("ping6", lambda g: ipv6(g) / ECHO),
    honest("ping6-link-local", lambda g: local(g) / ECHO),
    honest("tcp6", lambda g: ipv6(g) / TCP(sport=40000, dport=80, flags="S")),
    honest("udp6-behind-options", lambda g: ipv6(g) / options_header() / DNS),
    honest("ping6-first-fragment", lambda g: fragment(ipv6(g), checksummed(ECHO))),
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
    honest("dhcp6-solicit", lambda g: local(g) / UDP(sport=546, dport=547) / DHCP6_Solicit(trid=1)),
    honest("other-ethertype", lambda g: typed(g, 0x88CC, b"lldp" * 12)),
    honest("llc", lambda g: Dot3(src=g.mac, dst=EVERYBODY) / LLC(dsap=0x42, ssap=0x42) / b"bpdu"),
]

LYING: list[Case] = [
    lie("mac", "spoofed_mac", lambda g: ether(g, src=MAC) / IP(src=g.ipv4, dst=GATEWAY4) / DNS),
    lie("mac-of-anything", "spoofed_mac", lambda g: typed(g, 0x88CC, b"lldp" * 12, src=MAC)),
    lie("mac-of-rarp", "spoofed_mac", lambda g: Ether(src=MAC, dst=EVERYBODY, type=0x8035) / ARP(op=3)),
    lie("rarp-sender", "spoofed_rarp", lambda g: rarp(g, hwsrc=MAC)),
    lie("rarp-target", "spoofed_rarp", lambda g: rarp(g, hwdst=MAC)),
    lie("rarp-cut", "spoofed_rarp", lambda g: Ether(src=g.mac, dst=EVERYBODY, type=0x8035) / Raw(b"\0\1")),
    lie("arp-request", "spoofed_arp", lambda g: arp(g, psrc=V4, pdst=GATEWAY4)),
    lie("arp-reply", "spoofed_arp", lambda g: arp(g, 2, psrc=V4)),
    lie("arp-announcement", "spoofed_arp", lambda g: arp(g, psrc=V4, pdst=V4)),
    lie("arp-sender-mac", "spoofed_arp", lambda g: arp(g, hwsrc=MAC)),
    lie("arp-reply-mac", "spoofed_arp", lambda g: arp(g, 2, hwsrc=MAC)),
    lie("arp-reply-of-nobody", "spoofed_arp", lambda g: arp(g, 2, psrc="0.0.0.0")),
    lie("arp-probe-mac", "spoofed_arp", lambda g: arp(g, psrc="0.0.0.0", hwsrc=MAC)),
    lie("arp-long-addresses", "spoofed_arp", lambda g: arp(g, hwlen=8, hwsrc=b"12345678")),
    lie("arp-cut", "spoofed_arp", lambda g: typed(g, 0x0806, bytes(arp(g, 2, psrc=V4))[14:28])),
    lie("ipv4", "spoofed_ipv4", lambda g: ipv4(g, V4) / DNS),
    lie("ipv4-gateway", "spoofed_ipv4", lambda g: ipv4(g, GATEWAY4, dst=V4) / ICMP()),
    lie("ipv4-options", "spoofed_ipv4", lambda g: ipv4(g, V4, options=[IPOption_Router_Alert()]) / DNS),
    lie("ipv4-later-fragment", "spoofed_ipv4", lambda g: ipv4(g, V4, frag=100, proto=17) / b"a later part"),
    lie("ipv4-of-nobody", "spoofed_ipv4", lambda g: ipv4(g, "0.0.0.0") / DNS),
    lie("ipv4-of-nobody-ping", "spoofed_ipv4", lambda g: ipv4(g, "0.0.0.0") / ICMP()),
    lie("ipv4-broadcast", "spoofed_ipv4", lambda g: ipv4(g, "255.255.255.255") / DNS),
    lie("ipv4-length-lies", "malformed", lambda g: ipv4(g, len=9000) / DNS),
    lie("ipv6", "spoofed_ipv6", lambda g: ipv6(g, V6) / ECHO),
    lie("ipv6-link-local", "spoofed_ipv6", lambda g: ipv6(g, V6_LOCAL) / ECHO),
    lie("ipv6-of-nobody", "spoofed_ipv6", lambda g: ipv6(g, "::") / DNS),
    lie("ipv6-of-nobody-ping", "spoofed_ipv6", lambda g: ipv6(g, "::") / ECHO),
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
        "later-fragment-of-options",
        "fragmented_nd",
        lambda g: fragment(ipv6(g), cut_header(58), offset=1, next_header=60),
    ),
    lie("header-without-end", "malformed", lambda g: ipv6(g, nh=60) / Raw(cut_header(58))),
    lie("no-header", "malformed", lambda g: ipv6(g, nh=58)),
    lie("ra", "router", lambda g: local(g) / ROUTER),
    lie("ra-behind-options", "router", lambda g: local(g) / options_header() / ROUTER),
    lie("redirect", "router", lambda g: local(g) / REDIRECT),
    lie("icmp-redirect", "router", lambda g: ipv4(g) / ICMP(type=5, code=1, gw=V4) / b"header"),
    lie("icmp-router", "router", lambda g: ipv4(g) / ICMP(type=9) / b"addresses"),
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
            Dot3(src=g.mac, dst=EVERYBODY) / LLC() / SNAP(code=0x0800) / IP(src=V4, dst=GATEWAY4) / DNS
        ),
    ),
    lie(
        "snap-with-a-false-length",
        "snap",
        lambda g: Dot3(src=g.mac, dst=EVERYBODY, len=3) / LLC() / SNAP(code=0x86DD) / IPv6(src=V6) / ROUTER,
    ),
]

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
