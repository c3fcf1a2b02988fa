"""How objects of the Kubernetes API are named and labelled that stand for leases and addresses. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Final

from cnvnet.cni.fields import Address
from cnvnet.ipam.lease import LeaseKey
from cnvnet.vm.identity import ALPHANUMERIC, LONGEST_LABEL, LOWER, is_label

API_VERSION: Final = "cnvnet.io/v1alpha1"
FINALIZER: Final = "cnvnet.io/in-use"
NETWORK_LABEL: Final = "cnvnet.io/network"
NAMESPACE_LABEL: Final = "cnvnet.io/namespace"
# Of an IPReservation: the block of its address.
BLOCK_LABEL: Final = "cnvnet.io/block"
# The block of MAC addresses, which are never listed.
MAC_BLOCK: Final = "mac"
# Both the value of the labels that say in which blocks a VMLease has addresses, and their prefix.
IN_BLOCK: Final = "true"
IN_BLOCK_LABEL: Final = "cnvnet.io/block-"

# Characters of a network's or a VM's name that the name of an object begins with.
_LONGEST_PART: Final = 40
# Characters of a container's id that tell it from others on its pod's lease.
_CONTAINER: Final = 13


def ips_of(addresses: Iterable[str]) -> list[Address]:
    """The addresses of IP among these."""
    return [ipaddress.ip_address(each) for each in addresses if not is_mac(each)]


def is_mac(address: str) -> bool:
    """Whether the text is a MAC, of an address of either kind."""
    return [len(each) for each in address.split(":")] == [2] * 6


def network_name(network: str) -> str:
    """The name of a network's IPNetwork."""
    return network if is_label(network) else f"{_dns_safe(network)}-{_hash(network, 10)}"


def lease_name(key: LeaseKey) -> str:
    """The name of a key's VMLease. The hash has no inverse: `spec` says whose it is."""
    return f"{_dns_safe(key.vm)}-{_hash(chr(0).join(key), 16)}"


def reservation_name(network: str, address: str) -> str:
    """The name of an address' IPReservation: one for each way in which the address can be written."""
    written = address if is_mac(address) else _written_out(ipaddress.ip_address(address))
    return f"{_dns_safe(network)}-{_hash(network, 10)}-{written.replace('.', '-').replace(':', '-')}"


def _written_out(ip: Address) -> str:
    """An address with all of its digits; from Python 3.13 on, `exploded` has a mapped IPv4 one in dots."""
    return str(ip) if ip.version == 4 else ip.packed.hex(":", 2)


def reserved_ip(network: str, name: str) -> Address | None:
    """The address of IP that a reservation of the network is for, by its name alone; None for a MAC."""
    written = name.removeprefix(f"{_dns_safe(network)}-{_hash(network, 10)}-")
    for mark in (".", ":"):
        try:
            return ipaddress.ip_address(written.replace("-", mark))
        except ValueError:
            continue
    return None


def network_label(network: str) -> str:
    """The value of NETWORK_LABEL for a network, whatever its name is."""
    plain = len(network) <= LONGEST_LABEL and (ALPHANUMERIC | set("-_.")).issuperset(network)
    if plain and network and network[0] in ALPHANUMERIC and network[-1] in ALPHANUMERIC:
        return network
    return f"{_dns_safe(network)}-{_hash(network, 10)}"


def block_of(ip: Address) -> str:
    """The 256 addresses among which one is, as a label has them: of what is listed at once."""
    if ip.version == 4:
        return "-".join(str(ip).split(".")[:3])
    return ip.packed.hex()[:30]


def block_label(address: str) -> str:
    """The value of BLOCK_LABEL for an address or a MAC."""
    return MAC_BLOCK if is_mac(address) else block_of(ipaddress.ip_address(address))


def of_namespace(network: str, namespace: str) -> str:
    """The selector of the network's IPReservations for VMs and pods of a namespace."""
    return f"{NETWORK_LABEL}={network_label(network)},{NAMESPACE_LABEL}={namespace}"


def block_end(ip: Address) -> int:
    """The last address of its block."""
    return int(ip) | 0xFF


def in_block(network: str, block: str) -> str:
    """The selector of the network's VMLeases with addresses in a block."""
    return f"{NETWORK_LABEL}={network_label(network)},{IN_BLOCK_LABEL}{block}={IN_BLOCK}"


def reserved_in_block(network: str, block: str) -> str:
    """The selector of the network's IPReservations in a block."""
    return f"{NETWORK_LABEL}={network_label(network)},{BLOCK_LABEL}={block}"


def holder_key(container_id: str, ifname: str, used: Mapping[tuple[str, str], str]) -> str:
    """The key under which an interface of a container stands in a lease that has these."""
    known = used.get((container_id, ifname))
    if known is not None:
        return known
    key = f"{container_id[:_CONTAINER]}.{ifname}"
    return key if key not in used.values() else f"{_hash(container_id, 32)}.{ifname}"


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:digits]


def _dns_safe(text: str) -> str:
    """The beginning of a name of an object: RFC 1123, of 40 characters at most."""
    safe = "".join(each if each in LOWER else "-" for each in text[:_LONGEST_PART].lower())
    return safe.strip("-") or "x"
