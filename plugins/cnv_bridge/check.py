"""CHECK: everything ADD did is still there.

It only reads, and goes by prevResult, not by the record: the reference's attachments can be checked, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from cnvnet.cni.errors import CheckFailed, InvalidConfig
from cnvnet.cni.fields import InterfaceAddress
from cnvnet.cni.request import Request
from cnvnet.cni.result import Interface, Result, ResultRoute
from cnvnet.kernel.links import Link
from cnvnet.kernel.nft.tables import Nft
from cnvnet.kernel.routes import MAIN_TABLE
from cnvnet.kernel.stack import Reader, Stack
from cnvnet.kernel.sysctl import Setting
from cnvnet.kernel.vlans import VlanRange
from cnvnet.plugins.binding import placeholder
from cnvnet.plugins.cnv_bridge import guards, ip_masq, plan, reference_cleanup
from cnvnet.plugins.cnv_bridge.config import Config

# In the order of guards.Guards.
_GUARDS: Final = ("macspoofchk", "ipspoofchk", "dhcpGuard", "raGuard")


class AttachmentLinks(NamedTuple):
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


def check_links(
    host: Stack, pod: Stack, request: Request, config: Config, result: Result
) -> AttachmentLinks:
    """Bridge, port and container's end: there, joined, of the right MAC, MTU and flags, and up."""
    of_container = _container_entry(request, config, result)
    bridge = _check_bridge(host, config)
    interface = pod.link(request.ifname)
    if interface is None:
        raise CheckFailed(f"Interface name {request.ifname} not found")
    container = placeholder.original(pod, interface) if placeholder.is_one(interface) else interface
    if container is None:
        raise CheckFailed(f"Container interface {request.ifname}, whose place a VM has taken, not found")
    if container.kind != "veth":
        raise CheckFailed(f"Error: Container interface {container.name} not of type veth")
    if of_container.mac and of_container.mac.lower() != interface.mac:
        raise CheckFailed(
            f"Interface {request.ifname} Mac {of_container.mac} doesn't match container Mac: {interface.mac}"
        )
    port = host.link(container.peer) if container.peer else None
    links = AttachmentLinks(
        bridge, _check_port(config, result, bridge, container, port), container, interface
    )
    _check_settings(config, links)
    return links


def check_vlans(host: Reader, config: Config, links: AttachmentLinks) -> None:
    """The port has the VLANs of the configuration, and beside them at most the default one if it is kept."""
    wanted = plan.wanted_vlans(config)
    if not wanted:
        return
    native = wanted[0].first
    present = _by_vid(host.vlans(links.port.ifindex))
    default = links.bridge.bridge.default_pvid if links.bridge.bridge else 0
    for vid, how in _by_vid(wanted).items():
        if present.get(vid) != how:
            state = "is missing" if vid not in present else "has other flags"
            raise CheckFailed(
                f"VLAN {vid} of {links.port.name} {state} (bridge vlan show dev {links.port.name})"
            )
    kept = {native, default} if config.preserve_default_vlan else {native}
    for vid in present.keys() - _by_vid(wanted).keys() - kept:
        raise CheckFailed(f"{links.port.name} is in VLAN {vid}, which the configuration does not ask for")


def check_addresses(pod: Reader, links: AttachmentLinks, result: Result) -> None:
    """The addresses and routes of prevResult. A VM's routes are in the VM."""
    present = {address.address: address for address in pod.addresses(links.interface.ifindex)}
    for ip in container_addresses(result):
        if ip not in present:
            raise CheckFailed(f"Failed to match addr {ip} on interface {links.interface.name}")
        # The kernel keeps such an address and does not use it: the pod looks right, and nothing reaches it.
        if present[ip].dad_failed:
            raise CheckFailed(f"{ip} of {links.interface.name}: another host has it (DADFAILED)")
    if links.is_bound:
        return
    routes = [(route.dst, route.table, route.gw) for route in pod.routes()]
    for route in result.routes:
        table = route.table or MAIN_TABLE
        if not any(dst == route.dst and of == table and route.gw in (None, gw) for dst, of, gw in routes):
            raise CheckFailed(f"Expected Route {_describe(route)} not found in routing table")


def check_sysctls(stack: Stack, settings: Iterable[Setting]) -> None:
    """Those that ADD insisted on; a plugin later in the chain may have changed the others."""
    for setting in settings:
        value = stack.sysctls.get(setting.key) if setting.required else None
        if value is not None and value != setting.value:
            raise CheckFailed(f"sysctl {setting.key} is {value}, not {setting.value}")


def check_gateway(host: Stack, config: Config, result: Result) -> None:
    """The gateway addresses of the bridge or of the VLAN's link, and forwarding."""
    wanted = plan.gateways(config, result)
    if not wanted:
        return
    link = host.link(config.gateway_link)
    if link is None:
        raise CheckFailed(f"Interface name {config.gateway_link} not found")
    present = {address.address for address in host.addresses(link.ifindex)}
    for address in wanted:
        if address not in present:
            raise CheckFailed(f"gateway {address} is missing on {link.name}")
    if not link.up:
        raise CheckFailed(f"{link.name} is down")
    check_sysctls(host, plan.forwarding(wanted))


