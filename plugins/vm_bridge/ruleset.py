"""What may pass between guest, LAN and the pod's own kernel: two tables per VM interface. Pure.

The guest is on the LAN. Only where it is served by us must the two not hear each other's DHCP and router
advertisements: the agent's packet socket merely copies what the guest asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cnvnet.guest.settings import Settings
from cnvnet.plugins.binding.ruleset import PlannedChain, PlannedRule, Ruleset, TableName
from cnvnet.vm.names import PodLinkNames

FAMILY: Final = "bridge"
PREFIX: Final = "cnv_guest_"
# The table of the frames that need not pass the bridge.
WIRE_FAMILY: Final = "netdev"
WIRE_PREFIX: Final = "cnv_wire_"
# A chain that every table has.
ANCHOR: Final = "input"

# Before br_netfilter, which takes IP frames out of the later hooks (NF_BR_PRI_BRNF is 0).
_PRIORITY: Final = -200
# Protocols are numbers, and matched by `meta`: see plugins/cnv_bridge/guards.py. @th is what comes behind
# the IP header.
_UDP4: Final = "meta protocol ip meta l4proto 17"
# A later fragment has no ports: what is in their place are data. Asked last, for most packets never.
_HAS_PORTS: Final = "ip frag-off & 0x1fff == 0"
_UDP6: Final = "meta protocol ip6 meta l4proto 17"
_ICMP6: Final = "meta protocol ip6 meta l4proto 58"
# Receivers take what is behind SNAP (AA AA, but for the lowest bits) and OUI 00:00:00 or 00:00:f8 for what
# its type says (RFC 1042, IEEE 802.1H; CVE-2021-27854). Other OUIs are protocols of their own, such as CDP.
# The protocol comes last: nft 1.0.6 aborts when it lists a masked part of a header after it.
_SNAP: Final = "@nh,0,16 & 0xfefe == 0xaaaa @nh,24,24 & 0xffff07 == 0 meta protocol 0x0004"
# nft stops at an authentication header (RFC 4302): UDP, ICMPv6, and the headers that may come before them.
_HIDDEN6: Final = "{ 0, 17, 43, 44, 51, 58, 60, 135, 139, 140 }"
_SOLICITED_TARGET: Final = "@th,64,128"
# Nearly every frame, and none that a rule may drop; in VLANs the same is passed on.
_NEVER_DROPPED: Final = (
    ("meta protocol ip meta l4proto 6", "TCP"),
    (f"{_UDP4} udp dport != 67-68", "UDP but DHCP"),
    ("meta protocol ip6 meta l4proto 6 @th,0,8 0-255", "TCP over IPv6"),
    (f"{_UDP6} udp dport != 546-547", "UDP over IPv6 but DHCPv6"),
)


def table(names: PodLinkNames) -> TableName:
    """The table of one interface, by its tap: of all names the only one that is always an identifier."""
    return TableName(FAMILY, f"{PREFIX}{names.tap}")


def wire_table(names: PodLinkNames) -> TableName:
    """The table of one interface that passes the bridge by."""
    return TableName(WIRE_FAMILY, f"{WIRE_PREFIX}{names.tap}")


def plan_wire(names: PodLinkNames) -> Ruleset:
    """What no rule of `plan` drops goes straight from one end to the other; all else meets the bridge.

    To be loaded when the links are there, whose numbers its rules have.
    """
    ends = (("from_guest", names.tap, names.nic), ("from_lan", names.nic, names.tap))
    chains = (
        PlannedChain(
            name,
            f'filter hook ingress device "{end}" priority 0',
            tuple(
                PlannedRule(match, f'fwd to "{other}"', comment, counted=False)
                for match, comment in _NEVER_DROPPED
            ),
        )
        for name, end, other in ends
    )
    return Ruleset(wire_table(names), (), tuple(chains))


def plan(names: PodLinkNames, served: Settings | None) -> Ruleset:
    """The table; `served` are the guest's settings, None for one that the LAN configures."""
    ends = f'"{names.tap}", "{names.nic}"'
    chains = [
        # The bridge is a wire. The pod's kernel still has the guest's addresses: a host that reached it
        # could take it for the guest, and neither side is to hear what that kernel sends for itself.
        PlannedChain(
            ANCHOR,
            f"filter hook input priority {_PRIORITY}",
            (PlannedRule(f"iifname {{ {ends} }}", "drop", "to the pod's own kernel"),),
        ),
        PlannedChain(
            "output",
            f"filter hook output priority {_PRIORITY}",
            (PlannedRule(f"oifname {{ {ends} }}", "drop", "from the pod's own kernel"),),
        ),
        PlannedChain("forward", f"filter hook forward priority {_PRIORITY}", tuple(_forward(names, served))),
    ]
    return Ruleset(table(names), (), tuple(chain for chain in chains if chain.rules))


