"""DHCPv4 for one guest that always gets the same address (RFC 2131, options of RFC 2132 and its successors).

`prepare` encodes once what never changes; `reply` answers one frame. The server is authoritative: it is the
only one that a guest can reach, so a client that asks for another address gets a NAK at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Final, NamedTuple

from cnvnet.guest import dhcp4_message as wire
from cnvnet.guest import domains, frames
from cnvnet.guest.dhcp4_message import (
    LIMITED_BROADCAST,
    UNSPECIFIED,
    Addresses,
    Dhcp4Message,
    Layout,
    option,
)
from cnvnet.guest.frames import Datagram, Endpoints, Ignored, Reply
from cnvnet.guest.settings import FOREVER, V4, GuestRoute, Settings

_OF_A_LEASE: Final = (wire.LEASE, wire.RENEWAL, wire.REBINDING)
_ONLY_IF_WANTED: Final = (wire.BROADCAST, wire.RENEWAL, wire.REBINDING, wire.MS_ROUTES)


class Dhcp4Offer(NamedTuple):
    """What a guest gets, encoded; addresses are packed."""

    guest_mac: bytes  # b"": any
    server_mac: bytes
    server: bytes  # the server id
    address: bytes
    network: IPv4Network
    next_server: bytes  # siaddr: the TFTP server, if it is an address
    server_name: bytes
    boot_file: bytes
    # Whole options by number, ready to be sent, and shorter forms of those that may find no room.
    options: Mapping[int, bytes]
    shorter: Mapping[int, wire.Forms]
    # Options that go out unasked.
    always: tuple[int, ...]
    # Bytes of the largest IP datagram.
    limit: int


def prepare(settings: Settings) -> Dhcp4Offer | None:
    """The offer for checked settings; None for a guest without IPv4."""
    v4 = settings.v4
    if v4 is None:
        return None
    options = {code: option(code, value) for code, value in _values(settings, v4).items() if value}
    try:
        next_server = IPv4Address(settings.tftp_server).packed
    except ValueError:
        next_server = UNSPECIFIED  # a name: option 66 and the header's sname say it
    # RFC 2131, section 4.3.1: unasked goes out what was configured for this guest alone, and what differs
    # from the default that every client assumes.
    always = [code for code, _ in settings.private_options]
    if settings.ipv4_mtu != 1500:
        always.append(wire.MTU)
    return Dhcp4Offer(
        guest_mac=frames.mac(settings.guest_mac) if settings.guest_mac else b"",
        server_mac=frames.mac(settings.server_mac),
        server=v4.server.packed,
        address=v4.address.ip.packed,
        network=v4.address.network,
        next_server=next_server,
        server_name=_header_text(settings.tftp_server, 64),
        boot_file=_header_text(settings.boot_file, 128),
        options=options,
        shorter={wire.SEARCH: _shorter(settings.search)},
        always=tuple(always),
        limit=max(settings.ipv4_mtu, wire.LEAST_DATAGRAM),
    )


def _shorter(search: tuple[str, ...]) -> wire.Forms:
    """The search list with fewer and fewer names: a resolver tries the first ones first."""
    counts = range(len(search) - 1, 0, -1)
    return tuple(option(wire.SEARCH, domains.compress(search[:count])) for count in counts)


def _header_text(text: str, size: int) -> bytes:
    """Text for a field of the header, which ends with a zero; what is too long only has its option."""
    return text.encode() if len(text) < size else b""


def _values(settings: Settings, v4: V4) -> dict[int, bytes]:
    """The value of every option that may be sent, in the order a client that asks for nothing gets them."""
    network = v4.address.network
    routes = wire.encode_routes(classless_routes(v4))
    lease = settings.lease_seconds
    return {
        wire.MASK: network.netmask.packed,
        wire.ROUTER: gateway.packed if (gateway := default_gateway(v4)) else b"",
        wire.NAMESERVERS: _packed(settings.nameservers),
        wire.HOSTNAME: settings.hostname.encode(),
        wire.DOMAIN: domains.main_domain(settings.search).encode(),
        wire.MTU: settings.ipv4_mtu.to_bytes(2, "big"),
        wire.ROUTES: routes,
        wire.SEARCH: domains.compress(settings.search),
        wire.NTP: _packed(map(_address, settings.ntp_servers)),
        wire.TFTP_SERVER: settings.tftp_server.encode(),
        wire.BOOT_FILE: settings.boot_file.encode(),
        wire.BROADCAST: network.broadcast_address.packed if network.prefixlen < 31 else b"",
        wire.LEASE: lease.to_bytes(4, "big"),
        wire.RENEWAL: (lease // 2).to_bytes(4, "big") if lease != FOREVER else b"",
        wire.REBINDING: (lease * 7 // 8).to_bytes(4, "big") if lease != FOREVER else b"",
        wire.MS_ROUTES: routes,
        # 249 is one of the private numbers: a configured value replaces the routes.
        **{code: value.encode() for code, value in settings.private_options},
    }


def _address(text: str) -> object:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _packed(addresses: Iterable[object]) -> bytes:
    """The IPv4 ones: four bytes each, never sixteen, which Windows rejects."""
    return b"".join(address.packed for address in addresses if isinstance(address, IPv4Address))


def default_gateway(v4: V4) -> IPv4Address | None:
    """The gateway, or that of a default route among the others."""
    among = (route.gateway for route in v4.routes if not route.destination.prefixlen)
    return v4.gateway or next(filter(None, among), None)


def classless_routes(v4: V4) -> tuple[GuestRoute, ...]:
    """The routes that options 3 and 1 cannot say, the default one last; empty when those say it all.

    A gateway outside the guest's subnet (169.254.1.1, an address with /32) first needs a route to itself.
    """
    network = v4.address.network
    routes = [route for route in v4.routes if route.destination != network and route.destination.prefixlen]
    gateway = default_gateway(v4)
    # The pod has a default route without a gateway: every address is on the link.
    to_all = GuestRoute(IPv4Network("0.0.0.0/0"), gateway)
    last = [to_all] if gateway or to_all in v4.routes else []
    gateways = [*(route.gateway for route in routes), gateway]
    direct = [network, *(route.destination for route in routes if route.gateway is None)]
    hops: dict[GuestRoute, None] = {}
    for hop in gateways:
        if hop is not None and not any(hop in destination for destination in direct):
            hops[GuestRoute(IPv4Network(hop))] = None
    if not routes and not hops and (gateway or not last):
        return ()
    routes.sort(key=lambda route: (route.gateway is not None, -route.destination.prefixlen))
    return (*hops, *dict.fromkeys(routes), *last)


def reply(offer: Dhcp4Offer, frame: bytes) -> Reply:
    """The answer to one frame.

    Events: offer, ack, ack_inform, nak, release, decline; not answered: other_traffic, malformed, oversized,
    ignored_bootp, ignored_type, ignored_relay, other_server, other_client.
    """
    try:
        datagram = frames.udp4(frame, wire.PORT)
        if datagram is None:
            return Reply((), frames.OTHER_TRAFFIC)
        message = wire.parse(datagram.payload)
        _refuse_foreign(offer, datagram, message)
        return _HANDLERS[message.type](offer, datagram, message)
    except Ignored as why:
        return Reply((), why.event)


def _refuse_foreign(offer: Dhcp4Offer, datagram: Datagram, message: Dhcp4Message) -> None:
    """Ignore what is meant for another server, or comes from a client that is not this guest."""
    if datagram.destination not in (LIMITED_BROADCAST, offer.server, offer.network.broadcast_address.packed):
        raise Ignored("other_server")
    # The server id of a DISCOVER or an INFORM means nothing.
    named = message.options.get(wire.SERVER, offer.server)
    if named != offer.server and message.type not in (wire.DISCOVER, wire.INFORM):
        raise Ignored("other_server")
    if message.relay != UNSPECIFIED:
        # A relay's clients are in its subnet; there is no address for another (RFC 2131, section 4.3.1).
        if IPv4Address(message.relay) not in offer.network:
            raise Ignored("ignored_relay")
    elif offer.guest_mac and message.hardware != offer.guest_mac:
        raise Ignored("other_client")


def _on_discover(offer: Dhcp4Offer, datagram: Datagram, message: Dhcp4Message) -> Reply:
    return Reply((_lease(offer, datagram, message, wire.OFFER),), "offer")


def _on_request(offer: Dhcp4Offer, datagram: Datagram, message: Dhcp4Message) -> Reply:
    """ACK or NAK, whatever state the client is in (RFC 2131, section 4.3.2).

    SELECTING and INIT-REBOOT name the address in option 50, RENEWING and REBINDING in the header.
    """
    address = message.client_address
    if address == UNSPECIFIED:
        address = message.options.get(wire.REQUESTED_ADDRESS, b"")
    if not address:
        raise Ignored
    if address != offer.address:
        return Reply((_refusal(offer, datagram, message),), "nak")
    return Reply((_lease(offer, datagram, message, wire.ACK),), "ack")


def _on_inform(offer: Dhcp4Offer, datagram: Datagram, message: Dhcp4Message) -> Reply:
    """The options without an address or a lease, to the address that the client has already."""
    if message.client_address == UNSPECIFIED:
        if not wire.is_host(datagram.source):
            raise Ignored
        message = message._replace(client_address=datagram.source)
    return Reply((_lease(offer, datagram, message, wire.ACK),), "ack_inform")


def _on_release(offer: Dhcp4Offer, datagram: Datagram, message: Dhcp4Message) -> Reply:
    """Nothing to do: the address stays reserved for the guest."""
    return Reply((), "release")


def _on_decline(offer: Dhcp4Offer, datagram: Datagram, message: Dhcp4Message) -> Reply:
    """Another host has the guest's address. There is no other one to give; the counter shows it."""
    return Reply((), "decline")


