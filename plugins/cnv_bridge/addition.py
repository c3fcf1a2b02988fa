"""One ADD: every deed with its undo right after it, the record before the first and after the last."""

from __future__ import annotations

from typing import NamedTuple

from cnvnet.attachments import ADDED, ADDING, Attachments, Key, Record, Slot, boot_id
from cnvnet.attempts import Undo
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.kernel.links import Link
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.nft import Element
from cnvnet.kernel.stack import Kernel, Stack
from cnvnet.plugins.cnv_bridge import guards, plan, port
from cnvnet.plugins.cnv_bridge.bridge import ensure_bridge, ensure_gateway
from cnvnet.plugins.cnv_bridge.config import Config
from cnvnet.plugins.cnv_bridge.ipam import Ipam
from cnvnet.plugins.cnv_bridge.leftovers import Leftovers, remove_elements


class Sides(NamedTuple):
    """Both ends' namespaces, open for the whole call."""

    host: Stack
    pod: Stack
    netns: Netns


class Addition:
    """An ADD whose configuration is sound and whose attachment has nothing left of an earlier one."""

    def __init__(
        self, request: Request, config: Config, kernel: Kernel, attachments: Attachments, ipam: Ipam
    ) -> None:
        self._request = request
        self._config = config
        self._kernel = kernel
        self._attachments = attachments
        self._ipam = ipam

    def run(self, key: Key, slot: Slot, sides: Sides) -> Result:
        """Raises CNIError or OSError; nothing of the attachment is left then."""
        config, ifname = self._config, self._request.ifname
        names = port.choose_names(sides.host, ifname, config.mac)
        port.refuse_taken_name(sides.pod, ifname, names.host)
        record = Record(key, self._request.netns, sides.netns.inode, boot_id(), ADDING, {})
        left = Leftovers(names.host, names.host_mac, ipam_type=config.ipam_type)
        with Undo() as undo:
            undo.finally_("record", slot.remove)
            slot.write(record._replace(undo=left.to_json()))
            bridge = ensure_bridge(sides.host, self._attachments, config)
            leased, names = self._lease(undo, names)
            gateway = self._gateway(sides.host, bridge, leased)
            left = left._replace(container_mac=names.container_mac, elements=self._elements(names, leased))
            if left.elements:
                slot.write(record._replace(undo=left.to_json()))
                self._guard(undo, left.elements)
            made = self._port(undo, sides, names, bridge, leased)
            left = left._replace(host_ifindex=made.ifindex)
            result = self._result(sides.host, names, made, gateway, leased)
            slot.write(record._replace(state=ADDED, undo=left.to_json()))
        return result

    def _lease(self, undo: Undo, names: plan.Names) -> tuple[Result, plan.Names]:
        config = self._config
        if not config.ipam_type:
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
        link = ensure_gateway(host, self._attachments, self._config, bridge, wanted)
        return link if self._config.vlan else None

    def _elements(self, names: plan.Names, leased: Result) -> tuple[Element, ...]:
        config = self._config
        wanted = guards.Guards(config.macspoofchk, config.ipspoofchk, config.dhcp_guard, config.ra_guard)
        addresses = [ip.address for ip in leased.ips]
        return tuple(guards.elements(names.host, names.container_mac, addresses, wanted))

    def _guard(self, undo: Undo, elements: tuple[Element, ...]) -> None:
        """Before the port is there: no frame of it ever passes unguarded."""
        with self._kernel.nft() as nft:
            if not guards.loaded(nft):
                with self._attachments.shared(f"nft-{guards.TABLE}"):
                    guards.ensure(nft)
            undo.push("removing guards", remove_elements, self._kernel, elements)
            nft.change(add=elements)

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
        self, host: Stack, names: plan.Names, made: Link, gateway: Link | None, leased: Result
    ) -> Result:
        # Read once more: a bridge without a MAC of its own has got one from its ports only now.
        bridge = _still(host, self._config.bridge)
        if gateway is not None:
            gateway = _still(host, gateway.name)
        interfaces = plan.interfaces(bridge, made, names, self._request.netns, gateway)
        return leased._replace(interfaces=interfaces)


def _still(host: Stack, name: str) -> Link:
    link = host.link(name)
    if link is None:
        raise CNIError(TRY_AGAIN_LATER, f"{name}: somebody has deleted it meanwhile")
    return link
