"""The pod's resolv.conf, read for a guest: nothing in it may keep a virtual machine from starting.

static-ip reads the file that `ipam.resolvConf` names as host-local does (cnvnet.ipam.static_ip.config): as
written, for a result. Here it is untrusted, and a guest gets what is valid.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

from cnvnet.guest import domains

# Resolvers ask the first three (resolv.conf(5)), Kubernetes allows no more. A pod's file is its tenant's.
_MOST_SERVERS: Final = 16


class ResolvConf(NamedTuple):
    """What a guest can use of it, without malformed entries."""

    nameservers: tuple[IPv4Address | IPv6Address, ...]
    search: tuple[str, ...]


def parse(text: str) -> ResolvConf:
    """The servers and search domains in a resolv.conf(5).

    Of several `search` and `domain` lines the last one counts, as for the resolver itself.
    """
    nameservers: list[str] = []
    search: list[str] = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            nameservers.append(words[1])
        elif words[0] == "search":
            search = words[1:]
        elif words[0] == "domain":
            search = words[1:2]
    return ResolvConf(usable(nameservers), domains.cleaned_list(search))


def usable(servers: Iterable[str]) -> tuple[IPv4Address | IPv6Address, ...]:
    """The first addresses among `servers` that a guest can reach from its own network stack, each once."""
    addresses: dict[IPv4Address | IPv6Address, None] = {}
    for server in servers:
        try:
            address = ip_address(server)
        except ValueError:
            continue  # a name, or nonsense
        if reachable(address):
            addresses[address] = None
    return tuple(addresses)[:_MOST_SERVERS]


def reachable(address: IPv4Address | IPv6Address) -> bool:
    """False for the pod's own loopback and for what only means something on a link of the pod's."""
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        return False
    if isinstance(address, IPv6Address):
        return not address.is_link_local and address.scope_id is None
    return address.packed[0] not in (0, 255)