def _forward(names: PodLinkNames, served: Settings | None) -> Iterable[PlannedRule]:
    if served is None or (served.v4 is None and served.v6 is None):
        return
    for match, comment in _NEVER_DROPPED:
        yield PlannedRule(match, "accept", comment, counted=False)
    # Priority tags (VLAN 0) are no VLAN: receivers ignore them, of either kind and however many. Of what is
    # behind the first one the rules below would see no more than that it is tagged.
    yield PlannedRule("vlan id 1-4095", "accept", "VLANs are between the guest and its LAN")
    yield PlannedRule("ether type 8021ad vlan id 1-4095", "accept", "stacked VLANs as well")
    yield PlannedRule("meta protocol { 0x8100, 0x88a8 }", "drop", "tags behind a priority tag")
    guest, lan = f'iifname "{names.tap}"', f'iifname "{names.nic}"'
    yield PlannedRule(f"{lan} {_SNAP}", "drop", "SNAP hides what is in it")
    if served.v4 is not None:
        yield from _forward_ipv4(guest, lan, _answered4(served))
    if served.v6 is not None:
        yield from _forward_ipv6(guest, lan, _answered6(served))


def _forward_ipv4(guest: str, lan: str, answered: Iterable[IPv4Address]) -> Iterable[PlannedRule]:
    yield PlannedRule(
        f"{lan} meta protocol ip meta l4proto 51 @th,0,8 {{ 17, 51 }}", "drop", "UDP behind AH"
    )
    yield PlannedRule(f"{guest} {_UDP4} udp dport 67 {_HAS_PORTS}", "drop", "DHCP is answered by the agent")
    yield PlannedRule(f"{lan} {_UDP4} udp dport 68 {_HAS_PORTS}", "drop", "no other DHCP server")
    asked = ", ".join(map(str, answered))
    if asked:
        match = f"{guest} meta protocol arp arp operation request arp daddr ip {{ {asked} }}"
        yield PlannedRule(match, "drop", "ARP for these is answered by the agent")


def _forward_ipv6(guest: str, lan: str, answered: Iterable[IPv6Address]) -> Iterable[PlannedRule]:
    # nft takes the IPv6 header of these for the transport header: the port is in their flow label.
    later = f"{_UDP6} udp dport {{ 546, 547 }} frag frag-off != 0"
    yield PlannedRule(later, "accept", "fragments without ports")
    yield PlannedRule(f"{guest} {_UDP6} udp dport 547", "drop", "DHCPv6 is answered by the agent")
    yield PlannedRule(
        f"{guest} {_ICMP6} @th,0,8 133", "drop", "router solicitations are answered by the agent"
    )
    yield PlannedRule(f"{lan} {_UDP6} udp dport 546", "drop", "no other DHCPv6 server")
    yield PlannedRule(f"{lan} {_ICMP6} @th,0,8 134", "drop", "no other router advertisements")
    yield PlannedRule(f"{lan} meta protocol ip6 meta l4proto 51 @th,0,8 {_HIDDEN6}", "drop", "ND behind AH")
    asked = ", ".join(f"0x{int(address):032x}" for address in answered)
    if asked:
        match = f"{guest} {_ICMP6} @th,0,8 135 {_SOLICITED_TARGET} {{ {asked} }}"
        yield PlannedRule(match, "drop", "solicitations for these are answered by the agent")
    yield PlannedRule(
        f"{lan} meta protocol ip6 frag frag-off != 0", "accept", "the first fragment is judged"
    )
    yield PlannedRule(f"{lan} meta protocol ip6 @th,0,8 0-255", "accept", "all its headers are there")
    yield PlannedRule(f"{lan} meta protocol ip6", "drop", "headers that are cut off hide what follows")


def _answered4(served: Settings) -> list[IPv4Address]:
    adopted = [each.address for each in served.neighbours if isinstance(each.address, IPv4Address)]
    return list(dict.fromkeys([*adopted, *([served.v4.server] if served.v4 is not None else [])]))


def _answered6(served: Settings) -> list[IPv6Address]:
    adopted = [each.address for each in served.neighbours if isinstance(each.address, IPv6Address)]
    v6 = served.v6
    router = [v6.router] if v6 is not None and v6.router is not None and v6.router_mac else []
    return list(dict.fromkeys([*adopted, *router]))
