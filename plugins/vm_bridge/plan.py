"""What an ADD wants of the pod, as values: pure functions of the configuration and of what is there."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final, NamedTuple

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Address, InterfaceAddress
from cnvnet.cni.result import DNS
from cnvnet.guest.settings import V4, V6, GuestNeighbour, GuestRoute, Settings
from cnvnet.kernel.addresses import MIN_IPV6_MTU
from cnvnet.kernel.links import CreateBridge, Link
from cnvnet.kernel.routes import MAIN_TABLE, Route
from cnvnet.kernel.sysctl import Setting
from cnvnet.kernel.tap import MAX_MTU, CreateTap
from cnvnet.plugins.binding import placeholder, pod_interface
from cnvnet.plugins.binding.pod_interface import is_global_unicast
from cnvnet.plugins.vm_bridge import original as originals
from cnvnet.plugins.vm_bridge.config import Config
from cnvnet.plugins.vm_bridge.original import KnownNetwork
from cnvnet.vm import names as all_names
from cnvnet.vm.names import PodLinkNames

# 01:80:c2:00:00:0X for every X that a bridge can be set to pass on: all but STP, pause frames and LACP. STP
# passes all the same, because the bridge takes no part in it.
GROUP_FWD_MASK: Final = 0xFFF8
# KubeVirt's, with the interface's number behind it (pkg/network/link GenerateBridgeIP...).
_SERVER: Final = "169.254.75.1"
# They share the interface's device: it takes in frames for its own MAC address only.
_SHARING: Final = ("macvlan", "macvtap", "ipvlan", "ipvtap")
# Where br_netfilter is loaded the pod's rules, made for its own traffic, would see the guest's.
GLOBAL: Final = tuple(
    Setting(f"net/bridge/bridge-nf-call-{of}", "0", required=False)
    for of in ("iptables", "ip6tables", "arptables")
)
_MASQUERADES: Final = "masquerade-"


class BridgePlan(NamedTuple):
    """The state of the pod that an ADD makes.

    `mac` is that of bridge and renamed interface. `server` is where the guest's DHCP says it comes from,
    `served` all that the guest services configure; None: they do not serve this guest.
    """

    names: PodLinkNames
    mac: str
    mtu: int
    bridge: CreateBridge
    tap: CreateTap
    server: IPv4Interface | None
    served: Settings | None
    on_links: tuple[Setting, ...]


def ensure_fit(link: Link) -> None:
    """Raises InvalidConfig for an interface of the pod that no VM can take the place of."""
    if link.kind in _SHARING:
        raise InvalidConfig(
            f"{link.name} is a {link.kind}, which takes in nothing for another MAC address than its own: "
            "give the VM's network a bridge (cnv-bridge), or put the VM behind masquerade"
        )
    if link.alias.startswith(placeholder.ALIAS):
        raise InvalidConfig(f"{link.name} stands in for an interface that a VM has taken already")
    if link.master:
        raise InvalidConfig(f"{link.name} is the port of a bridge already")


def ensure_free(names: PodLinkNames, taken: Iterable[Link]) -> None:
    """Raises InvalidConfig when there is a link of one of the names that an ADD makes."""
    for link in taken:
        if link.name in (names.bridge, names.nic, names.tap):
            by = ": masquerade has bound the VM" if link.alias.startswith(_MASQUERADES) else ""
            raise InvalidConfig(f"{names.pod}: the pod has a link {link.name} already{by}")


def plan(
    config: Config, pod: KnownNetwork, *, taken: Iterable[Address], router_mac: str, dns: DNS
) -> BridgePlan:
    """What an ADD makes. InvalidConfig when the guest's settings make no sense.

    `taken` are the addresses of the pod, `router_mac` is the MAC address of the IPv6 gateway where it was
    found out.
    """
    called = all_names.of(pod.name)
    mac, mtu = wire_mac(pod.mac), tap_mtu(pod)
    address = first_address(pod, IPv4Interface)
    server = _server(taken) if address is not None else None
    served = None
    if serves(config, pod):
        settings = _settings(pod, server, router_mac)
        served = config.guest.complete(settings, dns=dns, hostname=config.hostname)
    return BridgePlan(
        names=called,
        mac=mac,
        mtu=mtu,
        bridge=CreateBridge(
            called.bridge,
            mac=mac,
            mtu=mtu,
            up=False,
            # Snooping would keep a group's frames from a guest whose join the bridge has not seen.
            multicast_snooping=False,
            group_fwd_mask=GROUP_FWD_MASK,
        ),
        tap=config.tap.operation(called.tap),
        server=IPv4Interface(f"{server}/32") if server is not None else None,
        served=served,
        on_links=settings_of_links(called),
    )


def wire_mac(mac: str) -> str:
    """The MAC address of bridge and renamed interface, which the LAN never sees.

    It follows from the guest's: wherever the VM moves, its DHCP server has the same.
    """
    # 02: locally administered, and no group's.
    return "02:" + sha256(f"vm-bridge {mac}".encode()).digest()[:5].hex(":")


def settings_of_links(called: PodLinkNames) -> tuple[Setting, ...]:
    """The pod's kernel neither sends nor answers on these links, above all not for the guest's addresses."""
    silent = [
        Setting(originals.disable_ipv6(name), "1", required=False) for name in (called.bridge, called.tap)
    ]
    return (Setting(f"net/ipv4/conf/{called.bridge}/arp_ignore", "1"), *silent)


def serves(config: Config, pod: KnownNetwork) -> bool:
    """Whether the guest services configure the guest."""
    if not config.guest.enabled:
        return False
    return first_address(pod, IPv4Interface) is not None or _address6(pod) is not None


def first_address(
    pod: KnownNetwork, kind: type[IPv4Interface] | type[IPv6Interface]
) -> InterfaceAddress | None:
    """The first of a family that others can reach the pod by."""
    present = (each.address for each in pod.addresses)
    return next((each for each in present if isinstance(each, kind) and is_global_unicast(each.ip)), None)


def default_route(pod: KnownNetwork, version: int) -> Route | None:
    """The one that the pod used."""
    return pod_interface.default_route((*pod.routes, *pod.ra_routes), version)


def family_mtu(pod: KnownNetwork, version: int) -> int:
    """The largest packet of a family that the pod has sent."""
    return min(pod_interface.mtu(pod.mtu, default_route(pod, version)), MAX_MTU)


def tap_mtu(pod: KnownNetwork) -> int:
    """What the larger of the pod's families needs, without any what the interface has."""
    present = ((4, first_address(pod, IPv4Interface)), (6, _address6(pod)))
    mtus = [family_mtu(pod, version) for version, address in present if address is not None]
    return max(mtus, default=min(pod.mtu, MAX_MTU))


