"""Which addresses another address manager has given, by what it keeps: files of a node or objects. Pure.

host-local keeps a file for each address of a network, named after it, with the container and the interface
(containernetworking/plugins, plugins/ipam/host-local/backend/disk). whereabouts has an IPPool for each
range, with an entry for each address by its number in the range. Kube-OVN has an IP for each interface.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Address, Fields, as_address, as_mac
from cnvnet.ipam.imports.documents import Document

IP_POOL: Final = "whereabouts.cni.cncf.io/IPPool"
KUBE_OVN_IP: Final = "kubeovn.io/IP"
# What Kube-OVN calls the interfaces of VMs.
_VIRTUAL_MACHINE: Final = "VirtualMachine"
# How the names of the files begin that host-local keeps beside those of addresses.
_BESIDE: Final = ("lock", "last_reserved_ip")


class Given(NamedTuple):
    """Addresses of one interface: of a `vm` where that is known, else of a `pod` or a `container`."""

    network: str
    ips: tuple[Address, ...]
    where: str
    namespace: str = ""
    vm: str = ""
    # "namespace/name".
    pod: str = ""
    container: str = ""
    interface: str = ""
    mac: str = ""

    @property
    def owner(self) -> str:
        """For messages."""
        if self.vm:
            return f"VM {self.namespace}/{self.vm}"
        return f"pod {self.pod}" if self.pod else f"container {self.container}"


def host_local(files: Mapping[str, str], network: str, where: str) -> Iterator[Given]:
    """What the files of a folder of host-local say, by their names. Raises InvalidConfig."""
    for name, content in sorted(files.items()):
        if name.startswith(_BESIDE):
            continue
        ip = as_address(name.replace("_", ":"), f"{where}: the file {name}")
        container, _, interface = content.replace("\r", "").strip().partition("\n")
        if not container:
            raise InvalidConfig(f"{where}: the file {name} names no container")
        yield Given(network, (ip,), f"{where}/{name}", container=container, interface=interface.strip())


def whereabouts(document: Document, network: str) -> Iterator[Given]:
    """What an IPPool says. Raises InvalidConfig."""
    spec = Fields(document.content.get("spec") or {}, f"{document.where}: spec")
    text = spec.required("range")
    try:
        given = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidConfig(f'{spec.path("range")}: "{text[:64]}" is no subnet') from None
    allocations = spec.fields("allocations")
    for offset in allocations.data:
        entry = allocations.fields(offset)
        if not (offset.isascii() and offset.isdigit() and int(offset) < given.num_addresses):
            raise InvalidConfig(f"{entry.path('')}: no number of an address of {text}")
        yield Given(
            network,
            (given[int(offset)],),
            f"{document.where}: {offset}",
            pod=entry.text("podref"),
            container=entry.text("id"),
            interface=entry.text("ifname"),
        )


def kube_ovn(document: Document, network: str, interface: str) -> Given:
    """What an IP says, in this network or the one that is called as its subnet. Raises InvalidConfig."""
    spec = Fields(document.content.get("spec") or {}, f"{document.where}: spec")
    texts = [spec.text("v4IpAddress"), spec.text("v6IpAddress")]
    # Before there were two of them.
    texts = [each for each in texts if each] or [each for each in spec.text("ipAddress").split(",") if each]
    mac = spec.text("macAddress")
    name, namespace = spec.required("podName"), spec.required("namespace")
    is_vm = spec.text("podType") == _VIRTUAL_MACHINE
    return Given(
        network or spec.required("subnet"),
        tuple(as_address(each, spec.path("v4IpAddress")) for each in texts),
        document.where,
        namespace=namespace,
        vm=name if is_vm else "",
        pod="" if is_vm else f"{namespace}/{name}",
        interface=interface,
        mac=as_mac(mac, spec.path("macAddress"), unicast=True) if mac else "",
    )


def together(given: Iterable[Given]) -> list[Given]:
    """All addresses of an interface in one: ranges of both families are kept apart."""
    merged: dict[tuple[str, ...], Given] = {}
    for each in given:
        key = (each.network, each.namespace, each.vm, each.pod, each.container, each.interface)
        known = merged.get(key)
        merged[key] = each if known is None else known._replace(ips=(*known.ips, *each.ips))
    return list(merged.values())
