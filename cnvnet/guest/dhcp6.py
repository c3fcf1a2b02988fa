"""DHCPv6 for one guest that always gets the same address (RFC 8415, RFC 3646, RFC 4704, RFC 5908).

The guest's own address is the only one that is appropriate for its link: a client that asks for another one
gets NotOnLink.
"""

from __future__ import annotations

import struct
from ipaddress import IPv6Address, ip_address
from typing import Final, NamedTuple

from cnvnet.guest import domains, frames
from cnvnet.guest.frames import Datagram, Endpoints, Ignored, Reply
from cnvnet.guest.settings import FOREVER, Settings
from cnvnet.kernel.addresses import link_local

PORT: Final = 547
CLIENT_PORT: Final = 546
# ff02::1:2, All_DHCP_Relay_Agents_and_Servers (RFC 8415, section 7.1).
ALL_SERVERS: Final = bytes.fromhex("ff020000000000000000000000010002")

# Message types (RFC 8415, section 7.3).
SOLICIT: Final = 1
ADVERTISE: Final = 2
REQUEST: Final = 3
CONFIRM: Final = 4
RENEW: Final = 5
REBIND: Final = 6
REPLY: Final = 7
RELEASE: Final = 8
DECLINE: Final = 9
INFORMATION: Final = 11
RELAY_FORWARD: Final = 12

# RFC 8415, section 21, unless a comment names another one.
CLIENT: Final = 1
SERVER: Final = 2
IA_NA: Final = 3
IA_TA: Final = 4
ADDRESS: Final = 5
WANTED: Final = 6
PREFERENCE: Final = 7
STATUS: Final = 13
RAPID_COMMIT: Final = 14
NAMESERVERS: Final = 23  # RFC 3646
SEARCH: Final = 24
IA_PD: Final = 25
SNTP: Final = 31  # RFC 4075
REFRESH: Final = 32
FQDN: Final = 39  # RFC 4704
NTP: Final = 56  # RFC 5908

# Status codes (RFC 8415, section 21.13).
SUCCESS: Final = 0
NO_ADDRESS: Final = 2
NO_BINDING: Final = 3
NOT_ON_LINK: Final = 4
USE_MULTICAST: Final = 5
NO_PREFIX: Final = 6

# What the message must, or must not, have besides its client id (RFC 8415, section 16).
_WITH_SERVER: Final = frozenset((REQUEST, RENEW, RELEASE, DECLINE))
_WITHOUT_SERVER: Final = frozenset((SOLICIT, CONFIRM, REBIND))
_ASSIGNING: Final = frozenset((SOLICIT, REQUEST, RENEW, REBIND))

# Bytes: they bound the work that one frame can cause. No client sends as much, and section 11.1 ends a DUID
# at 130 bytes.
_LARGEST_MESSAGE: Final = 4096
_LARGEST_DUID: Final = 130
_REFRESH_SECONDS: Final = 86400  # IRT_DEFAULT
# What every answer has besides options: IP and UDP headers, type and transaction.
_OVERHEAD: Final = 40 + 8 + 4

_OPTION: Final = struct.Struct("!HH")


class Dhcp6Offer(NamedTuple):
    """What a guest gets, encoded; addresses are packed."""

    guest_mac: bytes  # b"": any
    server_mac: bytes
    server: bytes  # the link-local address answers come from
    duid: bytes
    address: bytes
    lifetime: int
    options: dict[int, bytes]  # whole options by number, ready to be sent
    search: tuple[bytes, ...]  # the names of the search list
    fqdn: bytes
    limit: int  # bytes of the largest IPv6 packet


class Dhcp6Message(NamedTuple):
    """A client's message. `associations` are its IA options in their order, as (code, value)."""

    type: int
    transaction: bytes
    options: dict[int, bytes]
    associations: tuple[tuple[int, bytes], ...]
    wanted: frozenset[int]


def option(code: int, value: bytes) -> bytes:
    """One option."""
    return _OPTION.pack(code, len(value)) + value


