"""What an ADD wants of the pod, as values: pure functions of the configuration and of what is there."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Final, NamedTuple

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import InterfaceAddress
from cnvnet.cni.result import DNS
from cnvnet.guest.settings import V4, V6, Settings
from cnvnet.kernel.addresses import MIN_IPV6_MTU, AddAddress
from cnvnet.kernel.links import ChangeLink, CreateBridge, Link
from cnvnet.kernel.operations import Operation
from cnvnet.kernel.routes import MAIN_TABLE, Route
from cnvnet.kernel.rtnetlink import PROTOCOL_RA
from cnvnet.kernel.sysctl import IPV4_FORWARDING, IPV6_FORWARDING, Setting
from cnvnet.kernel.tap import MAX_MTU, CreateTap
from cnvnet.plugins.binding import pod_interface
from cnvnet.plugins.binding.ruleset import Ruleset
from cnvnet.plugins.masquerade import ruleset
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.ruleset import Family
from cnvnet.vm import names
from cnvnet.vm.names import PodLinkNames

# The same in every pod, so that a guest that moves to another finds the gateway it knows (pkg/network/link
# StaticMasqueradeBridgeMAC).
BRIDGE_MAC: Final = "02:00:00:00:00:00"
# What the guest knows its IPv6 router by. It follows from the MAC address, but not where addr_gen_mode has
# the pod's new links make theirs in another way, or none.
ROUTER: Final = IPv6Interface("fe80::ff:fe00:0/64")


class Observed(NamedTuple):
    """What is there: the pod's interface with its addresses, and where router advertisements are heeded.

    `advertised` are the names of the links whose IPv6 default route or addresses came from an advertisement
    and that take more of them (accept_ra is 1). `routes` are the default ones by the pod's interface.
    """

    pod: Link
    addresses: tuple[InterfaceAddress, ...]
    advertised: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()


class MasqueradePlan(NamedTuple):
    """The state of the pod that an ADD makes.

    Without a bridge `names.bridge` is the tap, which has the gateway's addresses itself. `on_links` are
    sysctls of the new links, which go with them; `global_` those of the namespace.
    """

    names: PodLinkNames
    mtu: int
    families: tuple[Family, ...]
    rulesets: tuple[Ruleset, ...]
    bridge: CreateBridge | None
    tap: CreateTap
    on_links: tuple[Setting, ...]
    global_: tuple[Setting, ...]

    @property
    def addresses(self) -> tuple[InterfaceAddress, ...]:
        """Those of the gateway."""
        gateways = tuple(family.gateway for family in self.families)
        return (*gateways, ROUTER) if any(gateway.version == 6 for gateway in gateways) else gateways

    @property
    def tables(self) -> tuple[str, ...]:
        """The families that have a table."""
        return tuple(each.table.family for each in self.rulesets)


def plan(config: Config, observed: Observed) -> MasqueradePlan:
    """Raises InvalidConfig when the configuration does not fit the pod."""
    called = names.of(observed.pod.name)
    if not config.bridge:
        called = called._replace(bridge=called.tap)
    families = _families(config, observed)
    link_mtu = largest_mtu(config, observed.pod)
    _ensure_room(config, observed.pod, link_mtu, families)
    families = tuple(
        family._replace(mtu=pod_interface.mtu(link_mtu, _default_route(observed, family)))
        for family in families
    )
    mtu = max(family.mtu for family in families)
    return MasqueradePlan(
        names=called,
        mtu=mtu,
        families=families,
        rulesets=tuple(ruleset.plan(config, called, family) for family in families),
        bridge=CreateBridge(called.bridge, mac=BRIDGE_MAC, mtu=mtu, up=False) if config.bridge else None,
        tap=config.tap.operation(called.tap),
        on_links=_settings_of_links(called, families),
        global_=_global_settings(observed, called, families),
    )


def plan_links(wanted: MasqueradePlan, bridge: Link | None, tap: Link, alias: str) -> tuple[Operation, ...]:
    """Addresses, MTUs and joining of the links, and last of all up."""
    gateway = bridge if bridge is not None else tap
    # No DAD: the only neighbour is the guest, which by claiming the gateway's address could take it.
    gateways = (AddAddress(gateway.ifindex, address, nodad=True) for address in wanted.addresses)
    if bridge is None:
        return (
            ChangeLink(tap.ifindex, mac=BRIDGE_MAC, mtu=wanted.mtu, alias=alias),
            *gateways,
            ChangeLink(tap.ifindex, up=True),
        )
    return (
        ChangeLink(bridge.ifindex, alias=alias),
        ChangeLink(tap.ifindex, mtu=wanted.mtu, master=bridge.ifindex, alias=alias),
        *gateways,
        ChangeLink(bridge.ifindex, up=True),
        ChangeLink(tap.ifindex, up=True),
    )


def lost_routes(before: tuple[Route, ...], after: tuple[Route, ...]) -> tuple[Route, ...]:
    """IPv6 default routes that went when the pod became a router, as routes that stay."""
    remaining = {(route.ifindex, route.gw) for route in after}
    return tuple(
        route._replace(protocol=0, scope=None)
        for route in before
        if (route.ifindex, route.gw) not in remaining
    )


def default_routes(routes: list[Route]) -> tuple[Route, ...]:
    """The IPv6 default routes among them."""
    return tuple(
        route
        for route in routes
        if route.dst.version == 6 and route.dst.prefixlen == 0 and route.table == MAIN_TABLE
    )


def came_from_an_advertisement(route: Route) -> bool:
    """Whether the kernel took it from a router advertisement: as a router it would drop it."""
    return route.protocol == PROTOCOL_RA


def guest_settings(config: Config, wanted: MasqueradePlan, dns: DNS) -> Settings:
    """What the guest services configure the guest with. Raises InvalidConfig.

    Any MAC is served: after a migration the guest has that of another pod.
    """
    v4, v6 = None, None
    for family in wanted.families:
        gateway, guest = family.gateway, family.guest
        mtu = family.mtu if family.mtu != wanted.mtu else 0
        if isinstance(guest, IPv4Interface) and isinstance(gateway, IPv4Interface):
            v4 = V4(address=guest, server=gateway.ip, gateway=gateway.ip, mtu=mtu)
        elif isinstance(guest, IPv6Interface):
            v6 = V6(address=guest, mtu=mtu)
    settings = Settings(server_mac=BRIDGE_MAC, mtu=wanted.mtu, v4=v4, v6=v6)
    return config.guest.complete(settings, dns=dns, hostname=config.hostname)


def _families(config: Config, observed: Observed) -> tuple[Family, ...]:
    families: list[Family] = []
    for network, key in (
        (config.network, "vmNetworkCIDR"),
        (config.ipv6_network, "vmIPv6NetworkCIDR"),
    ):
        pod_addresses = [address for address in observed.addresses if address.version == network.version]
        if not pod_addresses:
            continue
        gateway, guest = (
            # KubeVirt's choice: the network's first address is the gateway's, its second one the guest's.
            ip_interface((network.network_address + number, network.prefixlen))
            for number in (1, 2)
        )
        for address in pod_addresses:
            # With a whole network of the same numbers on its other side the pod could not tell them apart;
            # a single address among them, as some networks give their pods, does no harm.
            single = address.network.num_addresses == 1 and address.ip not in (gateway.ip, guest.ip)
            if not single and _overlap(address, gateway):
                raise InvalidConfig(f"{key}: {network} overlaps {address} of {observed.pod.name}")
        families.append(Family(gateway, guest, tuple(address.ip for address in pod_addresses)))
    if not families:
        raise InvalidConfig(f"{observed.pod.name} has no address that a VM could be masqueraded behind")
    return tuple(families)


def _overlap(one: InterfaceAddress, other: InterfaceAddress) -> bool:
    return one.ip in other.network or other.ip in one.network


def largest_mtu(config: Config, pod: Link) -> int:
    """What the configuration asks for, or else the pod's interface has. Raises InvalidConfig for more."""
    if config.mtu > pod.mtu:
        raise InvalidConfig(f"mtu: {config.mtu} is more than the {pod.mtu} of {pod.name}")
    return min(config.mtu or pod.mtu, MAX_MTU)


