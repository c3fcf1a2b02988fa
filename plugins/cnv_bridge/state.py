"""What one ADD leaves behind, as its record keeps it, and how it is found again without a record."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_interface
from typing import Any, NamedTuple

from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import Attachments, Key, Record, UndoKeys
from cnvnet.cni.fields import InterfaceAddress
from cnvnet.cni.result import Result
from cnvnet.ipam.store.ref import StoreRef
from cnvnet.kernel.links import Link
from cnvnet.kernel.nft.tables import Element
from cnvnet.kernel.stack import Kernel, Stack
from cnvnet.plugins.cnv_bridge.guards import ADDRESS_SETS, Guards, elements
from cnvnet.plugins.cnv_bridge.ip_masq import IpMasq


class Context(NamedTuple):
    """What ADD, DEL and GC of this plugin work with."""

    kernel: Kernel
    attachments: Attachments
    masquerade: IpMasq

    @classmethod
    def of(cls, rundir: str, kernel: Kernel) -> Context:
        """What the commands work with, for the records in a folder."""
        attachments = AttachmentFiles(rundir)
        return cls(kernel, attachments, IpMasq(attachments, os.path.join(rundir, "masquerade")))


class PortState(NamedTuple):
    """The undo keys of a record; "" and () stand for nothing."""

    # The port's name, MAC address and ifindex on the host; the ifindex is 0 until the port exists.
    host: str = ""
    host_mac: str = ""
    host_ifindex: int = 0
    # The MAC address of its other end, which the guards let pass.
    container_mac: str = ""
    # The address manager of the ADD, and the configuration's `ipam` object: the addresses are given back by
    # them even if the configuration has changed since.
    ipam_type: str = ""
    ipam: Mapping[str, Any] | None = None
    # Where static-ip keeps the lease; None for other managers and in records of older versions.
    store: StoreRef | None = None
    # What the port has in the sets of the guards.
    elements: tuple[Element, ...] = ()
    # The addresses that ipMasq masquerades, each with its prefix length.
    masqueraded: tuple[str, ...] = ()

    def of_addresses(self) -> PortState:
        """With no other elements than those that let the port have its addresses."""
        return self._replace(elements=tuple(each for each in self.elements if each.set in ADDRESS_SETS))

    def without_addresses(self) -> PortState:
        """With the other elements only."""
        return self._replace(elements=tuple(each for each in self.elements if each.set not in ADDRESS_SETS))

    def to_json(self) -> dict[str, Any]:
        """What the record keeps."""
        written = {**self._asdict(), "elements": [element._asdict() for element in self.elements]}
        if self.store is None:
            del written["store"]
        else:
            written["store"] = self.store._asdict()
        return written

    @classmethod
    def of(cls, record: Record) -> PortState:
        """Never raises: a key of another shape than ours is one that cannot be undone."""
        keys = UndoKeys(record.undo)
        return cls(
            host=keys.text("host"),
            host_mac=keys.text("host_mac"),
            host_ifindex=keys.number("host_ifindex"),
            container_mac=keys.text("container_mac"),
            store=StoreRef.of(keys.fields("store")),
            ipam_type=keys.text("ipam_type"),
            ipam=keys.fields("ipam") or None,
            elements=_elements(keys.items("elements")),
            masqueraded=keys.texts("masqueraded"),
        )


def state_of_result(host: Stack, result: Result) -> PortState:
    """What an ADD with every guard and masquerading would have left, as far as its result says."""
    outside = [interface for interface in result.interfaces if not interface.sandbox]
    inside = [interface for interface in result.interfaces if interface.sandbox]
    addresses = [ip.address for ip in result.ips]
    masqueraded = PortState(masqueraded=tuple(map(str, addresses)))
    if len(outside) < 2 or not inside or not inside[0].mac:
        return masqueraded
    left = state_of_port(outside[1].name, inside[0].mac, addresses)
    link = host.link(left.host)
    if link is not None and link.mac != outside[1].mac.lower():
        return left._replace(elements=())  # the name is another port's by now, and so are its elements
    return left


def state_of_port(host_name: str, mac: str, addresses: Sequence[InterfaceAddress]) -> PortState:
    """What an ADD with every guard and masquerading would have left for a port, MAC and addresses."""
    every = Guards(macspoofchk=True, ipspoofchk=True, dhcp_guard=True, ra_guard=True)
    return PortState(
        host=host_name,
        elements=tuple(elements(host_name, mac, addresses, every)),
        masqueraded=tuple(str(address) for address in addresses if not address.is_link_local),
    )


def find_port(host: Stack, left: PortState) -> Link | None:
    """The host end that a record names, if that link is still ours: names are used again.

    A renamed one is known by its ifindex and MAC together: either may be another link's by now.
    """
    link = host.link(left.host) if left.host else None
    if link is not None and is_port(link, left):
        return link
    renamed = host.link(left.host_ifindex) if left.host_ifindex else None
    is_ours = renamed is not None and renamed.kind == "veth" and renamed.mac == left.host_mac
    return renamed if is_ours else None


def is_port(link: Link, left: PortState) -> bool:
    """Whether a link of the name that a record says is the record's."""
    return link.kind == "veth" and (link.mac == left.host_mac or link.ifindex == left.host_ifindex)