def unknown_router(pod: KnownNetwork) -> IPv6Address | None:
    """An IPv6 gateway whose MAC address the plugin has to learn before it can announce it to the guest.

    Guests know their router by a link-local address only (RFC 4861). One that the pod knows by a global one
    is announced by the link-local address that its MAC address makes.
    """
    route = default_route(pod, 6) if _address6(pod) is not None else None
    gw = route.gw if route is not None else None
    if not isinstance(gw, IPv6Address) or gw.is_link_local or _permanent(pod, gw):
        return None
    return gw


def _server(taken: Iterable[Address]) -> IPv4Address:
    present = set(taken)
    candidates = (IPv4Address(f"{_SERVER}{number}") for number in range(100))
    return next(address for address in candidates if address not in present)


def _settings(pod: KnownNetwork, server: IPv4Address | None, router_mac: str) -> Settings:
    v4 = first_address(pod, IPv4Interface)
    hops = dict.fromkeys(route.gw for route in pod.routes if route.gw is not None)
    adopted = [GuestNeighbour(hop, mac) for hop in hops if (mac := _permanent(pod, hop))]
    return Settings(
        server_mac=wire_mac(pod.mac),
        mtu=tap_mtu(pod),
        guest_mac=pod.mac,
        v4=_v4(pod, v4, server) if isinstance(v4, IPv4Interface) and server is not None else None,
        v6=_v6(pod, router_mac),
        neighbours=tuple(adopted),
    )


def _own_mtu(pod: KnownNetwork, version: int) -> int:
    """That of a family where it is not the tap's, else 0."""
    mtu = family_mtu(pod, version)
    return mtu if mtu != tap_mtu(pod) else 0


def _v4(pod: KnownNetwork, address: IPv4Interface, server: IPv4Address) -> V4:
    default = default_route(pod, 4)
    routes: dict[GuestRoute, None] = {}
    for route in _main(pod.routes, 4):
        # A next hop of the other family means nothing to DHCP.
        if not isinstance(route.dst, IPv4Network) or isinstance(route.gw, IPv6Address):
            continue
        if route.dst.prefixlen or (route == default and route.gw is None):
            routes[GuestRoute(route.dst, route.gw)] = None
    gateway = default.gw if default is not None else None
    return V4(
        address=IPv4Interface(address.ip) if address.network in pod.missing_connected_routes else address,
        server=server,
        gateway=gateway if isinstance(gateway, IPv4Address) else None,
        routes=tuple(routes),
        mtu=_own_mtu(pod, 4),
    )


def _v6(pod: KnownNetwork, router_mac: str) -> V6 | None:
    address = _address6(pod)
    return _routed(pod, address, router_mac)._replace(mtu=_own_mtu(pod, 6)) if address is not None else None


def _routed(pod: KnownNetwork, address: IPv6Interface, router_mac: str) -> V6:
    default = default_route(pod, 6)
    gw = default.gw if default is not None else None
    if not isinstance(gw, IPv6Address):
        return V6(address=address, default_route=False)
    mac = _permanent(pod, gw) or ("" if gw.is_link_local else router_mac)
    if not gw.is_link_local and not mac:
        return V6(address=address, default_route=False)
    if address.network in pod.missing_connected_routes:
        address = IPv6Interface(address.ip)
    others = (route.dst for route in _main(pod.routes, 6) if route.gw == gw and route.dst.prefixlen)
    return V6(
        address=address,
        router=gw if gw.is_link_local else None,
        router_mac=mac,
        routes=tuple(dst for dst in others if isinstance(dst, IPv6Network)),
    )


def _address6(pod: KnownNetwork) -> IPv6Interface | None:
    """The address that the guest is given; what came from routers comes to the guest as well."""
    first = first_address(pod, IPv6Interface) if pod.mtu >= MIN_IPV6_MTU else None
    return first if isinstance(first, IPv6Interface) else None


def _main(routes: Iterable[Route], version: int) -> list[Route]:
    return [route for route in routes if route.dst.version == version and route.table == MAIN_TABLE]


def _permanent(pod: KnownNetwork, address: Address) -> str:
    """The MAC address of a permanent neighbour entry, whose host may not answer by itself; "" for others."""
    known = (each.mac for each in pod.neighbours if each.address == address and not each.proxy)
    return next(known, "")
