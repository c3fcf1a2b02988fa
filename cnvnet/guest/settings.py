"""What one guest gets: a value that a plugin makes, a record keeps and the services prepare.

`checked` alone judges it. A mistake of an operator is an error that names the key; what comes from the pod
(search domains, name servers, a host name) is left out where a guest could not use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final, NamedTuple

from cnvnet.cni.errors import InvalidConfig
from cnvnet.guest import domains, frames, resolvconf
from cnvnet.kernel.addresses import link_local

# KubeVirt's own lease, 999 days: a guest keeps its address however long the node's agent is stopped, and
# asks again after a reboot.
LEASE_SECONDS: Final = 999 * 24 * 3600
# A client uses the first few.
_MOST_TIME_SERVERS: Final = 16
# A time that means infinity, for DHCP as for DHCPv6 and router advertisements.
FOREVER: Final = 0xFFFFFFFF


class GuestRoute(NamedTuple):
    """An IPv4 route of the guest's besides its default one; no gateway: the destination is on the link."""

    destination: IPv4Network
    gateway: IPv4Address | None = None


class GuestNeighbour(NamedTuple):
    """A next hop that answers no ARP or ND itself: the services answer the guest with its MAC address."""

    address: IPv4Address | IPv6Address
    mac: str


class V4(NamedTuple):
    """What a guest gets by DHCPv4."""

    address: IPv4Interface
    # The server id: the gateway behind masquerade, any free address in vm-bridge.
    server: IPv4Address
    gateway: IPv4Address | None = None
    routes: tuple[GuestRoute, ...] = ()
    # That of IPv4 alone, 0: the interface's.
    mtu: int = 0


class V6(NamedTuple):
    """What a guest gets by DHCPv6 and router advertisements.

    Without `router` and `router_mac` the router is the owner of `server_mac`; `router` alone is on the
    guest's own link, and the guest asks it for its MAC address.
    """

    address: IPv6Interface
    # The router's link-local address; None: the one that follows from its MAC address.
    router: IPv6Address | None = None
    router_mac: str = ""
    default_route: bool = True
    # Destinations besides the default one, through the same router.
    routes: tuple[IPv6Network, ...] = ()
    # That of IPv6 alone, 0: the interface's.
    mtu: int = 0


class Settings(NamedTuple):
    """The settings of one guest's services."""

    # The sender of every answer.
    server_mac: str
    mtu: int
    # The only client served; "": any on this tap (after a migration behind masquerade the MAC is not known).
    guest_mac: str = ""
    hostname: str = ""
    nameservers: tuple[IPv4Address | IPv6Address, ...] = ()
    search: tuple[str, ...] = ()
    # Addresses or, for DHCPv6 only, names.
    ntp_servers: tuple[str, ...] = ()
    # An address or a name.
    tftp_server: str = ""
    boot_file: str = ""
    # DHCPv4 options 224 to 254 with their texts.
    private_options: tuple[tuple[int, str], ...] = ()
    lease_seconds: int = LEASE_SECONDS
    # None: the guest has no address of that family, and none of its services.
    v4: V4 | None = None
    v6: V6 | None = None
    # Next hops that the services answer for.
    neighbours: tuple[GuestNeighbour, ...] = ()

    @property
    def ipv4_mtu(self) -> int:
        """The largest IPv4 packet."""
        return (self.v4.mtu if self.v4 is not None else 0) or self.mtu

    @property
    def ipv6_mtu(self) -> int:
        """The largest IPv6 packet."""
        return (self.v6.mtu if self.v6 is not None else 0) or self.mtu


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
    if v4.mtu:
        _in_range("v4.mtu", v4.mtu, 576, 65535)
    return v4


def _checked_v6(v6: V6, settings: Settings) -> V6:
    _usable("v6.address", v6.address.ip)
    for key, mtu in (("mtu", settings.mtu), ("v6.mtu", v6.mtu or settings.mtu)):
        if mtu < 1280:
            raise InvalidConfig(f"{key} {mtu}: IPv6 needs 1280 at least")
    own = settings.server_mac if v6.router is None else ""
    mac = v6.router_mac or own
    mac = mac and _mac("v6.router_mac", mac)
    router = v6.router or link_local(frames.mac(mac))
    if not router.is_link_local or router.scope_id is not None:
        raise InvalidConfig(f"v6.router {router}: a router is known by a link-local address")
    return v6._replace(router=router, router_mac=mac)


def _checked_neighbour(neighbour: GuestNeighbour) -> GuestNeighbour:
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