def prepare(settings: Settings) -> Dhcp6Offer | None:
    """The offer for checked settings; None for a guest without IPv6."""
    if settings.v6 is None:
        return None
    mac = frames.mac(settings.server_mac)
    domain = domains.main_domain(settings.search)
    name = settings.hostname
    if name and "." not in name and domain:
        name = f"{name}.{domain}"
    nameservers = b"".join(a.packed for a in settings.nameservers if isinstance(a, IPv6Address))
    options = {NAMESERVERS: option(NAMESERVERS, nameservers)} if nameservers else {}
    options.update(_time_options(settings.ntp_servers))
    return Dhcp6Offer(
        guest_mac=frames.mac(settings.guest_mac) if settings.guest_mac else b"",
        server_mac=mac,
        server=link_local(mac).packed,
        duid=b"\0\x03\0\x01" + mac,  # DUID-LL: the same on every node that serves from the same MAC address
        address=settings.v6.address.ip.packed,
        lifetime=settings.lease_seconds,
        options=options,
        search=tuple(map(domains.encode, settings.search)),
        fqdn=domains.encode(name) if name and len(name) < 254 else b"",
        limit=settings.ipv6_mtu,
    )


def _time_options(servers: tuple[str, ...]) -> dict[int, bytes]:
    """Each time server is an NTP option of its own (RFC 5908, section 4), an address or a name."""
    options: dict[int, bytes] = {}
    for server in servers:
        try:
            address = ip_address(server)
        except ValueError:
            # Suboptions of the NTP option: 1 is a server's address, 3 a server's name.
            source = option(3, domains.encode(server))
        else:
            if not isinstance(address, IPv6Address):
                continue
            source = option(1, address.packed)
            options[SNTP] = options.get(SNTP, b"") + address.packed
        options[NTP] = options.get(NTP, b"") + option(NTP, source)
    if SNTP in options:
        options[SNTP] = option(SNTP, options[SNTP])
    return options


def reply(offer: Dhcp6Offer, frame: bytes) -> Reply:
    """The answer to one frame.

    Events: advertise, reply, rapid_reply, confirm, release, decline, information, use_multicast; not
    answered: other_traffic, malformed, oversized, ignored_type, ignored_relay, other_server, other_client.
    """
    try:
        datagram = frames.udp6(frame, PORT)
        if datagram is None:
            return Reply((), frames.OTHER_TRAFFIC)
        if offer.guest_mac and datagram.link_source != offer.guest_mac:
            raise Ignored("other_client")
        # No answer could be sent to it.
        if datagram.source == frames.UNSPECIFIED6:
            raise Ignored
        if datagram.destination not in (ALL_SERVERS, offer.server):
            raise Ignored("other_server")
        message = parse(datagram.payload)
        _refuse_invalid(offer, message)
        kind, body, event = _answer(offer, datagram, message)
    except Ignored as why:
        return Reply((), why.event)
    payload = bytes((kind,)) + message.transaction + body
    if len(body) + _OVERHEAD > offer.limit:
        return Reply((), "oversized")
    ends = Endpoints(offer.server_mac, datagram.link_source, offer.server, datagram.source)
    return Reply((frames.build_udp6(ends, PORT, CLIENT_PORT, payload),), event)


