"""What a port of the bridge may say: the table `bridge cnv_bridge`, and a port's elements in its sets.

Pure. The chain is the same for any number of ports, and a frame costs a few look-ups. Elements go by the
name of the port, so they can be there before the port is: no frame ever passes unguarded. A frame with one
VLAN tag is treated as one without, because the kernel has put the tag aside when the chain sees it.

Every drop is counted by its reason (`nft list counters table bridge cnv_bridge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface
from typing import Final, NamedTuple

from cnvnet.cni.fields import InterfaceAddress
from cnvnet.kernel.addresses import link_local
from cnvnet.kernel.nft import tables as kernel_nft
from cnvnet.kernel.nft.tables import Element, Nft

FAMILY: Final = "bridge"
TABLE: Final = "cnv_bridge"
VERSION: Final = "guard_v3"
# What a port may call itself beside its MAC.
ADDRESS_SETS: Final = ("ipv4", "ipv6", "raw_ipv6")
# The lock that a process holds while it loads the table.
LOCK: Final = f"nft-{TABLE}"

# Rules that may be changed only together with VERSION, and VERSION only together with the priority, by one
# more: a frame that is on its way while chains are exchanged must meet the older chain first. Otherwise it
# might come to the newer one when that has no rules yet, and to the older one when that has none any more.
# Sets and their types stay what they are: programs of two versions share them on one node.
#
# Of nft 1.0.6: where a rule names a header field alone, nft adds a look at the Ethernet header's type, which
# still holds the tag of a tagged frame. So all protocols are matched by `meta`, and header fields are raw
# (@th is the transport header, found behind all IPv6 extension headers) where nft would add that look. It
# also has no name for the target of an NA, and cannot list a set of raw fields after `meta protocol`: that
# is why chains are many. Protocols are numbers (ICMP 1, IGMP 2, UDP 17, ICMPv6 58): nft looks names up in
# /etc/protocols, which a small system or container lacks.
TEXT: Final = """\
table bridge cnv_bridge {
	counter spoofed_mac { packets 0 bytes 0; }
	counter spoofed_rarp { packets 0 bytes 0; }
	counter spoofed_arp { packets 0 bytes 0; }
	counter spoofed_ipv4 { packets 0 bytes 0; }
	counter spoofed_ipv6 { packets 0 bytes 0; }
	counter spoofed_nd { packets 0 bytes 0; }
	counter fragmented_nd { packets 0 bytes 0; }
	counter stacked_tags { packets 0 bytes 0; }
	counter snap { packets 0 bytes 0; }
	counter malformed { packets 0 bytes 0; }
	counter hidden { packets 0 bytes 0; }
	counter dhcp_server { packets 0 bytes 0; }
	counter spoofed_dhcp { packets 0 bytes 0; }
	counter router { packets 0 bytes 0; }
	counter switch { packets 0 bytes 0; }
	counter passed_other { packets 0 bytes 0; }

	# Who is guarded: by macspoofchk, ipspoofchk, dhcpGuard, raGuard; and by any of the last three.
	set mac_ports { type ifname; }
	set ip_ports { type ifname; }
	set dhcp_ports { type ifname; }
	set ra_ports { type ifname; }
	set inspected_ports { type ifname; }

	# What each port may call itself, once more for the places where nft sees raw bytes.
	set macs { type ifname . ether_addr; }
	set ipv4 { type ifname . ipv4_addr; }
	set ipv6 { type ifname . ipv6_addr; }
	set raw_macs { typeof meta iifname . @nh,64,48; }
	set raw_ipv6 { typeof meta iifname . @th,64,128; }

	chain guard_v3 {
		type filter hook prerouting priority -308; policy accept;
		iifname @mac_ports jump mac_source
		iifname @inspected_ports jump inspect
	}

	# Frames to 01:80:c2:00:00:0X take this way instead, and the bridge learns their source, too.
	chain guard_local {
		type filter hook input priority -310; policy accept;
		iifname @mac_ports iifname . ether saddr != @macs counter name spoofed_mac drop
		ether daddr & ff:ff:ff:ff:ff:d0 == 01:80:c2:00:00:00 iifname @ra_ports counter name switch drop
	}

	chain mac_source {
		iifname . ether saddr != @macs counter name spoofed_mac drop
		meta protocol 0x8035 goto rarp_source
	}

	chain rarp_source {
		iifname . ether saddr != @macs counter name spoofed_rarp drop
		iifname . @nh,64,48 @raw_macs iifname . @nh,144,48 @raw_macs return
		counter name spoofed_rarp drop
	}

	# In here what nearly all frames are comes first, and a comparison before a look-up in a set of ports.
	# Stacked tags hide from us what a receiver may find in them (CVE-2021-27853). At the end: no other than
	# switches speak to 01:80:c2:00:00:0X and 2X (STP, LACP, LLDP; GARP and MRP of IEEE 802.1D and 802.1Q).
	chain inspect {
		meta protocol ip goto ipv4_packet
		meta protocol ip6 goto ipv6_packet
		meta protocol { 0x8100, 0x88a8, 0x9100, 0x9200, 0x9300 } counter name stacked_tags drop
		meta protocol vmap { arp : goto arp_frame, 0x8035 : goto rarp_source, 0x0004 : jump llc_frame }
		ether daddr & ff:ff:ff:ff:ff:d0 == 01:80:c2:00:00:00 iifname @ra_ports counter name switch drop
		counter name passed_other
	}

	# SNAP hides as much (CVE-2021-27854): AA AA, but for the lowest bits, which say "group" and "response".
	chain llc_frame {
		@nh,0,16 & 0xfefe == 0xaaaa counter name snap drop
	}

	chain arp_frame {
		iifname != @ip_ports accept
		meta protocol arp arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 goto arp_source
		counter name spoofed_arp drop
	}

	# A probe (RFC 5227) claims nothing: its sender address is 0.0.0.0.
	chain arp_source {
		meta protocol arp iifname . arp saddr ether != @macs counter name spoofed_arp drop
		meta protocol arp arp operation { request, reply } iifname . arp saddr ip @ipv4 accept
		meta protocol arp arp operation request arp saddr ip 0.0.0.0 accept
		counter name spoofed_arp drop
	}

	# Only ports whose addresses are checked have any.
	chain ipv4_packet {
		iifname . ip saddr @ipv4 goto ipv4_from_itself
		iifname @ip_ports jump ipv4_source
		goto ipv4_from_itself
	}

	# Fragments but the first have no ports and types: @th is data there (@nh,48,16 is the fragment's offset,
	# in units of eight bytes, behind three flags of which 0x2000 is "more fragments"). To ask for the offset
	# only where the data look like what is to be dropped costs all other packets nothing.
	chain ipv4_from_itself {
		meta l4proto 6 accept
		meta l4proto 17 goto ipv4_udp
		meta l4proto 1 @th,0,8 { 5, 9 } iifname @ra_ports @nh,48,16 & 0x1fff == 0 counter name router drop
		meta l4proto 2 iifname @ra_ports goto igmp_message
		meta l4proto 103 iifname @ra_ports counter name router drop
		meta l4proto 51 goto ipv4_authenticated
		meta l4proto != 255 accept
		counter name malformed drop
	}

	# Without an address one may ask for one, and report groups (RFC 3376, 4.2.13): each fits one packet.
	chain ipv4_source {
		meta protocol ip ip saddr 0.0.0.0 @nh,48,16 & 0x3fff == 0 meta l4proto 17 @th,0,32 0x00440043 return
		meta protocol ip ip saddr 0.0.0.0 @nh,48,16 & 0x3fff == 0 meta l4proto 2 return
		counter name spoofed_ipv4 drop
	}

	# Clients take an answer from any source port. Less than a UDP header is no first fragment (RFC 1858).
	chain ipv4_udp {
		@th,0,16 != 67 @th,16,16 != 67-68 @th,56,8 0-255 accept
		iifname != @dhcp_ports accept
		@th,0,16 67 @nh,48,16 & 0x1fff == 0 counter name dhcp_server drop
		@th,16,16 68 @nh,48,16 & 0x1fff == 0 counter name dhcp_server drop
		@th,16,16 67 @nh,48,16 & 0x1fff == 0 goto dhcp4
		@th,56,8 0-255 accept
		@nh,48,16 & 0x1fff != 0 accept
		counter name malformed drop
	}

	# To a server: whole, for a later fragment might write over it; from a client (op 1), not through a relay
	# (giaddr 0); and where a port has a MAC, for that one (htype 1, hlen 6, chaddr; RFC 2131, 2).
	chain dhcp4 {
		@nh,48,16 & 0x3fff != 0 counter name hidden drop
		@th,64,8 1 @th,256,32 0 goto dhcp4_client
		counter name dhcp_server drop
	}

	chain dhcp4_client {
		iifname != @mac_ports accept
		@th,72,16 0x0106 iifname . @th,288,48 @raw_macs accept
		counter name spoofed_dhcp drop
	}

	# What only routers say: queries, DVMRP, PIM, and that they are there (RFC 3376, RFC 4286). The bridge
	# takes a port for a router's by any of them, also from a fragment, which IGMP never comes in.
	chain igmp_message {
		@th,0,8 { 0x11, 0x13, 0x14, 0x30, 0x32 } counter name router drop
		@nh,48,16 & 0x3fff == 0 accept
		counter name router drop
	}

	# An authentication header hides what is behind it, for nft stops at it (RFC 4302).
	chain ipv4_authenticated {
		@nh,48,16 & 0x1fff != 0 accept
		@th,0,8 { 17, 51 } iifname @dhcp_ports counter name hidden drop
		@th,0,8 { 1, 2, 51, 103 } iifname @ra_ports counter name hidden drop
		@th,0,8 0-255 accept
		counter name malformed drop
	}

	# Right behind the IPv6 header (its next header is @nh,48,8) comes most TCP and UDP: that is no fragment.
	chain ipv6_packet {
		@nh,48,8 6 @th,0,8 0-255 goto ipv6_whole
		@nh,48,8 17 @th,0,8 0-255 goto ipv6_whole
		meta protocol ip6 exthdr frag exists jump ipv6_fragment
		@th,0,8 0-255 goto ipv6_whole
		counter name malformed drop
	}

	# ND is never fragmented (RFC 6980), and a first fragment holds all headers (RFC 7112), or it hides them.
	chain ipv6_fragment {
		meta protocol ip6 frag frag-off != 0 goto ipv6_later_fragment
		meta l4proto 58 @th,0,8 133-137 counter name fragmented_nd drop
		meta l4proto 17 @th,16,16 547 iifname @dhcp_ports counter name hidden drop
		@th,0,8 0-255 return
		counter name fragmented_nd drop
	}

	# Of these nft knows no transport header: @th would be that of IPv6 itself. Where what was cut up began
	# with options, it knows no protocol either. The first fragment is judged: without it they are nothing.
	chain ipv6_later_fragment {
		iifname @ip_ports iifname . ip6 saddr != @ipv6 counter name spoofed_ipv6 drop
		accept
	}

	chain ipv6_whole {
		iifname . ip6 saddr @ipv6 goto ipv6_from_itself
		iifname @ip_ports jump ipv6_source
		goto ipv6_from_itself
	}

	chain ipv6_from_itself {
		meta l4proto 6 accept
		meta l4proto 17 goto ipv6_udp
		meta l4proto 58 goto icmpv6_message
		meta l4proto 103 iifname @ra_ports counter name router drop
		meta l4proto 51 goto ipv6_authenticated
	}

	chain ipv6_udp {
		@th,0,16 != 547 @th,16,16 != 546-547 @th,56,8 0-255 accept
		iifname != @dhcp_ports accept
		@th,0,16 547 counter name dhcp_server drop
		@th,16,16 546 counter name dhcp_server drop
		@th,16,16 547 goto dhcp6
		@th,56,8 0-255 accept
		counter name malformed drop
	}

	# What a client says (RFC 8415, 7.3; 20 is DHCPv4's of RFC 7341), and neither a server nor a relay.
	chain dhcp6 {
		@th,64,8 { 1, 3, 4, 5, 6, 8, 9, 11, 20 } accept
		counter name dhcp_server drop
	}

	# Of multicast routers: 130 (MLD), 151 and 153 (RFC 4286).
	chain icmpv6_message {
		iifname @ra_ports @th,0,8 { 130, 134, 137, 151, 153 } counter name router drop
		iifname @ip_ports goto neighbour
	}

	# Further extension headers could hide the same once more.
	chain ipv6_authenticated {
		@th,0,8 { 0, 43, 44, 51, 60, 135, 139, 140 } counter name hidden drop
		@th,0,8 17 iifname @dhcp_ports counter name hidden drop
		@th,0,8 58 iifname @ip_ports counter name hidden drop
		@th,0,8 { 58, 103 } iifname @ra_ports counter name hidden drop
	}

	# From :: only DAD, RS, and MLD come (RFC 4862, RFC 4861, RFC 3590).
	chain ipv6_source {
		meta protocol ip6 ip6 saddr :: meta l4proto 58 @th,0,8 { 131, 132, 133, 135, 143 } return
		counter name spoofed_ipv6 drop
	}

	chain neighbour {
		@th,0,8 vmap { 133 : goto router_solicitation, 135 : goto solicitation, 136 : goto advertisement }
	}

	# DAD for another guest's address would keep that guest from using it.
	chain solicitation {
		meta protocol ip6 ip6 saddr != :: goto neighbour_options
		iifname . @th,64,128 @raw_ipv6 accept
		counter name spoofed_nd drop
	}

	chain advertisement {
		iifname . @th,64,128 @raw_ipv6 goto neighbour_options
		counter name spoofed_nd drop
	}

	# No honest guest sends more than one option, of eight bytes; if it is a link-layer address, its own.
	chain neighbour_options {
		@th,256,8 0-255 counter name spoofed_nd drop
		@th,192,16 { 0x0101, 0x0201 } iifname . @th,208,48 @raw_macs accept
		@th,192,8 { 1, 2 } counter name spoofed_nd drop
	}

	chain router_solicitation {
		@th,128,8 0-255 counter name spoofed_nd drop
		@th,64,16 0x0101 iifname . @th,80,48 @raw_macs accept
		@th,64,8 1 counter name spoofed_nd drop
	}
}
"""


class Guards(NamedTuple):
    """Which of the guards a port has."""

    macspoofchk: bool = False
    ipspoofchk: bool = False
    dhcp_guard: bool = False
    ra_guard: bool = False


def ensure(nft: Nft) -> None:
    """The table is loaded; to be called before elements are added. Raises NftError."""
    nft.ensure(FAMILY, TABLE, VERSION, TEXT)


def loaded(nft: Nft) -> bool:
    """Whether the whole table is there, which its elements do not show; 0.4 ms."""
    return kernel_nft.loaded(nft, FAMILY, TABLE, VERSION, TEXT)


def elements(ifname: str, mac: str, addresses: Sequence[InterfaceAddress], guards: Guards) -> list[Element]:
    """What the sets hold for a port: its name on the host, the MAC and the addresses of the guest."""
    inspected = guards.ipspoofchk or guards.dhcp_guard or guards.ra_guard
    planned = [
        _element(of, ("ifname",), ifname)
        for of, wanted in (
            ("mac_ports", guards.macspoofchk),
            ("ip_ports", guards.ipspoofchk),
            ("dhcp_ports", guards.dhcp_guard),
            ("ra_ports", guards.ra_guard),
            ("inspected_ports", inspected),
        )
        if wanted
    ]
    # RARP is looked at on every inspected port.
    if guards.macspoofchk or inspected:
        planned.append(_element("macs", ("ifname", "ether_addr"), ifname, mac.lower()))
        planned.append(
            _element("raw_macs", ("ifname", "integer48"), ifname, f"0x{mac.lower().replace(':', '')}")
        )
    if guards.ipspoofchk:
        planned += _of_addresses(ifname, mac, addresses)
    return planned


def _of_addresses(ifname: str, mac: str, addresses: Sequence[InterfaceAddress]) -> list[Element]:
    planned: list[Element] = []
    ipv6 = [link_local(bytes.fromhex(mac.replace(":", "")))]
    for interface in addresses:
        if isinstance(interface, IPv4Interface):
            planned.append(_element("ipv4", ("ifname", "ipv4_addr"), ifname, str(interface.ip)))
        else:
            ipv6.append(interface.ip)
    for address in dict.fromkeys(ipv6):
        planned.append(_element("ipv6", ("ifname", "ipv6_addr"), ifname, str(address)))
        planned.append(_element("raw_ipv6", ("ifname", "integer128"), ifname, f"0x{int(address):032x}"))
    return planned


def _element(of: str, types: tuple[str, ...], *key: str) -> Element:
    return Element(FAMILY, TABLE, of, types, key)
