"""What an ADD wants of the kernel, as values: pure functions of the configuration and of what is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from ipaddress import IPv4Interface, ip_interface, ip_network
from typing import Final, NamedTuple

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import InterfaceAddress
from cnvnet.cni.result import IP, Interface, Result, ResultRoute
from cnvnet.executables import STATIC_IP
from cnvnet.kernel.addresses import AddAddress, Address, DeleteAddress
from cnvnet.kernel.links import ChangeLink, CreateBridge, CreateVeth, Link, VethPeer
from cnvnet.kernel.operations import Operation
from cnvnet.kernel.routes import MAIN_TABLE, AddRoute, Route
from cnvnet.kernel.sysctl import IPV4_FORWARDING, IPV6_FORWARDING, Setting
from cnvnet.kernel.vlans import AddVlans, DeleteVlans, VlanRange
from cnvnet.plugins.cnv_bridge.config import Config

# The VLAN of untagged frames on a trunk whose configuration names none, as in the reference.
_TRUNK_NATIVE: Final = 1
# A bridge that takes its MAC from its ports shows this when the last one has gone.
_UNSET_MAC: Final = "00:00:00:00:00:00"
# The container's place in the interfaces of the result; ips[].interface refers to it.
CONTAINER: Final = 2


class PortNames(NamedTuple):
    """What a port is called on both sides, chosen before anything is made so that the record can say it."""

    host: str
    host_mac: str
    container: str
    container_mac: str


class Step(Enum):
    """A part of an ADD whose place depends on the address manager.

    The addresses with their gateways, and the guards for what is known of the port.
    """

    ADDRESSES = 1
    GUARDS = 2


class Order(NamedTuple):
    """What comes before the port is made and what after it, when its end in the container is still down."""

    before_port: tuple[Step, ...]
    after_port: tuple[Step, ...] = ()


def finds_port(ipam_type: str) -> bool:
    """Whether an address manager is asked, and asked again to take back, while the port is there.

    As with the reference: the `dhcp` plugin asks through the port. Our own is asked before, since a lease
    says which MAC the container has.
    """
    return ipam_type not in ("", STATIC_IP)


def order(ipam_type: str) -> Order:
    """Guards come before the port, and an address's guards before the address."""
    if not ipam_type:
        return Order((Step.GUARDS,))
    if finds_port(ipam_type):
        return Order((Step.GUARDS,), (Step.ADDRESSES, Step.GUARDS))
    return Order((Step.ADDRESSES, Step.GUARDS))


def host_name(entropy: bytes) -> str:
    """`veth` and eight hexadecimal digits: NetworkManager leaves links of such names alone."""
    return f"veth{entropy[:4].hex()}"


def host_mac(entropy: bytes) -> str:
    """High: a bridge without a MAC of its own takes the lowest of its ports, and guests would see it."""
    return (b"\xfe" + entropy[:5]).hex(":")


def local_mac(entropy: bytes) -> str:
    """A locally administered unicast MAC."""
    return (bytes([entropy[0] & 0xFC | 0x02]) + entropy[1:6]).hex(":")


def plan_bridge(config: Config, bridge: Link | None, mac: str) -> tuple[Operation, ...]:
    """Makes the bridge, with a MAC that does not follow its ports, or confirms the one that is there.

    A bridge of another program keeps its MTU and its VLAN filtering; InvalidConfig when it cannot serve.
    """
    if bridge is None:
        return (CreateBridge(config.bridge, mac=mac, mtu=config.mtu, vlan_filtering=config.filters_vlans),)
    name = config.bridge
    if bridge.kind != "bridge":
        raise InvalidConfig(f'failed to create bridge "{name}": "{name}" already exists but is not a bridge')
    if (config.vlan or config.trunk) and not (bridge.bridge and bridge.bridge.vlan_filtering):
        asked = _asked_vlans(config)
        remedy = f"ip link set {name} type bridge vlan_filtering 1"
        raise InvalidConfig(f"{asked}: bridge {name} does not filter VLANs ({remedy})")
    promisc = config.promisc_mode and not bridge.promisc
    # Frames to 01:80:c2:00:00:0e pass by nftables, and would teach the bridge any MAC for the guest's port.
    unguarded = config.macspoofchk and bridge.bridge is not None and bridge.bridge.linklocal_learning
    if bridge.up and not promisc and not unguarded:
        return ()
    change = ChangeLink(bridge.ifindex, up=True, promisc=True if promisc else None)
    return (change._replace(linklocal_learning=False if unguarded else None),)