def _ensure_room(config: Config, pod: Link, mtu: int, families: tuple[Family, ...]) -> None:
    if mtu < MIN_IPV6_MTU and any(family.nft == "ip6" for family in families):
        asked = "mtu" if config.mtu else f"the MTU of {pod.name}"
        raise InvalidConfig(f"{asked}: IPv6 needs {MIN_IPV6_MTU} at least, not {mtu}")


def _default_route(observed: Observed, family: Family) -> Route | None:
    return pod_interface.default_route(observed.routes, family.gateway.version)


def _settings_of_links(called: PodLinkNames, families: tuple[Family, ...]) -> tuple[Setting, ...]:
    v4, v6 = f"net/ipv4/conf/{called.bridge}", f"net/ipv6/conf/{called.bridge}"
    settings: list[Setting] = []
    if called.bridge != called.tap:
        # A port of a bridge has nothing to say by itself; the guest would hear it.
        settings.append(Setting(f"net/ipv6/conf/{called.tap}/disable_ipv6", "1", required=False))
    versions = {family.gateway.version for family in families}
    if 4 in versions:
        # The pod leads connections to its 127.0.0.1 to the guest: without route_localnet the kernel drops
        # what has a loopback address on its way to another link. A redirect would name a way past the pod.
        settings += [Setting(f"{v4}/route_localnet", "1"), Setting(f"{v4}/send_redirects", "0")]
    if 6 in versions:
        settings += [
            Setting(f"{v6}/disable_ipv6", "0"),
            # The guest could claim the link-local address that it is to know its router by.
            Setting(f"{v6}/accept_dad", "0", required=False),
            Setting(f"{v6}/accept_ra", "0", required=False),
        ]
    else:
        settings.append(Setting(f"{v6}/disable_ipv6", "1", required=False))
    return tuple(settings)


def _global_settings(
    observed: Observed, called: PodLinkNames, families: tuple[Family, ...]
) -> tuple[Setting, ...]:
    versions = {family.gateway.version for family in families}
    settings = [
        # Where br_netfilter is loaded the pod's rules would see what is only bridged, and hairpins would be
        # sent back to the port that they came from, which a bridge never does.
        Setting("net/bridge/bridge-nf-call-iptables", "0", required=False),
        Setting("net/bridge/bridge-nf-call-ip6tables", "0", required=False),
    ]
    if 4 in versions:
        # The kernel sends redirects if either this one or the link's own is set.
        settings += [Setting("net/ipv4/conf/all/send_redirects", "0"), Setting(IPV4_FORWARDING, "1")]
        # The latter sets all links as well, but not where it was on already and some links were excepted.
        settings += [
            Setting(f"net/ipv4/conf/{name}/forwarding", "1") for name in (called.pod, called.bridge)
        ]
    if 6 in versions:
        # A router drops the routes of router advertisements, unless accept_ra is 2.
        settings += [Setting(f"net/ipv6/conf/{name}/accept_ra", "2") for name in observed.advertised]
        settings.append(Setting(IPV6_FORWARDING, "1"))
        # With this one its neighbour advertisements to the guest have the router flag.
        settings.append(Setting(f"net/ipv6/conf/{called.bridge}/forwarding", "1"))
    return tuple(settings)