_HANDLERS: Final = {
    wire.DISCOVER: _on_discover,
    wire.REQUEST: _on_request,
    wire.DECLINE: _on_decline,
    wire.RELEASE: _on_release,
    wire.INFORM: _on_inform,
}


def _head(offer: Dhcp4Offer, message: Dhcp4Message, kind: int) -> bytes:
    """The options every answer begins with; the echo of the client id is a must (RFC 6842)."""
    echo = option(wire.CLIENT, message.options.get(wire.CLIENT, b""))
    return bytes((wire.TYPE, 1, kind)) + option(wire.SERVER, offer.server) + echo


def _tail(message: Dhcp4Message) -> bytes:
    """The relay agent's option comes back as it came, and last (RFC 3046, section 2.2)."""
    return option(wire.RELAY, message.options.get(wire.RELAY, b""))


def _lease(offer: Dhcp4Offer, datagram: Datagram, message: Dhcp4Message, kind: int) -> bytes:
    """The whole frame of an OFFER or an ACK. An INFORM's ACK lends nothing."""
    inform = message.type == wire.INFORM
    first = _head(offer, message, kind) + (b"" if inform else offer.options[wire.LEASE])
    codes = _chosen(offer, message)
    chosen = [(offer.options[code], *offer.shorter.get(code, ())) for code in codes]
    space = min(offer.limit, message.limit) - wire.OVERHEAD
    text = Layout(b"", offer.boot_file, offer.server_name)
    layout = wire.lay_out(first, chosen, _tail(message), space, text)
    addresses = Addresses(
        message.client_address if kind == wire.ACK else UNSPECIFIED,
        UNSPECIFIED if inform else offer.address,
        offer.next_server,
    )
    payload = wire.build(message, message.flags & 0x8000, addresses, layout)
    return frames.build_udp4(*_destination(offer, datagram, message), payload)