def plan_veth(config: Config, names: PortNames, bridge: Link, netns_fd: int) -> CreateVeth:
    """Both ends in one message. The host end is up at once where nothing is left to set on the port."""
    return CreateVeth(
        name=names.host,
        mac=names.host_mac,
        mtu=config.mtu,
        master=bridge.ifindex,
        up=not plan_port_settings(config, bridge, 0),
        peer=VethPeer(names.container, mac=names.container_mac, mtu=config.mtu, netns_fd=netns_fd),
    )


def plan_port(config: Config, bridge: Link, ifindex: int) -> tuple[Operation, ...]:
    """Flags and VLANs of the new port, and only then up: no frame passes in the wrong VLAN."""
    settings = plan_port_settings(config, bridge, ifindex)
    return (*settings, ChangeLink(ifindex, up=True)) if settings else ()


def plan_port_settings(config: Config, bridge: Link, ifindex: int) -> tuple[Operation, ...]:
    """What differs from the port the kernel makes; a new port has neither flag."""
    operations: list[Operation] = []
    if config.hairpin_mode or config.port_isolation:
        operations.append(
            ChangeLink(
                ifindex,
                hairpin=True if config.hairpin_mode else None,
                isolated=True if config.port_isolation else None,
            )
        )
    return (*operations, *plan_vlans(config, bridge, ifindex))


def plan_vlans(config: Config, bridge: Link, ifindex: int) -> tuple[Operation, ...]:
    """The VLANs of a new port, which has the bridge's default one."""
    wanted = wanted_vlans(config)
    default = bridge.bridge.default_pvid if bridge.bridge else 0
    operations: list[Operation] = []
    if wanted and default and not config.preserve_default_vlan:
        # The kernel puts each new port into the bridge's default VLAN; a VM of VLAN 33 would be in 1 too.
        operations.append(DeleteVlans(ifindex, (VlanRange(default, default),)))
    if wanted:
        operations.append(AddVlans(ifindex, wanted))
    return tuple(operations)


def wanted_vlans(config: Config) -> tuple[VlanRange, ...]:
    """The VLANs the configuration names: the native one first, then the tagged ones without it."""
    native = config.vlan or (_TRUNK_NATIVE if config.trunk else 0)
    if not native:
        return ()
    tagged: list[VlanRange] = []
    for first, last in config.trunk or ():
        # Named again without its flags the native VLAN would become a tagged one.
        for low, high in ((first, min(last, native - 1)), (max(first, native + 1), last)):
            if low <= high:
                tagged.append(VlanRange(low, high))
    return (VlanRange(native, native, pvid=True, untagged=True), *tagged)


def no_advertisements(ifname: str) -> Setting:
    """No link of the host takes addresses or routes from what a guest says as a router."""
    return Setting(f"net/ipv6/conf/{ifname}/accept_ra", "0", required=False)


