"""Which interface of the pod a VM is to be bound to, and what of it the binding has to know.

A binding is called in three ways: by a NetworkAttachmentDefinition of its own (CNI_IFNAME net<k>, no
prevResult, `args.cni.logicNetworkName`), chained behind the plugin that made the interface, and as part of
Multus' default network.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from cnvnet.cni.conventions import cni_args
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.kernel.links import Link
from cnvnet.kernel.stack import Reader
from cnvnet.vm import names

InterfaceAddress = IPv4Interface | IPv6Interface


def find(pod: Reader, request: Request, result: Result | None) -> Link:
    """The pod's interface; InvalidConfig says which were looked for when there is none.

    `result` is the request's prevResult. A binding with a NetworkAttachmentDefinition of its own cannot tell
    a primary network from its logical name: whatever has no interface of its own is the primary one.
    """
    logical = cni_args(request.fields).text("logicNetworkName")
    if result is not None and any(i.name == request.ifname and i.sandbox for i in result.interfaces):
        candidates = [request.ifname]
    elif logical:
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
    """The addresses of the interface that others can reach it by, in the kernel's order."""
    found = (address.address for address in pod.addresses(link.ifindex))
    return tuple(address for address in found if is_global_unicast(address.ip))


def is_global_unicast(address: IPv4Address | IPv6Address) -> bool:
    """Go's net.IP.IsGlobalUnicast, by which KubeVirt tells what a pod's addresses are."""
    return not (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or address.packed == b"\xff" * 4
    )
