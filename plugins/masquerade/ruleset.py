"""The nftables of a pod whose VM is behind masquerade, as values and as nft's text. Pure.

KubeVirt's rules (pkg/network/setup/netpod/masquerade) in a table of our own per family, because `nat` is
another program's, iptables-nft's. The guards, the hairpin and the rules of a migration's target are ours.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from cnvnet.cni.fields import InterfaceAddress
from cnvnet.kernel.nft.tables import Element
from cnvnet.plugins.binding.ruleset import PlannedChain, PlannedRule, Ruleset, TableName
from cnvnet.plugins.masquerade.config import TCP, Config, PortRange
from cnvnet.vm.names import PodLinkNames

TABLE: Final = "cnv_masquerade"
# A chain that every ruleset has.
ANCHOR: Final = "postrouting"
# Istio's sidecar (pkg/network/istio): Envoy's own ports, those it does not intercept, and the source of what
# it hands on.
_ENVOY_PORTS: Final = (15000, 15001, 15004, 15006, 15008, 15009, 15020, 15021, 15053, 15090)
_NOT_PROXIED: Final = 22
_ENVOY_SOURCE: Final = "127.0.0.6"
_LOOPBACK: Final = "127.0.0.1"


class Family(NamedTuple):
    """One IP family of a binding: the bridge's address, the guest's, and those of the pod's interface.

    `mtu` is the largest packet that the pod sends on for the guest.
    """

    gateway: InterfaceAddress
    guest: InterfaceAddress
    pod: tuple[IPv4Address | IPv6Address, ...]
    mtu: int = 0

    @property
    def nft(self) -> str:
        """nft's word for it."""
        return "ip" if self.gateway.version == 4 else "ip6"


def plan(config: Config, names: PodLinkNames, family: Family) -> Ruleset:
    """The table for one family of a binding."""
    chains = [
        _guard(names, family),
        _input(config, names, family),
        _forward(config, names),
        _inbound(config, family),
        _prerouting(config, names, family),
        _output(config, family),
        _redirects(names, family),
        _postrouting(config, names, family),
    ]
    elements = [_listed(family, each) for each in config.listed]
    elements += [_reserved(family, port) for port in _kept(config)]
    return Ruleset(table(family.nft), tuple(elements), tuple(chain for chain in chains if chain.rules))


def table(family: str) -> TableName:
    """The table of one of nft's families."""
    return TableName(family, TABLE)


def _guard(names: PodLinkNames, family: Family) -> PlannedChain:
    """Before conntrack sees it: what the guest may not send, and what may not be sent to it directly."""
    f, bridge, guest = family.nft, f'iifname "{names.bridge}"', family.guest.ip
    if f == "ip":
        # With route_localnet it would get to what listens on the pod's loopback.
        loopback = "127.0.0.0/8"
        own = PlannedRule(
            f"{bridge} ip saddr 0.0.0.0 udp dport 67", "return", "the guest has no address yet"
        )
    else:
        loopback = "::1"
        own = PlannedRule(f"{bridge} ip6 saddr {{ ::, fe80::/10 }}", "return", "the guest on its own link")
    # First what no rule below can drop, which is nearly every packet. The pod's interface is there already,
    # and its number is compared more quickly than a name; if another link gets its name, the rest is asked.
    rules = (
        PlannedRule(
            f'iif "{names.pod}" {f} daddr != {guest}', "accept", "by the pod's own address", counted=False
        ),
        PlannedRule(
            f"{bridge} {f} saddr {guest} {f} daddr != {loopback}",
            "accept",
            "the guest as itself",
            counted=False,
        ),
        PlannedRule(f"{bridge} {f} daddr {loopback}", "drop", "the guest to the loopback of the pod"),
        own,
        PlannedRule(f"{bridge} {f} saddr != {guest}", "drop", "the guest with a source that is not its own"),
        # A host that routed the inner address by the pod would bypass the list of ports.
        PlannedRule(
            f'iifname != {{ "lo", "{names.bridge}" }} {f} daddr {guest}',
            "drop",
            "the inner address from outside",
        ),
    )
    return PlannedChain("guard", "filter hook prerouting priority -300", rules)


def _input(config: Config, names: PodLinkNames, family: Family) -> PlannedChain:
    """The agent answers from a packet socket; of the kernel a guest would get ICMP port unreachable."""
    port, what = (67, "DHCP") if family.nft == "ip" else (547, "DHCPv6")
    rule = PlannedRule(
        f'iifname "{names.bridge}" udp dport {port}', "drop", f"{what} is answered by the agent"
    )
    rules = (rule,) if config.guest.enabled else ()
    return PlannedChain("input", "filter hook input priority 0", rules)


def _forward(config: Config, names: PodLinkNames) -> PlannedChain:
    """Where flows are taken up midstream no new one may come in that way: an ACK, then a SYN."""
    match = f'iifname "{names.pod}" oifname "{names.bridge}" tcp flags & (syn | ack) == syn'
    rule = PlannedRule(
        f"{match} meta l4proto . th dport != @listed", "drop", "a new connection to a port not listed"
    )
    return PlannedChain("forward", "filter hook forward priority 0", (rule,) if _midstream(config) else ())


