"""CHECK: everything ADD did is still there.

It only reads, and goes by prevResult, not by the record: the reference's attachments can be checked, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from cnvnet.cni.errors import CNIError, InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.cni.result import Interface, Result, Route
from cnvnet.kernel.links import Link
from cnvnet.kernel.nft import Nft
from cnvnet.kernel.routes import MAIN_TABLE
from cnvnet.kernel.stack import Reader, Stack
from cnvnet.kernel.vlans import VlanRange
from cnvnet.plugins.cnv_bridge import guards, legacy, masquerade, plan
from cnvnet.plugins.cnv_bridge.config import Config
from cnvnet.vm import stand_in

# CHECK found something else than ADD left: 100 and above are a plugin's own codes.
NOT_AS_ADDED: Final = 100
# In the order of guards.Guards.
_GUARDS: Final = ("macspoofchk", "ipspoofchk", "dhcpGuard", "raGuard")


class Ends(NamedTuple):
    """The links of an attachment that passed: the bridge, its port, the container's end and its interface.

    The last two are one, unless a VM has taken the container's place (vm-bridge): then `interface` stands in
    for the end of the veth, and keeps the MAC and the addresses for the VM.
    """

    bridge: Link
    port: Link
    container: Link
    interface: Link

    @property
    def is_bound(self) -> bool:
        """Whether a VM has taken the container's place."""
        return self.container is not self.interface


def check_links(host: Stack, pod: Stack, request: Request, config: Config, result: Result) -> Ends:
    """Bridge, port and container's end: there, joined, of the right MAC, MTU and flags, and up."""
    of_container = _container_entry(request, config, result)
    bridge = _check_bridge(host, config)
    interface = pod.link(request.ifname)
    if interface is None:
        raise wrong(f"Interface name {request.ifname} not found")
    container = stand_in.original(pod, interface) if stand_in.is_one(interface) else interface
    if container is None:
        raise wrong(f"Container interface {request.ifname}, whose place a VM has taken, not found")
    if container.kind != "veth":
        raise wrong(f"Error: Container interface {container.name} not of type veth")
    if of_container.mac and of_container.mac.lower() != interface.mac:
        raise wrong(
            f"Interface {request.ifname} Mac {of_container.mac} doesn't match container Mac: {interface.mac}"
        )
    port = host.link(container.peer) if container.peer else None
    ends = Ends(bridge, _check_port(config, result, bridge, container, port), container, interface)
    _check_settings(config, ends)
    return ends


def check_vlans(host: Reader, config: Config, ends: Ends) -> None:
    """The port has the VLANs of the configuration, and beside them at most the default one if it is kept."""
    wanted = plan.wanted_vlans(config)
    if not wanted:
        return
    native = wanted[0].first
    found = _by_vid(host.vlans(ends.port.ifindex))
    default = ends.bridge.bridge.default_pvid if ends.bridge.bridge else 0
    for vid, how in _by_vid(wanted).items():
        if found.get(vid) != how:
            state = "is missing" if vid not in found else "has other flags"
            raise wrong(f"VLAN {vid} of {ends.port.name} {state} (bridge vlan show dev {ends.port.name})")
    kept = {native, default} if config.preserve_default_vlan else {native}
    for vid in found.keys() - _by_vid(wanted).keys() - kept:
        raise wrong(f"{ends.port.name} is in VLAN {vid}, which nobody asked for")


def check_addresses(pod: Reader, ends: Ends, result: Result) -> None:
    """The addresses and routes of prevResult. A VM's routes are in the VM."""
    present = {address.address: address for address in pod.addresses(ends.interface.ifindex)}
    for ip in container_addresses(result):
        if ip not in present:
            raise wrong(f"Failed to match addr {ip} on interface {ends.interface.name}")
        if present[ip].dad_failed:
            raise wrong(f"{ip} of {ends.interface.name}: somebody else has it (DADFAILED)")
    if ends.is_bound:
        return
    routes = [(route.dst, route.table, route.gw) for route in pod.routes()]
    for route in result.routes:
        table = route.table or MAIN_TABLE
        if not any(dst == route.dst and of == table and route.gw in (None, gw) for dst, of, gw in routes):
            raise wrong(f"Expected Route {_describe(route)} not found in routing table")


def check_sysctls(stack: Stack, settings: Iterable[plan.Setting]) -> None:
    """Those that ADD insisted on; a plugin later in the chain may have changed the others."""
    for setting in settings:
        value = stack.sysctls.get(setting.key) if setting.required else None
        if value is not None and value != setting.value:
            raise wrong(f"sysctl {setting.key} is {value}, not {setting.value}")


def check_gateway(host: Stack, config: Config, result: Result) -> None:
    """The gateway addresses of the bridge or of the VLAN's link, and forwarding."""
    wanted = plan.gateways(config, result)
    if not wanted:
        return
    link = host.link(config.gateway_link)
    if link is None:
        raise wrong(f"Interface name {config.gateway_link} not found")
    present = {address.address for address in host.addresses(link.ifindex)}
    for address in wanted:
        if address not in present:
            raise wrong(f"gateway {address} is missing on {link.name}")
    if not link.up:
        raise wrong(f"{link.name} is down")
    check_sysctls(host, plan.forwarding(wanted))


