"""Router advertisements (RFC 4861, RFC 8106): how a guest learns its router, and to ask DHCPv6.

The prefix is on-link but not for autoconfiguration: the guest's address is the one DHCPv6 gives, no other
would pass.
"""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from typing import Final, NamedTuple

from cnvnet.guest import domains, frames
from cnvnet.guest.frames import Endpoints, Ignored, Reply
from cnvnet.guest.settings import V6, Settings

# ICMPv6 types (RFC 4861, sections 4.1 and 4.2), then the options of an advertisement (section 4.6).
SOLICITATION: Final = 133
ADVERTISEMENT: Final = 134

SOURCE_LINK: Final = 1
PREFIX: Final = 3
MTU: Final = 5
ROUTE: Final = 24  # RFC 4191
# RFC 8106, sections 5.1 and 5.2.
NAMESERVERS: Final = 25
SEARCH: Final = 31

# Seconds, the most there are (RFC 8319): the guest keeps its router for 18 hours without an advertisement.
_LIFETIME: Final = 65535
# Both flags: the guest asks by DHCPv6 for its address and for the rest (RFC 4861, section 4.2).
_MANAGED_AND_OTHER: Final = 0xC0
# What the guest puts into its own packets; Linux' own default (net.ipv6.conf.*.hop_limit).
_HOP_LIMIT: Final = 64


class RaOffer(NamedTuple):
    """One guest's router and its advertisement, encoded but for the checksum, which depends on the receiver.

    `mac` is the sender's: the router's, or ours where the guest has to ask the router for it.
    """

    mac: bytes
    router: bytes
    body: bytes


def prepare(settings: Settings) -> RaOffer | None:
    """The advertisement for checked settings; None for a guest without IPv6."""
    v6 = settings.v6
    if v6 is None or v6.router is None:
        return None
    mac = frames.mac(v6.router_mac or settings.server_mac)
    lifetime = _LIFETIME if v6.default_route else 0
    body = struct.pack("!BBHII", _HOP_LIMIT, _MANAGED_AND_OTHER, lifetime, 0, 0)
    if v6.router_mac:
        body += _option(SOURCE_LINK, mac)
    body += _option(MTU, struct.pack("!HI", 0, settings.ipv6_mtu))
    # No address depends on it: the prefix of a short lease must stay on-link between two advertisements.
    body += _prefix(v6, max(settings.lease_seconds, _LIFETIME)) + _routes(v6)
    servers = [a.packed for a in settings.nameservers if isinstance(a, IPv6Address)]
    if servers:
        body += _option(NAMESERVERS, struct.pack("!HI", 0, _LIFETIME) + b"".join(servers[:8]))
    room = settings.ipv6_mtu - 40 - 4 - len(body)
    return RaOffer(mac, v6.router.packed, body + _search(settings.search, room))


def _option(kind: int, value: bytes) -> bytes:
    """One option, padded with zeroes to whole units of eight bytes."""
    units = (2 + len(value) + 7) // 8
    return bytes((kind, units)) + value.ljust(units * 8 - 2, b"\0")


def _prefix(v6: V6, lifetime: int) -> bytes:
    """The guest's network: on-link (L) and not autonomous (A). An address alone has none."""
    network = v6.address.network
    if network.prefixlen == 128:
        return b""
    fields = struct.pack("!BBIII", network.prefixlen, 0x80, lifetime, lifetime, 0)
    return _option(PREFIX, fields + network.network_address.packed)


def _routes(v6: V6) -> bytes:
    """What else lies behind the router (RFC 4191), of medium preference."""
    data = b""
    for route in v6.routes[:16]:
        significant = route.network_address.packed[: (route.prefixlen + 63) // 64 * 8]
        data += _option(ROUTE, struct.pack("!BBI", route.prefixlen, 0, _LIFETIME) + significant)
    return data


def _search(names: tuple[str, ...], room: int) -> bytes:
    """The search list as far as it fits into `room` bytes, which no fragment may exceed (RFC 6980)."""
    for count in range(len(names), 0, -1):
        encoded = domains.encode_list(names[:count])
        data = _option(SEARCH, struct.pack("!HI", 0, _LIFETIME) + encoded) if len(encoded) < 2000 else b""
        if data and len(data) <= room:
            return data
    return b""


def advertise(offer: RaOffer) -> bytes:
    """The unsolicited advertisement to all nodes: at the start, and then every few minutes."""
    ends = Endpoints(offer.mac, frames.ALL_NODES_MAC, offer.router, frames.ALL_NODES)
    return frames.build_icmp6(ends, ADVERTISEMENT, offer.body)


def reply(offer: RaOffer, frame: bytes) -> Reply:
    """The answer to a router solicitation.

    Events: advertisement; not answered: other_traffic, malformed.
    """
    try:
        message = frames.icmp6(frame)
        if message is None or message.type != SOLICITATION:
            return Reply((), frames.OTHER_TRAFFIC)
        # RFC 4861, section 6.1.1.
        if message.hop_limit != 255 or message.code or len(message.body) < 4:
            raise Ignored
        options = frames.neighbour_options(message.body, 4)
    except Ignored as why:
        return Reply((), why.event)
    if message.source == frames.UNSPECIFIED6:
        return (
            Reply((), frames.MALFORMED)
            if SOURCE_LINK in options
            else Reply((advertise(offer),), "advertisement")
        )
    ends = Endpoints(offer.mac, message.link_source, offer.router, message.source)
    return Reply((frames.build_icmp6(ends, ADVERTISEMENT, offer.body),), "advertisement")