def _inbound(config: Config, family: Family) -> PlannedChain:
    """What is sent to the pod and is the guest's."""
    rules: list[PlannedRule] = []
    if _kept(config):
        rules.append(PlannedRule("tcp dport @reserved", "return", "ports of the pod itself"))
    if config.istio:
        # All else comes through Envoy, on the loopback.
        match = f"tcp dport {_NOT_PROXIED}" if _leads(config, _NOT_PROXIED) else ""
        rules += [_dnat(family, match, "ports that Envoy leaves alone")] if match else []
    else:
        rules.append(_dnat(family, _ports(config), "to the guest"))
    return PlannedChain("inbound", "", tuple(rules))


def _prerouting(config: Config, names: PodLinkNames, family: Family) -> PlannedChain:
    f = family.nft
    others = "224.0.0.0/3" if f == "ip" else "{ fe80::/10, ff00::/8 }"
    arrives = f'iifname "{names.pod}" {f} daddr != {others}'
    rules: list[PlannedRule] = []
    if _inbound(config, family).rules:
        rules.append(PlannedRule(arrives, "jump inbound", "from outside"))
        if config.hairpin:
            own = ", ".join(map(str, family.pod))
            match = f'iifname "{names.bridge}" {f} daddr {{ {own} }}'
            rules.append(PlannedRule(match, "jump inbound", "the guest to its own pod"))
    if _midstream(config):
        # A packet of a flow that conntrack has not seen the beginning of: it began before the VM moved.
        kept = "tcp dport != @reserved " if _kept(config) else ""
        rules.append(
            _dnat(family, f"{arrives} {kept}tcp flags & syn != syn", "flows that moved with the VM")
        )
    return PlannedChain("prerouting", "nat hook prerouting priority -100", tuple(rules))


def _output(config: Config, family: Family) -> PlannedChain:
    """The pod's loopback leads to the guest; IPv6's cannot: the kernel routes ::1 nowhere else."""
    if family.nft == "ip6":
        return PlannedChain("output", "", ())
    rules: list[PlannedRule] = []
    if not config.listed and _kept(config):
        rules.append(PlannedRule("tcp dport @reserved", "return", "ports of the pod itself"))
    towards = [_LOOPBACK, *(map(str, family.pod) if config.istio else ())]
    match = f"ip daddr {{ {', '.join(towards)} }} {_ports(config)}".rstrip()
    rules.append(_dnat(family, match, "from the loopback of the pod"))
    return PlannedChain("output", "nat hook output priority -100", tuple(rules))


def _redirects(names: PodLinkNames, family: Family) -> PlannedChain:
    """A hairpin is no detour for the guest to avoid. IPv4 has send_redirects for this, IPv6 has nothing."""
    rule = PlannedRule(f'oifname "{names.bridge}" icmpv6 type 137', "drop", "redirects to the guest")
    return PlannedChain("redirects", "filter hook output priority 0", (rule,) if family.nft == "ip6" else ())


def _postrouting(config: Config, names: PodLinkNames, family: Family) -> PlannedChain:
    f = family.nft
    rules = [PlannedRule(f"{f} saddr {family.guest.ip}", "masquerade", "from the guest")]
    if f == "ip":
        sources = f"{_LOOPBACK}, {_ENVOY_SOURCE}" if config.istio else _LOOPBACK
        match = f'oifname "{names.bridge}" ip saddr {{ {sources} }}'
        rules.append(PlannedRule(match, f"snat to {family.gateway.ip}", "from the loopback to the guest"))
    return PlannedChain(ANCHOR, "nat hook postrouting priority 100", tuple(rules))


def _dnat(family: Family, match: str, comment: str) -> PlannedRule:
    return PlannedRule(match, f"dnat to {family.guest.ip}", comment)


def _ports(config: Config) -> str:
    return "meta l4proto . th dport @listed" if config.listed else ""


def _leads(config: Config, port: int) -> bool:
    """Whether a TCP port is the guest's."""
    if not config.listed:
        return True
    return any(each.protocol == TCP and each.first <= port <= each.last for each in config.listed)


def _midstream(config: Config) -> bool:
    """Whether packets of unknown flows are for the guest: without a list of ports all of them are anyway."""
    return config.target and bool(config.listed) and not config.istio


def _kept(config: Config) -> tuple[int, ...]:
    """TCP ports that lead to the pod itself."""
    if config.istio and not config.listed:
        return tuple(sorted({*config.reserved, *_ENVOY_PORTS}))
    return config.reserved


def _listed(family: Family, each: PortRange) -> Element:
    ports = str(each.first) if each.first == each.last else f"{each.first}-{each.last}"
    key = (str(each.protocol), ports)
    return Element(family.nft, TABLE, "listed", ("inet_proto", "inet_service"), key)


def _reserved(family: Family, port: int) -> Element:
    return Element(family.nft, TABLE, "reserved", ("inet_service",), (str(port),))