def check_guards(nft: Nft, config: Config, ends: Ends, result: Result) -> None:
    """The port's elements, for the MAC that the container or its VM has now, and the chain that looks at
    them.
    """
    wanted = config.guards
    names = " ".join(key for key, value in zip(_GUARDS, wanted, strict=True) if value)
    elements = guards.elements(ends.port.name, ends.interface.mac, container_addresses(result), wanted)
    if elements and not guards.loaded(nft):
        raise wrong(f"{names}: table {guards.FAMILY} {guards.TABLE} does not guard {ends.port.name}")
    if wanted.macspoofchk and ends.bridge.bridge is not None and ends.bridge.bridge.linklocal_learning:
        remedy = f"ip link set {ends.bridge.name} type bridge no_linklocal_learn 1"
        raise wrong(f"macspoofchk: {ends.bridge.name} learns MACs from link-local frames ({remedy})")
    missing = nft.missing(elements)
    if missing:
        lost = " . ".join(missing[0].key)
        raise wrong(f"{names}: element {lost} is missing in set {missing[0].set} of {guards.TABLE}")


def check_masquerade(nft: Nft, config: Config, result: Result) -> None:
    """The masqueraded addresses of the container."""
    if not config.ip_masq:
        return
    missing = masquerade.missing(nft, container_addresses(result))
    if missing:
        lost = " . ".join(missing[0].key)
        raise wrong(f"ipMasq: element {lost} is missing in set {missing[0].set} of {masquerade.TABLE}")


def check_legacy(nft: Nft, request: Request, config: Config) -> bool:
    """Whether the reference plugin made this attachment and its rules do what ours would."""
    attachment = legacy.Attachment(request.name, request.container_id, request.ifname)
    ours = config.guards._replace(macspoofchk=False)
    return (
        not any(ours)
        and (not config.macspoofchk or legacy.has_spoof_rules(nft, attachment))
        and (not config.ip_masq or legacy.has_masquerade(nft, attachment))
    )


def container_addresses(result: Result) -> list[plan.InterfaceAddress]:
    """The addresses of the container's end: a later plugin of the chain may have added interfaces."""
    return [ip.address for ip in result.ips if ip.interface in (None, plan.CONTAINER)]


def _container_entry(request: Request, config: Config, result: Result) -> Interface:
    if not any(i.name == config.bridge and not i.sandbox for i in result.interfaces):
        raise wrong(f"CNI created bridge {config.bridge} in host namespace was not found")
    sandboxes = [i for i in result.interfaces if i.name == request.ifname and i.sandbox]
    for interface in sandboxes:
        if interface.sandbox == request.netns:
            return interface
    other = sandboxes[0].sandbox if sandboxes else ""
    raise wrong(f"Sandbox in prevResult {other} doesn't match configured netns: {request.netns}")


def _check_bridge(host: Reader, config: Config) -> Link:
    """Not its MAC: where nobody has pinned it, it comes and goes with the ports of others."""
    bridge = host.link(config.bridge)
    if bridge is None:
        raise wrong(f"Interface name {config.bridge} not found")
    if bridge.kind != "bridge":
        raise wrong(f"Interface {config.bridge} does not have link type of bridge")
    if config.promisc_mode and not bridge.promisc:
        state = "configured Promisc Mode true doesn't match current state: false"
        raise wrong(f"Bridge interface {config.bridge} {state}")
    if not bridge.up:
        raise wrong(f"{config.bridge} is down")
    if (config.vlan or config.trunk) and not (bridge.bridge and bridge.bridge.vlan_filtering):
        raise wrong(f"{config.bridge} does not filter VLANs")
    return bridge


def _check_port(config: Config, result: Result, bridge: Link, container: Link, port: Link | None) -> Link:
    missing = f"CNI veth created for bridge {config.bridge} was not found"
    if port is None or port.kind != "veth" or port.peer != container.ifindex:
        raise wrong(f"{missing}: {container.name} leads to no port of this host")
    if port.master != bridge.ifindex:
        raise wrong(f"{missing}: {port.name} is not attached to it")
    entry = next((i for i in result.interfaces if i.name == port.name and not i.sandbox), None)
    if entry is None:
        raise wrong(f"{missing}: {port.name} is not in prevResult")
    if entry.mac and entry.mac.lower() != port.mac:
        raise wrong(f"Interface {port.name} Mac doesn't match: {entry.mac} not found")
    return port


def _check_settings(config: Config, ends: Ends) -> None:
    port, container = ends.port, ends.container
    for link in (port, container):
        if config.mtu and link.mtu != config.mtu:
            raise wrong(f"mtu of {link.name} is {link.mtu}, not {config.mtu}")
    flags = port.port
    if flags is not None and flags.hairpin != config.hairpin_mode:
        raise wrong(f"hairpin mode of {port.name} is {_on(flags.hairpin)}, not {_on(config.hairpin_mode)}")
    if flags is not None and flags.isolated != config.port_isolation:
        raise wrong(f"isolation of {port.name} is {_on(flags.isolated)}, not {_on(config.port_isolation)}")
    if not port.up:
        raise wrong(f"{port.name} is down")
    if not container.up and not config.disable_container_interface:
        raise wrong(f"{container.name} is down")


def _by_vid(ranges: Sequence[VlanRange]) -> dict[int, tuple[bool, bool]]:
    return {vid: (r.pvid, r.untagged) for r in ranges for vid in range(r.first, r.last + 1)}


def _describe(route: Route) -> str:
    return f"{route.dst} via {route.gw}" if route.gw else str(route.dst)


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def wrong(msg: str) -> CNIError:
    return CNIError(NOT_AS_ADDED, msg)


def required(result: Result | None) -> Result:
    """prevResult, without which there is nothing to compare with."""
    if result is None:
        raise InvalidConfig("Required prevResult missing")
    return result