def container_settings(
    config: Config, ifname: str, result: Result, *, silent: bool = False
) -> tuple[Setting, ...]:
    """The sysctls of the container's end, before it gets addresses and goes up.

    The kernel announces the addresses by gratuitous ARP and unsolicited neighbour advertisements (RFC 4861,
    7.2.6), of IPv6 those that are through with duplicate address detection; `silent`: it does not, and asks
    for no duplicates, because the other pod that has the addresses would answer.
    """
    announces = "0" if silent else "1"
    v6, v4 = f"net/ipv6/conf/{ifname}", f"net/ipv4/conf/{ifname}"
    settings: list[Setting] = []
    if config.enable_dad and not silent:
        settings += [
            Setting(f"{v6}/enhanced_dad", "1", required=False),
            Setting(f"{v6}/accept_dad", "1", required=False),
        ]
    else:
        settings.append(Setting(f"{v6}/accept_dad", "0", required=False))
    settings.append(Setting(f"{v4}/arp_notify", announces, required=False))
    if any(ip.address.version == 6 for ip in result.ips):
        settings += [
            Setting("net/ipv6/conf/lo/disable_ipv6", "0"),
            Setting(f"{v6}/disable_ipv6", "0"),
            # Otherwise the kernel forgets the address when the link goes down for a moment.
            Setting(f"{v6}/keep_addr_on_down", "1"),
            Setting(f"{v6}/ndisc_notify", announces, required=False),
        ]
    if silent:
        # Either of `all` and the link's own is enough for the kernel, and a new pod has its node's `all`.
        settings += [
            Setting("net/ipv4/conf/all/arp_notify", "0", required=False),
            Setting("net/ipv6/conf/all/ndisc_notify", "0", required=False),
        ]
    return tuple(settings)


def plan_container(ifindex: int, result: Result, announced_mac: str | None = None) -> tuple[Operation, ...]:
    """Addresses, up and routes of the container's end. A route's own gateway beats that of the addresses.

    The kernel announces addresses when a link comes up, or gets a MAC: `announced_mac` is that of a link
    that is up already.
    """
    first_gateways = {ip.gateway.version: ip.gateway for ip in reversed(result.ips) if ip.gateway}
    routes: list[Operation] = []
    for route in result.routes:
        wanted = Route(
            dst=route.dst,
            ifindex=ifindex,
            gw=route.gw or first_gateways.get(route.dst.version),
            table=route.table or MAIN_TABLE,
            priority=route.priority,
            # The reference never leaves the scope to the kernel's rule for on-link routes.
            scope=route.scope or 0,
            mtu=route.mtu,
            advmss=route.advmss,
        )
        # Appended: a route to the same destination by another gateway stays.
        routes.append(AddRoute(wanted, append=True))
    addresses = [AddAddress(ifindex, ip.address) for ip in result.ips]
    return (*addresses, ChangeLink(ifindex, mac=announced_mac, up=True), *routes)


def with_gateways(config: Config, leased: Result) -> Result:
    """What IPAM said, on the container's end, completed by the gateways and routes the keys ask for."""
    ips = [ip._replace(interface=CONTAINER) for ip in leased.ips]
    if config.is_gateway:
        ips = [_gateway(ip) for ip in ips]
    routes = list(leased.routes)
    if config.is_default_gateway:
        for ip in ips:
            default = ip_network("0.0.0.0/0" if ip.address.version == 4 else "::/0")
            if not any(route.dst == default and route.gw for route in routes):
                routes.append(ResultRoute(default, ip.gateway))
    return leased._replace(ips=tuple(ips), routes=tuple(routes), dns=config.dns or leased.dns)


def gateways(config: Config, result: Result) -> tuple[InterfaceAddress, ...]:
    """The addresses of the bridge, IPv4 before IPv6."""
    if not config.is_gateway:
        return ()
    addresses = [
        ip_interface((ip.gateway, ip.address.network.prefixlen))
        for ip in result.ips
        if ip.gateway and ip.gateway.version == ip.address.version
    ]
    return tuple(sorted(addresses, key=lambda address: address.version))


def is_gateway(bridge: Link, present: Iterable[Address], wanted: Iterable[InterfaceAddress]) -> bool:
    """Whether nothing is missing."""
    addresses = {address.address for address in present}
    return bridge.mac != _UNSET_MAC and addresses.issuperset(wanted)