def parse(payload: bytes) -> Dhcp6Message:
    """A client's message. Ignored when it is none."""
    if len(payload) > _LARGEST_MESSAGE:
        raise Ignored("oversized")
    if len(payload) < 4:
        raise Ignored
    kind = payload[0]
    if kind == RELAY_FORWARD:
        raise Ignored("ignored_relay")
    # 10 is a reconfiguration: as the two before it, a message that only servers send.
    if not (SOLICIT <= kind <= INFORMATION) or kind in (ADVERTISE, REPLY, 10):
        raise Ignored("ignored_type")
    options: dict[int, bytes] = {}
    associations: list[tuple[int, bytes]] = []
    for code, value in _options(payload, 4):
        if code in (IA_NA, IA_TA, IA_PD):
            # An IAID of four bytes, then T1 and T2, which an association of temporary addresses has not.
            if len(value) < (4 if code == IA_TA else 12):
                raise Ignored
            associations.append((code, value))
        elif code not in options:
            options[code] = value
        elif code in (CLIENT, SERVER):
            raise Ignored  # two identities
    # A DUID is a type of two bytes and something behind it.
    if not all(3 <= len(options[code]) <= _LARGEST_DUID for code in (CLIENT, SERVER) if code in options):
        raise Ignored
    wanted = options.get(WANTED, b"")
    if len(wanted) % 2:
        raise Ignored
    codes = frozenset(struct.unpack(f"!{len(wanted) // 2}H", wanted))
    return Dhcp6Message(kind, payload[1:4], options, tuple(associations), codes)


def _options(data: bytes, offset: int) -> list[tuple[int, bytes]]:
    """The options behind `offset` as (code, value)."""
    options: list[tuple[int, bytes]] = []
    end = len(data)
    while offset < end:
        if offset + 4 > end:
            raise Ignored
        code, length = _OPTION.unpack_from(data, offset)
        offset += 4 + length
        if offset > end:
            raise Ignored
        options.append((code, data[offset - length : offset]))
    return options


def _refuse_invalid(offer: Dhcp6Offer, message: Dhcp6Message) -> None:
    """Ignore what section 16 says must be discarded."""
    kind = message.type
    server = message.options.get(SERVER)
    if kind != INFORMATION and CLIENT not in message.options:
        raise Ignored
    if (server is None and kind in _WITH_SERVER) or (server is not None and kind in _WITHOUT_SERVER):
        raise Ignored
    if kind == INFORMATION and message.associations:
        raise Ignored
    if server is not None and server != offer.duid:
        raise Ignored("other_server")


def _answer(offer: Dhcp6Offer, datagram: Datagram, message: Dhcp6Message) -> tuple[int, bytes, str]:
    """The type and the body of the answer, and the event."""
    head = option(SERVER, offer.duid)
    if CLIENT in message.options:
        head += option(CLIENT, message.options[CLIENT])
    kind = message.type
    if datagram.destination != ALL_SERVERS:
        # No answer has the server unicast option, so no client may send this way (sections 16 and 18.3).
        if kind not in _WITH_SERVER:
            raise Ignored
        return REPLY, head + _status(USE_MULTICAST), "use_multicast"
    if kind == INFORMATION:
        refresh = option(REFRESH, _REFRESH_SECONDS.to_bytes(4, "big")) if REFRESH in message.wanted else b""
        return REPLY, _configured(offer, message, head + refresh), "information"
    if kind == CONFIRM:
        return REPLY, head + _confirmation(offer, message), "confirm"
    if kind in (RELEASE, DECLINE):
        return REPLY, head + _given_back(offer, message), "release" if kind == RELEASE else "decline"
    body = head + _leases(offer, message)
    if kind != SOLICIT:
        return REPLY, _configured(offer, message, body), "reply"
    if RAPID_COMMIT in message.options:
        return REPLY, _configured(offer, message, body + option(RAPID_COMMIT, b"")), "rapid_reply"
    # The highest preference: there is no other server a client should wait a second for (section 18.2.1).
    return ADVERTISE, _configured(offer, message, body + option(PREFERENCE, b"\xff")), "advertise"


def _status(code: int) -> bytes:
    return option(STATUS, code.to_bytes(2, "big"))


def _addresses(code: int, value: bytes) -> list[bytes]:
    """The addresses in an IA_NA or IA_TA."""
    items = [item for kind, item in _options(value, 4 if code == IA_TA else 12) if kind == ADDRESS]
    # The address, its preferred and its valid lifetime: 16, 4 and 4 bytes (section 21.6).
    if not all(len(item) >= 24 for item in items):
        raise Ignored
    return [item[:16] for item in items]


