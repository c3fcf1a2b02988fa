"""Which interface of the pod a VM is to be bound to, and what of it the binding has to know.

A binding is called in three ways: by a NetworkAttachmentDefinition of its own (CNI_IFNAME net<k>, no
prevResult, `args.cni.logicNetworkName`), chained behind the plugin that made the interface, and as part of
Multus' default network.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cnvnet.cni.conventions import cni_args
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import InterfaceAddress
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.kernel.addresses import MIN_IPV4_MTU, MIN_IPV6_MTU
from cnvnet.kernel.links import Link
from cnvnet.kernel.routes import MAIN_TABLE, Route
from cnvnet.kernel.stack import Reader
from cnvnet.vm import names

# 576 and 1280 bytes: what every host has to take (RFC 791, RFC 8200).
_MIN_MTU: Final = {4: MIN_IPV4_MTU, 6: MIN_IPV6_MTU}


def find(pod: Reader, request: Request, result: Result | None) -> Link:
    """The pod's interface; InvalidConfig says which were looked for when there is none.

    `result` is the request's prevResult. A binding with a NetworkAttachmentDefinition of its own does
    not see in the logical name whether the network is the primary one: a network that has no interface of
    its own is.
    """
    logical = cni_args(request.fields).text("logicNetworkName")
    if result is not None and any(i.name == request.ifname and i.sandbox for i in result.interfaces):
        candidates = [request.ifname]
    elif logical:
        # KubeVirt names the interface of a secondary network by a hash of the network's logical name.
        candidates = [names.hashed(logical), names.PRIMARY]
    else:
        candidates = [request.ifname, names.PRIMARY]
    for name in candidates:
        link = pod.link(name)
        if link is not None:
            _ensure_quotable(link)
            return link
    asked = " nor ".join(dict.fromkeys(candidates))
    raise InvalidConfig(f"there is no {asked} in the pod to bind the VM to: another network has to make it")


def _ensure_quotable(link: Link) -> None:
    # It becomes part of nft's text, where a quote ends a name and an asterisk stands for anything.
    if any(character in '"*' for character in link.name):
        raise InvalidConfig(f'interface {link.name}: no binding takes a name with " or *')


def addresses(pod: Reader, link: Link) -> tuple[InterfaceAddress, ...]:
    """The interface's addresses that other hosts can reach, in the kernel's order."""
    present = (address.address for address in pod.addresses(link.ifindex))
    return tuple(address for address in present if is_global_unicast(address.ip))


def default_route(routes: Iterable[Route], version: int) -> Route | None:
    """A version's default route that the kernel uses: in the main table, of the lowest priority."""
    of_family = (route for route in routes if route.dst.version == version and route.table == MAIN_TABLE)
    defaults = (route for route in of_family if not route.dst.prefixlen)
    return min(defaults, key=lambda route: route.priority, default=None)


def mtu(link_mtu: int, default: Route | None) -> int:
    """The largest packet of a family that an interface of that MTU sends; its default route may allow less.

    A network with tunnels (Cilium) says it by such a metric. One that is smaller than what every host has to
    take is not passed on.
    """
    if default is None or not default.mtu:
        return link_mtu
    return min(link_mtu, max(default.mtu, _MIN_MTU[default.dst.version]))


def is_global_unicast(address: IPv4Address | IPv6Address) -> bool:
    """Go's net.IP.IsGlobalUnicast, by which KubeVirt chooses among a pod's addresses."""
    return not (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or address.packed == b"\xff" * 4
    )
