"""What one guest is given, in words: a value that a plugin makes, a record keeps and the services prepare.

`checked` is the only judge of it. What an operator wrote wrongly is an error that names the key; what merely
comes along from a pod (search domains, name servers, a host name) is left out where a guest could do nothing
with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final, NamedTuple

from cnvnet.cni.errors import InvalidConfig
from cnvnet.guest import domains, frames, resolvconf

# KubeVirt's own lease: a guest keeps its address however long the node's agent is away, and asks after a
# reboot.
LEASE_SECONDS: Final = 999 * 24 * 3600
# A client asks a handful of them.
_MOST_TIME_SERVERS: Final = 16
# A time that means infinity, for DHCP as for DHCPv6 and router advertisements.
FOREVER: Final = 0xFFFFFFFF


class Route(NamedTuple):
    """An IPv4 route of the guest's besides its default one; no gateway: the destination is on the link."""

    destination: IPv4Network
    gateway: IPv4Address | None = None


class Neighbour(NamedTuple):
    """A next hop that answers for itself nowhere: we answer the guest's ARP or ND with its MAC address."""

    address: IPv4Address | IPv6Address
    mac: str


class V4(NamedTuple):
    """DHCPv4. `server` is the server id: the gateway behind masquerade, any free address in vm-bridge."""

    address: IPv4Interface
    server: IPv4Address
    gateway: IPv4Address | None = None
    routes: tuple[Route, ...] = ()


class V6(NamedTuple):
    """DHCPv6 and router advertisements.

    `router` is the link-local address of the guest's router and `router_mac` its MAC address; where both are
    left out the router is whatever owns `server_mac`, and where only the former is, it follows from the
    latter. A `router` alone is on the guest's own link, and the guest asks it for its MAC address. `routes`
    are destinations besides the default one, which go through the same router.
    """

    address: IPv6Interface
    router: IPv6Address | None = None
    router_mac: str = ""
    default_route: bool = True
    routes: tuple[IPv6Network, ...] = ()


class Settings(NamedTuple):
    """Everything one guest's services know.

    `server_mac` is the sender of all that is answered. `guest_mac` is the only client served, "" serves
    anyone on this tap (after a migration behind masquerade the guest's MAC is not known). `ntp_servers` are
    addresses or, for DHCPv6 only, names. `private_options` are DHCPv4 options 224 to 254.
    """

    server_mac: str
    mtu: int
    guest_mac: str = ""
    hostname: str = ""
    nameservers: tuple[IPv4Address | IPv6Address, ...] = ()
    search: tuple[str, ...] = ()
    ntp_servers: tuple[str, ...] = ()
    tftp_server: str = ""
    boot_file: str = ""
    private_options: tuple[tuple[int, str], ...] = ()
    lease_seconds: int = LEASE_SECONDS
    v4: V4 | None = None
    v6: V6 | None = None
    neighbours: tuple[Neighbour, ...] = ()


def checked(settings: Settings) -> Settings:
    """The same settings in canonical form, fit to be prepared. InvalidConfig names a key that is not."""
    _in_range("mtu", settings.mtu, 576, 65535)
    _in_range("lease_seconds", settings.lease_seconds, 60, FOREVER)
    _text("tftp_server", settings.tftp_server)
    _text("boot_file", settings.boot_file)
    _check_private_options(settings.private_options)
    return settings._replace(
        server_mac=_mac("server_mac", settings.server_mac),
        guest_mac=settings.guest_mac and _mac("guest_mac", settings.guest_mac),
        hostname=domains.cleaned(settings.hostname),
        nameservers=resolvconf.usable(map(str, settings.nameservers)),
        search=domains.cleaned_list(settings.search),
        ntp_servers=_time_servers(settings.ntp_servers),
        v4=settings.v4 and _checked_v4(settings.v4),
        v6=settings.v6 and _checked_v6(settings.v6, settings),
        neighbours=tuple(_checked_neighbour(n) for n in settings.neighbours),
    )


def _in_range(key: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidConfig(f"{key} {value}: not between {least} and {most}")


def _text(key: str, value: str) -> None:
    # The text becomes a DHCP option of at most 255 bytes, which clients hand to programs written in C.
    if not value.isascii() or not (value.isprintable() and len(value) < 256):
        raise InvalidConfig(f"{key} {value[:40]!r}: not up to 255 printable ASCII characters")


def _mac(key: str, text: str) -> str:
    try:
        packed = frames.mac(text)
    except ValueError as e:
        raise InvalidConfig(f"{key} {text!r}: not a MAC address") from e
    if not frames.is_station(packed):
        raise InvalidConfig(f"{key} {text!r}: not the address of one interface")
    return packed.hex(":")


def _check_private_options(options: tuple[tuple[int, str], ...]) -> None:
    seen: set[int] = set()
    for code, value in options:
        _in_range("private_options", code, 224, 254)
        if code in seen:
            raise InvalidConfig(f"private_options {code}: given twice")
        seen.add(code)
        try:
            length = len(value.encode())
        except UnicodeEncodeError as e:
            raise InvalidConfig(f"private_options {code}: half a character (a surrogate)") from e
        if not 1 <= length <= 255:
            raise InvalidConfig(f"private_options {code}: not between 1 and 255 bytes long")


def _time_servers(servers: Iterable[str]) -> tuple[str, ...]:
    good = (server if resolvconf.usable([server]) else domains.cleaned(server) for server in servers)
    return tuple(dict.fromkeys(filter(None, good)))[:_MOST_TIME_SERVERS]


def _checked_v4(v4: V4) -> V4:
    _usable("v4.address", v4.address.ip)
    _usable("v4.server", v4.server)
    if v4.gateway is not None:
        _usable("v4.gateway", v4.gateway)
    if v4.address.ip in (v4.server, v4.gateway):
        raise InvalidConfig(f"v4.address {v4.address.ip}: the guest cannot be its own server or gateway")
    return v4


def _checked_v6(v6: V6, settings: Settings) -> V6:
    _usable("v6.address", v6.address.ip)
    if settings.mtu < 1280:
        raise InvalidConfig(f"mtu {settings.mtu}: IPv6 needs 1280 at least")
    own = settings.server_mac if v6.router is None else ""
    mac = v6.router_mac or own
    mac = mac and _mac("v6.router_mac", mac)
    router = v6.router or IPv6Address(frames.link_local(frames.mac(mac)))
    if not router.is_link_local or router.scope_id is not None:
        raise InvalidConfig(f"v6.router {router}: a router is known by a link-local address")
    return v6._replace(router=router, router_mac=mac)


def _checked_neighbour(neighbour: Neighbour) -> Neighbour:
    if neighbour.address.is_multicast or neighbour.address.is_unspecified:
        raise InvalidConfig(f"neighbours {neighbour.address}: not the address of one host")
    return neighbour._replace(mac=_mac("neighbours", neighbour.mac))


def _usable(key: str, address: IPv4Address | IPv6Address) -> None:
    # A server id or a gateway may well be link-local (169.254.1.1).
    if (
        address.is_unspecified
        or address.is_multicast
        or address.is_loopback
        or address.packed == b"\xff" * 4
    ):
        raise InvalidConfig(f"{key} {address}: not the address of one host")