def _leases(offer: Dhcp6Offer, message: Dhcp6Message) -> bytes:
    """An answer to each IA: the guest's address for the first IA_NA, and a reason why not for any other."""
    data = b""
    given = False
    for code, value in message.associations:
        if code == IA_NA and not given:
            given = True
            data += _lease(offer, message, value)
        else:
            data += _refused(code, value, NO_PREFIX if code == IA_PD else NO_ADDRESS)
    return data


def _refused(code: int, value: bytes, status: int) -> bytes:
    """An IA with nothing in it but the reason. IA_TA has no times."""
    times = b"" if code == IA_TA else bytes(8)
    return option(code, value[:4] + times + _status(status))


def _lease(offer: Dhcp6Offer, message: Dhcp6Message, value: bytes) -> bytes:
    """The one IA_NA that gets the address."""
    # BusyBox's client that has given its address back asks for "::" from then on, with Request too.
    theirs = (offer.address, frames.UNSPECIFIED6)
    foreign = [address for address in _addresses(IA_NA, value) if address not in theirs]
    if foreign and message.type == REQUEST:
        return _refused(IA_NA, value, NOT_ON_LINK)  # section 18.3.2
    items = option(ADDRESS, offer.address + struct.pack("!II", offer.lifetime, offer.lifetime))
    if message.type in (RENEW, REBIND):
        # What the client must stop using comes back with no time left (section 18.3.4 and 18.3.5).
        items += b"".join(option(ADDRESS, address + bytes(8)) for address in dict.fromkeys(foreign))
    times = struct.pack("!II", *renewal_times(offer.lifetime))
    return option(IA_NA, value[:4] + times + items)


def renewal_times(lifetime: int) -> tuple[int, int]:
    """T1 and T2 as RFC 8415 section 21.4 recommends them; what lasts for ever is never renewed."""
    if lifetime == FOREVER:
        return FOREVER, FOREVER
    return lifetime // 2, lifetime * 4 // 5


def _confirmation(offer: Dhcp6Offer, message: Dhcp6Message) -> bytes:
    """Whether the client can keep all its addresses. Without any there is no answer (section 18.3.3)."""
    addresses = [a for code, value in message.associations if code != IA_PD for a in _addresses(code, value)]
    if not addresses:
        raise Ignored
    return _status(SUCCESS if all(a == offer.address for a in addresses) else NOT_ON_LINK)


def _given_back(offer: Dhcp6Offer, message: Dhcp6Message) -> bytes:
    """Success, and NoBinding for each IA that this server has not given (sections 18.3.7 and 18.3.8)."""
    data = _status(SUCCESS)
    for code, value in message.associations:
        if code != IA_NA or any(address != offer.address for address in _addresses(code, value)):
            data += _refused(code, value, NO_BINDING)
    return data


def _configured(offer: Dhcp6Offer, message: Dhcp6Message, body: bytes) -> bytes:
    """An answer with the other options behind it, as far as a packet has room.

    They are those asked for, or DNS for a client that does not say what it wants. The address goes before
    any of them.
    """
    wanted = message.wanted if WANTED in message.options else (NAMESERVERS, SEARCH)
    chosen = [encoded for code, encoded in offer.options.items() if code in wanted]
    theirs = message.options.get(FQDN)
    if theirs and offer.fqdn and FQDN in wanted and message.type in _ASSIGNING:
        # The server makes no DNS updates (N), and says so to a client that asked for them (O): RFC 4704,
        # section 6.
        chosen.append(option(FQDN, bytes((4 | (2 if theirs[0] & 1 else 0),)) + offer.fqdn))
    room = offer.limit - _OVERHEAD
    for encoded in chosen:
        if len(body) + len(encoded) <= room:
            body += encoded
    return body + _search(offer, room - len(body)) if SEARCH in wanted else body


def _search(offer: Dhcp6Offer, room: int) -> bytes:
    """The search list as far as it fits into `room` bytes: a resolver tries the first names first."""
    data = b""
    for name in offer.search:
        if 4 + len(data) + len(name) > room:
            break
        data += name
    return option(SEARCH, data) if data else b""