def check_guards(nft: Nft, config: Config, links: AttachmentLinks, result: Result) -> None:
    """Compares the port's guards: its elements, and the chain that uses them.

    The elements are for the MAC that the container or its VM has now.
    """
    wanted = config.guards
    names = " ".join(key for key, value in zip(_GUARDS, wanted, strict=True) if value)
    elements = guards.elements(links.port.name, links.interface.mac, container_addresses(result), wanted)
    if elements and not guards.loaded(nft):
        raise CheckFailed(f"{names}: table {guards.FAMILY} {guards.TABLE} does not guard {links.port.name}")
    if wanted.macspoofchk and links.bridge.bridge is not None and links.bridge.bridge.linklocal_learning:
        remedy = f"ip link set {links.bridge.name} type bridge no_linklocal_learn 1"
        raise CheckFailed(f"macspoofchk: {links.bridge.name} learns MACs from link-local frames ({remedy})")
    missing = nft.missing(elements)
    if missing:
        lost = " . ".join(missing[0].key)
        raise CheckFailed(f"{names}: element {lost} is missing in set {missing[0].set} of {guards.TABLE}")


def check_masquerade(nft: Nft, config: Config, result: Result) -> None:
    """The masqueraded addresses of the container."""
    if not config.ip_masq:
        return
    missing = ip_masq.missing(nft, container_addresses(result))
    if missing:
        lost = " . ".join(missing[0].key)
        raise CheckFailed(f"ipMasq: element {lost} is missing in set {missing[0].set} of {ip_masq.TABLE}")


def check_legacy(nft: Nft, request: Request, config: Config) -> bool:
    """Whether the reference plugin made this attachment and its rules do what ours would."""
    attachment = reference_cleanup.Attachment(request.name, request.container_id, request.ifname)
    ours = config.guards._replace(macspoofchk=False)
    return (
        not any(ours)
        and (not config.macspoofchk or reference_cleanup.has_spoof_rules(nft, attachment))
        and (not config.ip_masq or reference_cleanup.has_masquerade(nft, attachment))
    )


def container_addresses(result: Result) -> list[InterfaceAddress]:
    """The addresses of the container's end: a later plugin of the chain may have added interfaces."""
    return [ip.address for ip in result.ips if ip.interface in (None, plan.CONTAINER)]


def _container_entry(request: Request, config: Config, result: Result) -> Interface:
    if not any(i.name == config.bridge and not i.sandbox for i in result.interfaces):
        raise CheckFailed(f"CNI created bridge {config.bridge} in host namespace was not found")
    sandboxes = [i for i in result.interfaces if i.name == request.ifname and i.sandbox]
    for interface in sandboxes:
        if interface.sandbox == request.netns:
            return interface
    other = sandboxes[0].sandbox if sandboxes else ""
    raise CheckFailed(f"Sandbox in prevResult {other} doesn't match configured netns: {request.netns}")


def _check_bridge(host: Reader, config: Config) -> Link:
    """Not its MAC: one that was never set follows the ports of other attachments."""
    bridge = host.link(config.bridge)
    if bridge is None:
        raise CheckFailed(f"Interface name {config.bridge} not found")
    if bridge.kind != "bridge":
        raise CheckFailed(f"Interface {config.bridge} does not have link type of bridge")
    if config.promisc_mode and not bridge.promisc:
        state = "configured Promisc Mode true doesn't match current state: false"
        raise CheckFailed(f"Bridge interface {config.bridge} {state}")
    if not bridge.up:
        raise CheckFailed(f"{config.bridge} is down")
    if (config.vlan or config.trunk) and not (bridge.bridge and bridge.bridge.vlan_filtering):
        raise CheckFailed(f"{config.bridge} does not filter VLANs")
    return bridge


def _check_port(config: Config, result: Result, bridge: Link, container: Link, port: Link | None) -> Link:
    missing = f"CNI veth created for bridge {config.bridge} was not found"
    if port is None or port.kind != "veth" or port.peer != container.ifindex:
        raise CheckFailed(f"{missing}: {container.name} leads to no port of this host")
    if port.master != bridge.ifindex:
        raise CheckFailed(f"{missing}: {port.name} is not attached to it")
    entry = next((i for i in result.interfaces if i.name == port.name and not i.sandbox), None)
    if entry is None:
        raise CheckFailed(f"{missing}: {port.name} is not in prevResult")
    if entry.mac and entry.mac.lower() != port.mac:
        raise CheckFailed(f"Interface {port.name} Mac doesn't match: {entry.mac} not found")
    return port


def _check_settings(config: Config, links: AttachmentLinks) -> None:
    port, container = links.port, links.container
    for link in (port, container):
        if config.mtu and link.mtu != config.mtu:
            raise CheckFailed(f"mtu of {link.name} is {link.mtu}, not {config.mtu}")
    flags = port.port
    if flags is not None and flags.hairpin != config.hairpin_mode:
        raise CheckFailed(
            f"hairpin mode of {port.name} is {_on(flags.hairpin)}, not {_on(config.hairpin_mode)}"
        )
    if flags is not None and flags.isolated != config.port_isolation:
        raise CheckFailed(
            f"isolation of {port.name} is {_on(flags.isolated)}, not {_on(config.port_isolation)}"
        )
    if not port.up:
        raise CheckFailed(f"{port.name} is down")
    if not container.up and not config.disable_container_interface:
        raise CheckFailed(f"{container.name} is down")


def _by_vid(ranges: Sequence[VlanRange]) -> dict[int, tuple[bool, bool]]:
    return {vid: (r.pvid, r.untagged) for r in ranges for vid in range(r.first, r.last + 1)}


def _describe(route: ResultRoute) -> str:
    return f"{route.dst} via {route.gw}" if route.gw else str(route.dst)


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def required(result: Result | None) -> Result:
    """prevResult, without which there is nothing to compare with."""
    if result is None:
        raise InvalidConfig("Required prevResult missing")
    return result
