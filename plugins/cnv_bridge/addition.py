"""One ADD: every deed with its undo right after it, the record before the first and after the last."""

from __future__ import annotations

from ipaddress import ip_interface
from typing import TYPE_CHECKING, NamedTuple

from cnvnet.attachments import ADDED, ADDING, Key, Record, Slot
from cnvnet.attempts import Undo
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.links import Link
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import Stack
from cnvnet.plugins.cnv_bridge import guards, plan, port
from cnvnet.plugins.cnv_bridge.bridge import ensure_bridge, ensure_gateway, report_mtu
from cnvnet.plugins.cnv_bridge.config import Config
from cnvnet.plugins.cnv_bridge.leftovers import Leftovers, Tools, remove_elements, remove_masquerade
from cnvnet.plugins.cnv_bridge.release import ipam_of

if TYPE_CHECKING:
    from cnvnet.plugins.cnv_bridge.ipam import Ipam


class Sides(NamedTuple):
    """Both ends' namespaces, open for the whole call."""

    host: Stack
    pod: Stack
    netns: Netns


class Addition:
    """An ADD whose configuration is sound and whose attachment has nothing left of an earlier one."""

    def __init__(self, request: Request, config: Config, tools: Tools, ipam: Ipam | None) -> None:
        self._request = request
        self._config = config
        self._tools = tools
        self._ipam = ipam

    def run(self, key: Key, slot: Slot, sides: Sides) -> Result:
        """Raises CNIError or OSError; nothing of the attachment is left then."""
        config, ifname = self._config, self._request.ifname
        names = port.choose_names(sides.host, ifname, config.mac)
        port.refuse_taken_name(sides.pod, ifname, names.host)
        record = Record(key, self._request.netns, sides.netns.inode, boot_id(), ADDING, {})
        ipam = ipam_of(self._request) if config.ipam_type else None
        left = Leftovers(names.host, names.host_mac, ipam_type=config.ipam_type, ipam=ipam)
        with Undo() as undo:
            undo.finally_("record", slot.remove)
            slot.write(record._replace(undo=left.to_json()))
            bridge = ensure_bridge(sides.host, self._tools.attachments, config)
            leased, names = self._lease(undo, names)
            gateway = self._gateway(sides.host, bridge, leased)
            left = self._planned(left, names, leased)
            if left.elements or left.masqueraded:
                slot.write(record._replace(undo=left.to_json()))
                self._guard(undo, key, left)
            made = self._port(undo, sides, names, bridge, leased)
            left = left._replace(host_ifindex=made.ifindex)
            result = self._result(sides.host, names, (bridge, made, gateway), leased)
            slot.write(record._replace(state=ADDED, undo=left.to_json()))
        return result

    def _lease(self, undo: Undo, names: plan.Names) -> tuple[Result, plan.Names]:
        config = self._config
        if self._ipam is None:
            return Result(dns=config.dns or Result().dns), names
        lease = self._ipam.add(self._request)
        undo.push(f"giving addresses back to {config.ipam_type}", lease.undo)
        if lease.mac and not config.mac:
            names = names._replace(container_mac=lease.mac)
        return plan.with_gateways(config, lease.result), names

    def _gateway(self, host: Stack, bridge: Link, leased: Result) -> Link | None:
        wanted = plan.gateways(self._config, leased)
        if not wanted:
            return None
        link = ensure_gateway(host, self._tools.attachments, self._config, bridge, wanted)
        return link if self._config.vlan else None

    def _planned(self, left: Leftovers, names: plan.Names, leased: Result) -> Leftovers:
        config = self._config
        addresses = [ip.address for ip in leased.ips]
        elements = guards.elements(names.host, names.container_mac, addresses, config.guards)
        return left._replace(
            container_mac=names.container_mac,
            elements=tuple(elements),
            masqueraded=tuple(str(address) for address in addresses) if config.ip_masq else (),
        )

    def _guard(self, undo: Undo, key: Key, left: Leftovers) -> None:
        """Before the port is there: no frame of it ever passes unguarded."""
        attachments, masquerade = self._tools.attachments, self._tools.masquerade
        with self._tools.kernel.nft() as nft:
            if left.elements and not guards.loaded(nft):
                with attachments.shared(guards.LOCK):
                    guards.ensure(nft)
            if left.elements:
                nft.change(add=left.elements)
                undo.push("removing guards", remove_elements, self._tools, left)
            if left.masqueraded:
                # It is more than one deed, and undoing what has not been done is fine.
                undo.push("removing masquerade", remove_masquerade, self._tools, key, left)
                masquerade.add(nft, key, [ip_interface(text) for text in left.masqueraded])

    def _port(self, undo: Undo, sides: Sides, names: plan.Names, bridge: Link, leased: Result) -> Link:
        config, ifname = self._config, self._request.ifname
        made = port.create(sides.host, config, names, bridge, sides.netns)
        undo.push(f"deleting {names.host}", port.delete, sides.host, made.ifindex)
        port.configure(sides.host, config, bridge, made)
        port.configure_container(sides.pod, config, ifname, made.peer, leased)
        if config.disable_container_interface:
            return made
        made = port.wait_until_up(sides.host, made)
        if any(ip.address.version == 6 for ip in leased.ips):
            port.wait_for_dad(sides.pod, ifname, made.peer)
        return made

    def _result(
        self, host: Stack, names: plan.Names, links: tuple[Link, Link, Link | None], leased: Result
    ) -> Result:
        before, made, gateway = links
        # Read once more: a bridge without a MAC or MTU of its own has got one from its ports only now.
        bridge = _still(host, before.name)
        report_mtu(self._config, before, bridge)
        if gateway is not None:
            gateway = _still(host, gateway.name)
        interfaces = plan.interfaces(bridge, made, names, self._request.netns, gateway)
        return leased._replace(interfaces=interfaces)


def _still(host: Stack, name: str) -> Link:
    link = host.link(name)
    if link is None:
        raise CNIError(TRY_AGAIN_LATER, f"{name}: somebody has deleted it meanwhile")
    return link