def _refusal(offer: Dhcp4Offer, datagram: Datagram, message: Dhcp4Message) -> bytes:
    """The whole frame of a NAK: broadcast, for the client has no address (RFC 2131, section 4.1)."""
    first = _head(offer, message, wire.NAK) + option(wire.MESSAGE, b"another address is this guest's")
    space = wire.LEAST_DATAGRAM - wire.OVERHEAD
    layout = wire.lay_out(first, [], _tail(message), space, Layout(b"", b"", b""))
    if message.relay != UNSPECIFIED:
        # The flag tells the relay not to try the address that the client must give up (section 4.3.2).
        payload = wire.build(message, 0x8000, Addresses(), layout)
        ends = Endpoints(offer.server_mac, datagram.link_source, offer.server, message.relay)
        return frames.build_udp4(ends, wire.PORT, wire.PORT, payload)
    payload = wire.build(message, message.flags & 0x8000, Addresses(), layout)
    ends = Endpoints(offer.server_mac, frames.BROADCAST_MAC, offer.server, LIMITED_BROADCAST)
    return frames.build_udp4(ends, wire.PORT, wire.CLIENT_PORT, payload)


def _chosen(offer: Dhcp4Offer, message: Dhcp4Message) -> list[int]:
    """Which options the client gets: those it asks for in its order, or all when it does not say.

    The mask goes first: every client needs it, and it must stand before the router (RFC 2132, section 3.3).
    """
    wanted: Iterable[int] = message.options.get(wire.WANTED, b"")
    if not wanted:
        wanted = (code for code in offer.options if code not in _ONLY_IF_WANTED)
    codes = dict.fromkeys((wire.MASK, *wanted, *offer.always))
    unlent = _OF_A_LEASE if message.type == wire.INFORM else (wire.LEASE,)
    return [code for code in codes if code in offer.options and code not in unlent]


def _destination(offer: Dhcp4Offer, datagram: Datagram, message: Dhcp4Message) -> tuple[Endpoints, int, int]:
    """Where an OFFER or an ACK goes (RFC 2131, section 4.1), from and to which port."""
    known = message.client_address
    if message.relay != UNSPECIFIED:
        # Only an INFORM's answer goes past the relay, straight to the client (section 4.3.5).
        past = message.type == wire.INFORM and known != UNSPECIFIED
        ends = Endpoints(
            offer.server_mac, datagram.link_source, offer.server, known if past else message.relay
        )
        return ends, wire.PORT, wire.CLIENT_PORT if past else wire.PORT
    link, address = message.hardware, known
    if known == UNSPECIFIED:
        broadcast = message.flags & 0x8000 or message.type == wire.INFORM
        link, address = (frames.BROADCAST_MAC, LIMITED_BROADCAST) if broadcast else (link, offer.address)
    return Endpoints(offer.server_mac, link, offer.server, address), wire.PORT, wire.CLIENT_PORT
