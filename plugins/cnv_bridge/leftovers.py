"""What one ADD leaves behind, as its record keeps it, and how it is found again without a record."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any, NamedTuple, cast

from cnvnet.attachments import AttachmentFiles, Attachments, Key, Record
from cnvnet.cni.result import Result
from cnvnet.kernel.links import Link
from cnvnet.kernel.nft import Element
from cnvnet.kernel.stack import Kernel, Stack
from cnvnet.plugins.cnv_bridge.guards import Guards, elements
from cnvnet.plugins.cnv_bridge.masquerade import Masquerade


class Tools(NamedTuple):
    """What ADD, DEL and GC of this plugin work with."""

    kernel: Kernel
    attachments: Attachments
    masquerade: Masquerade

    @classmethod
    def of(cls, rundir: str, kernel: Kernel) -> Tools:
        attachments = AttachmentFiles(rundir)
        return cls(kernel, attachments, Masquerade(attachments, os.path.join(rundir, "masquerade")))


class Leftovers(NamedTuple):
    """The undo keys of a record. `host_ifindex` is 0 until the port exists; "" and () stand for nothing.

    `ipam` is the configuration's object: by it the addresses are given back even if it has changed since.
    """

    host: str = ""
    host_mac: str = ""
    host_ifindex: int = 0
    container_mac: str = ""
    ipam_type: str = ""
    ipam: Mapping[str, Any] | None = None
    elements: tuple[Element, ...] = ()
    masqueraded: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "elements": [element._asdict() for element in self.elements]}

    @classmethod
    def of(cls, record: Record) -> Leftovers:
        """Never raises: a key of another shape than ours is one that cannot be undone."""
        undo = record.undo
        ifindex, ipam = undo.get("host_ifindex"), undo.get("ipam")
        return cls(
            host=_text(undo, "host"),
            host_mac=_text(undo, "host_mac"),
            host_ifindex=ifindex if isinstance(ifindex, int) else 0,
            container_mac=_text(undo, "container_mac"),
            ipam_type=_text(undo, "ipam_type"),
            ipam=cast("Mapping[str, Any]", ipam) if isinstance(ipam, Mapping) else None,
            elements=_elements(undo.get("elements")),
            masqueraded=_texts(undo.get("masqueraded")),
        )


def leftovers_of_result(host: Stack, result: Result) -> Leftovers:
    """What an ADD with every guard and masquerading would have left, as far as its result tells."""
    outside = [interface for interface in result.interfaces if not interface.sandbox]
    inside = [interface for interface in result.interfaces if interface.sandbox]
    addresses = [ip.address for ip in result.ips]
    told = Leftovers(masqueraded=tuple(map(str, addresses)))
    if len(outside) < 2 or not inside or not inside[0].mac:
        return told
    left = leftovers_of_port(outside[1].name, inside[0].mac, addresses)
    link = host.link(left.host)
    if link is not None and link.mac != outside[1].mac.lower():
        return left._replace(elements=())  # the name is somebody else's by now, and so are its elements
    return left


def leftovers_of_port(
    host_name: str, mac: str, addresses: Sequence[IPv4Interface | IPv6Interface]
) -> Leftovers:
    """What an ADD with every guard and masquerading would have left for a port, MAC and addresses."""
    every = Guards(macspoofchk=True, ipspoofchk=True, dhcp_guard=True, ra_guard=True)
    return Leftovers(
        host=host_name,
        elements=tuple(elements(host_name, mac, addresses, every)),
        masqueraded=tuple(str(address) for address in addresses if not address.is_link_local),
    )


def find_port(host: Stack, left: Leftovers) -> Link | None:
    """The host end that a record names, if that link is still ours: names are used again."""
    link = host.link(left.host) if left.host else None
    return link if link is not None and is_port(link, left) else None


def is_port(link: Link, left: Leftovers) -> bool:
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

    Without a record a veth of the right name may be anybody's: what tells ours is the port at its other end.
    """
    port = host.link(container.peer) if container.peer else None
    if port is None or port.kind != "veth" or port.peer != container.ifindex:
        return None
    outside = [interface for interface in result.interfaces if not interface.sandbox] if result else []
    inside = [interface for interface in result.interfaces if interface.sandbox] if result else []
    if len(outside) > 1 and inside:
        told = (outside[1].name, inside[0].name, inside[0].mac.lower())
        # Whoever has deleted the bridge has left its ports.
        if told != (port.name, container.name, container.mac):
            return None
        return port if port.master == 0 or _is_bridge(host, port.master, outside[0].name) else None
    return port if bridge and _is_bridge(host, port.master, bridge) else None


def find_container_end(pod: Stack, ifname: str, left: Leftovers | None) -> Link | None:
    """The container's end: by its MAC as well if a record says it, for names are used again."""
    link = pod.link(ifname)
    if link is None or link.kind != "veth":
        return None
    return link if left is None or link.mac == left.container_mac else None


def remove_elements(tools: Tools, left: Leftovers) -> None:
    if left.elements:
        with tools.kernel.nft() as nft:
            nft.change(delete=left.elements)


def remove_masquerade(tools: Tools, key: Key, left: Leftovers) -> None:
    addresses = [address for text in left.masqueraded if (address := _address(text))]
    if addresses:
        with tools.kernel.nft() as nft:
            tools.masquerade.remove(nft, key, addresses)


def _is_bridge(host: Stack, ifindex: int, name: str) -> bool:
    bridge = host.link(name)
    return bridge is not None and bridge.kind == "bridge" and bridge.ifindex == ifindex


def _address(text: str) -> IPv4Interface | IPv6Interface | None:
    try:
        return ip_interface(text)
    except ValueError:
        return None


def _text(undo: Mapping[str, Any], key: str) -> str:
    value = undo.get(key)
    return value if isinstance(value, str) else ""


def _texts(items: Any) -> tuple[str, ...]:  # noqa: ANN401 -- what a file says, whatever it is
    try:
        return tuple(map(str, items or ()))
    except TypeError:
        return ()


def _elements(items: Any) -> tuple[Element, ...]:  # noqa: ANN401 -- what a file says, whatever it is
    try:
        return tuple(
            Element(i["family"], i["table"], i["set"], tuple(i["types"]), tuple(i["key"]))
            for i in items or ()
        )
    except (TypeError, KeyError):
        return ()