def plan_gateway(
    config: Config, link: Link, present: Iterable[Address], wanted: Sequence[InterfaceAddress], mac: str
) -> tuple[Operation, ...]:
    """The wanted addresses on the gateway's link, and with the first a MAC that no port's coming changes.

    The kernel forgets the neighbours of a link whose MAC is set, even to the one that it has: so it is set
    with new addresses only, as in the reference. Conflicts are those of the reference: any other IPv4
    address, and an IPv6 one whose network overlaps.
    """
    operations: list[Operation] = []
    addresses = [address.address for address in present]
    for address in wanted:
        if address in addresses:
            continue
        conflicts = [other for other in addresses if _conflict(address, other)]
        if conflicts and not config.force_address:
            remedy = "forceAddress: true replaces it, or take another bridge"
            details = f"{link.name} has {', '.join(map(str, conflicts))} ({remedy})"
            raise InvalidConfig(_already(config, link.name, address), details)
        # First, because the kernel makes an address beside one of the same network a secondary one.
        operations += [DeleteAddress(link.ifindex, other) for other in conflicts]
        operations.append(AddAddress(link.ifindex, address))
        addresses = [other for other in addresses if other not in conflicts] + [address]
    if link.mac == _UNSET_MAC:
        # A bridge whose last port has gone has no MAC at all, and the kernel does not take that one back.
        return ChangeLink(link.ifindex, mac=mac), *operations
    return (ChangeLink(link.ifindex, mac=link.mac), *operations) if operations else ()


def not_a_vlan_link(name: str) -> InvalidConfig:
    """The refusal, in the reference's words, of a link that has the name of a VLAN's veth."""
    return InvalidConfig(
        f'failed to create vlan interface: "{name}" already exists but is not a veth of this host'
    )


def no_vlan_filtering(config: Config) -> InvalidConfig:
    """For a kernel that cannot make the bridge."""
    need = "the kernel's bridges do not filter VLANs (it needs CONFIG_BRIDGE_VLAN_FILTERING)"
    return InvalidConfig(f"{_asked_vlans(config)}: {need}")


def _asked_vlans(config: Config) -> str:
    return f"vlan {config.vlan}" if config.vlan else f"vlanTrunk {_text(config.trunk or ())}".rstrip()


def _already(config: Config, name: str, address: InterfaceAddress) -> str:
    operation = (
        "failed to set vlan interface for bridge with addr" if config.vlan else "failed to set bridge addr"
    )
    return f'{operation}: "{name}" already has an IP address different from {address}'


def _conflict(address: InterfaceAddress, other: InterfaceAddress) -> bool:
    if isinstance(address, IPv4Interface) or isinstance(other, IPv4Interface):
        return address.version == other.version
    return address.ip in other.network or other.ip in address.network


def forwarding(wanted: Iterable[InterfaceAddress]) -> tuple[Setting, ...]:
    """The sysctls that make the host a router for the families it is a gateway of."""
    keys = {4: IPV4_FORWARDING, 6: IPV6_FORWARDING}
    return tuple(Setting(keys[version], "1") for version in sorted({a.version for a in wanted}))


def interfaces(
    bridge: Link, port: Link, names: PortNames, sandbox: str, gateway: Link | None
) -> tuple[Interface, ...]:
    """The result's interfaces. Their order is part of the reference's interface: bridge, host, container."""
    entries = (
        Interface(bridge.name, bridge.mac, mtu=bridge.mtu),
        Interface(port.name, port.mac, mtu=port.mtu),
        Interface(names.container, names.container_mac, sandbox, mtu=port.mtu),
    )
    return (*entries, Interface(gateway.name, gateway.mac, mtu=gateway.mtu)) if gateway else entries


def _gateway(ip: IP) -> IP:
    """The address with its gateway: IPAM's, or else the first host of the network."""
    if ip.gateway is None:
        try:
            return ip._replace(gateway=ip.address.network.network_address + 1)
        except ValueError:
            raise InvalidConfig(f"isGateway: {ip.address} has no address after it for the gateway") from None
    if ip.gateway.version != ip.address.version:
        raise InvalidConfig(
            f"isGateway: IPAM gave {ip.address} the gateway {ip.gateway} of the other family"
        )
    return ip


def _text(ranges: Iterable[tuple[int, int]]) -> str:
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