def find_port_of_result(host: Stack, result: Result) -> Link | None:
    """The host end that a prevResult names: a veth of this MAC on the bridge that is named before it."""
    outside = [interface for interface in result.interfaces if not interface.sandbox]
    if len(outside) < 2:
        return None
    bridge, port = host.link(outside[0].name), host.link(outside[1].name)
    if bridge is None or port is None or bridge.kind != "bridge" or port.kind != "veth":
        return None
    return port if port.master == bridge.ifindex and port.mac == outside[1].mac.lower() else None


def find_other_end(host: Stack, container: Link, bridge: str, result: Result | None) -> Link | None:
    """The host end of a container's veth, if it is what an ADD of this configuration and result leaves.

    Without a record a veth of the right name may be another program's: ours has the port at its other end.
    """
    port = host.link(container.peer) if container.peer else None
    if port is None or port.kind != "veth" or port.peer != container.ifindex:
        return None
    outside = [interface for interface in result.interfaces if not interface.sandbox] if result else []
    inside = [interface for interface in result.interfaces if interface.sandbox] if result else []
    if len(outside) > 1 and inside:
        reported = (outside[1].name, inside[0].name, inside[0].mac.lower())
        # The ports are still there when another program has deleted the bridge.
        if reported != (port.name, container.name, container.mac):
            return None
        return port if port.master == 0 or _is_bridge(host, port.master, outside[0].name) else None
    return port if bridge and _is_bridge(host, port.master, bridge) else None


def find_container_end(pod: Stack, ifname: str, left: PortState | None) -> Link | None:
    """The container's end: by its MAC as well if a record says it, for names are used again."""
    link = pod.link(ifname)
    if link is None or link.kind != "veth":
        return None
    return link if left is None or link.mac == left.container_mac else None


def remove_elements(context: Context, left: PortState) -> None:
    """Remove the port's elements from the guards' sets."""
    if left.elements:
        with context.kernel.nft() as nft:
            nft.change(delete=left.elements)


def remove_masquerade(context: Context, key: Key, left: PortState) -> None:
    """Remove the rules that masquerade the port's addresses."""
    addresses = [address for text in left.masqueraded if (address := _address(text))]
    if addresses:
        with context.kernel.nft() as nft:
            context.masquerade.remove(nft, key, addresses)


def _is_bridge(host: Stack, ifindex: int, name: str) -> bool:
    bridge = host.link(name)
    return bridge is not None and bridge.kind == "bridge" and bridge.ifindex == ifindex


def _address(text: str) -> InterfaceAddress | None:
    try:
        return ip_interface(text)
    except ValueError:
        return None


def _elements(items: Iterable[Any]) -> tuple[Element, ...]:
    try:
        return tuple(
            Element(i["family"], i["table"], i["set"], tuple(i["types"]), tuple(i["key"])) for i in items
        )
    except (TypeError, KeyError):
        return ()
