"""The result of an ADD, as one value for all spec versions."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple


class Interface(NamedTuple):
    """An entry of `interfaces`: `sandbox` is the namespace's path, "" for the host; `mtu` 0 if not known."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    socket_path: str = ""
    pci_id: str = ""


class IP(NamedTuple):
    """An entry of `ips`. `interface` is an index into `Result.interfaces`; an IPAM plugin leaves it None."""

    address: IPv4Interface | IPv6Interface
    gateway: IPv4Address | IPv6Address | None = None
    interface: int | None = None


class Route(NamedTuple):
    """An entry of `routes`; 0 or None where the plugin said nothing."""

    dst: IPv4Network | IPv6Network
    gw: IPv4Address | IPv6Address | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class DNS(NamedTuple):
    """Resolver settings; empty when nobody has any to give."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(NamedTuple):
    """What an ADD made. `parse` and `render` (same module) convert from and to every spec version."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()
