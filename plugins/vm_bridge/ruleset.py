"""What may pass between guest, LAN and the pod's own kernel: a table per VM interface. Pure.

The guest is on the LAN. Only where it is served by us must the two not hear each other's DHCP and router
advertisements: the agent's packet socket merely copies what the guest asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cnvnet.guest.settings import Settings
from cnvnet.vm.names import Names
from cnvnet.vm.ruleset import Chain, Rule, Ruleset, Table

FAMILY: Final = "bridge"
PREFIX: Final = "cnv_guest_"
# A chain that every table has.
ANCHOR: Final = "input"

# Before br_netfilter, which takes IP frames out of the later hooks (NF_BR_PRI_BRNF is 0).
_PRIORITY: Final = -200
# Protocols are numbers, and told apart by `meta`: see plugins/cnv_bridge/guards.py. @th is what comes behind
# the IP header.
_UDP4: Final = "meta protocol ip meta l4proto 17"
_UDP6: Final = "meta protocol ip6 meta l4proto 17"
_ICMP6: Final = "meta protocol ip6 meta l4proto 58"
_SOLICITED_TARGET: Final = "@th,64,128"


def table(names: Names) -> Table:
    """The table of one interface, by its tap: of all names the only one that is always an identifier."""
    return Table(FAMILY, f"{PREFIX}{names.tap}")


def plan(names: Names, served: Settings | None) -> Ruleset:
    """The table; `served` is what the guest is told by us, None for one that the LAN tells everything."""
    ends = f'"{names.tap}", "{names.nic}"'
    chains = [
        # The bridge is a wire. The pod's kernel still has the guest's addresses: whoever reached it could
        # take it for the guest, and what it would say for itself is nobody's business on either side.
        Chain(
            ANCHOR,
            f"filter hook input priority {_PRIORITY}",
            (Rule(f"iifname {{ {ends} }}", "drop", "to the pod's own kernel"),),
        ),
        Chain(
            "output",
            f"filter hook output priority {_PRIORITY}",
            (Rule(f"oifname {{ {ends} }}", "drop", "from the pod's own kernel"),),
        ),
        Chain("forward", f"filter hook forward priority {_PRIORITY}", tuple(_forward(names, served))),
    ]
    return Ruleset(table(names), (), tuple(chain for chain in chains if chain.rules))


def _forward(names: Names, served: Settings | None) -> Iterable[Rule]:
    if served is None or (served.v4 is None and served.v6 is None):
        return
    # Priority tags (VLAN 0) are no VLAN: receivers ignore them, of either kind and however many. Of what is
    # behind the first one the rules below would see no more than that it is tagged.
    yield Rule("vlan id 1-4095", "accept", "VLANs are between the guest and its LAN")
    yield Rule("ether type 8021ad vlan id 1-4095", "accept", "stacked VLANs as well")
    yield Rule("meta protocol { 0x8100, 0x88a8 }", "drop", "tags behind a priority tag")
    guest, lan = f'iifname "{names.tap}"', f'iifname "{names.nic}"'
    if served.v4 is not None:
        yield Rule(f"{guest} {_UDP4} udp dport 67", "drop", "DHCP is answered by the agent")
        yield Rule(f"{lan} {_UDP4} udp dport 68", "drop", "no other DHCP server")
        asked = ", ".join(map(str, _answered4(served)))
        if asked:
            match = f"{guest} meta protocol arp arp operation request arp daddr ip {{ {asked} }}"
            yield Rule(match, "drop", "ARP for these is answered by the agent")
    if served.v6 is not None:
        yield Rule(f"{guest} {_UDP6} udp dport 547", "drop", "DHCPv6 is answered by the agent")
        yield Rule(f"{guest} {_ICMP6} @th,0,8 133", "drop", "router solicitations are answered by the agent")
        yield Rule(f"{lan} {_UDP6} udp dport 546", "drop", "no other DHCPv6 server")
        yield Rule(f"{lan} {_ICMP6} @th,0,8 134", "drop", "no other router advertisements")
        asked = ", ".join(f"0x{int(address):032x}" for address in _answered6(served))
        if asked:
            match = f"{guest} {_ICMP6} @th,0,8 135 {_SOLICITED_TARGET} {{ {asked} }}"
            yield Rule(match, "drop", "solicitations for these are answered by the agent")


def _answered4(served: Settings) -> list[IPv4Address]:
    found = [each.address for each in served.neighbours if isinstance(each.address, IPv4Address)]
    return list(dict.fromkeys([*found, *([served.v4.server] if served.v4 is not None else [])]))


def _answered6(served: Settings) -> list[IPv6Address]:
    found = [each.address for each in served.neighbours if isinstance(each.address, IPv6Address)]
    v6 = served.v6
    router = [v6.router] if v6 is not None and v6.router is not None and v6.router_mac else []
    return list(dict.fromkeys([*found, *router]))
