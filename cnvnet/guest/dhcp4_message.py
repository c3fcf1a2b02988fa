"""The DHCPv4 message (RFC 2131, RFC 2132): read with every check, and its options laid out for sending."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from cnvnet.guest import frames
from cnvnet.guest.frames import Ignored
from cnvnet.guest.settings import GuestRoute

PORT: Final = 67
CLIENT_PORT: Final = 68

# RFC 2132 unless a comment names another one.
MASK: Final = 1
ROUTER: Final = 3
NAMESERVERS: Final = 6
HOSTNAME: Final = 12
DOMAIN: Final = 15
MTU: Final = 26
BROADCAST: Final = 28
NTP: Final = 42
REQUESTED_ADDRESS: Final = 50
LEASE: Final = 51
OVERLOAD: Final = 52
TYPE: Final = 53
SERVER: Final = 54
WANTED: Final = 55
MESSAGE: Final = 56
MAX_SIZE: Final = 57
RENEWAL: Final = 58
REBINDING: Final = 59
CLIENT: Final = 61
TFTP_SERVER: Final = 66
BOOT_FILE: Final = 67
RELAY: Final = 82  # RFC 3046
SEARCH: Final = 119  # RFC 3397
ROUTES: Final = 121  # RFC 3442
MS_ROUTES: Final = 249  # MS-DHCPE 2.2.8: the same bytes under the number Windows used first

# Values of option 53, the message type (RFC 2132, section 9.6).
DISCOVER: Final = 1
OFFER: Final = 2
REQUEST: Final = 3
DECLINE: Final = 4
ACK: Final = 5
NAK: Final = 6
RELEASE: Final = 7
INFORM: Final = 8
FROM_CLIENT: Final = frozenset((DISCOVER, REQUEST, DECLINE, RELEASE, INFORM))

# A client is not bound to accept an IP datagram of more than 576 bytes (RFC 2131, section 2); BOOTP's 300
# bytes are the least some relays and firmware accept.
LEAST_DATAGRAM: Final = 576
_LEAST_MESSAGE: Final = 300
# What every message has besides options: IP and UDP headers, the fixed fields, the cookie.
OVERHEAD: Final = 20 + 8 + 240
# Bytes: no client sends as much. It bounds the work that a guest can cause with one frame.
_LARGEST_MESSAGE: Final = 4096

UNSPECIFIED: Final = bytes(4)  # 0.0.0.0
LIMITED_BROADCAST: Final = b"\xff" * 4
# 99.130.83.99: what follows are options of DHCP, and no vendor's area of plain BOOTP (RFC 2131, section 3).
_COOKIE: Final = b"\x63\x82\x53\x63"
# RFC 2131, section 2: op to hops, xid, secs, flags, four addresses, and chaddr with the MAC in 6 of its 16
# bytes. `sname` (64 bytes) and `file` (128) follow.
_HEADER: Final = struct.Struct("!BBBB4sHH4s4s4s4s6s10x")
_END: Final = b"\xff"
# Options of one length only: another one makes the message malformed.
_LENGTHS: Final = {REQUESTED_ADDRESS: 4, OVERLOAD: 1, TYPE: 1, SERVER: 4, MAX_SIZE: 2}


class Dhcp4Message(NamedTuple):
    """A client's message as far as a server needs it."""

    xid: bytes
    flags: int
    client_address: bytes
    relay: bytes
    hardware: bytes
    type: int
    options: Mapping[int, bytes]

    @property
    def limit(self) -> int:
        """The largest IP datagram that the client takes (option 57)."""
        return max(int.from_bytes(self.options.get(MAX_SIZE, b""), "big"), LEAST_DATAGRAM)


# One option as it is sent, and shorter ways to say less of the same, the longest first.
Forms = tuple[bytes, ...]


class Layout(NamedTuple):
    """The three places of an answer that can hold options."""

    options: bytes
    file: bytes
    name: bytes


class Addresses(NamedTuple):
    """The address fields of an answer besides the relay's."""

    client: bytes = UNSPECIFIED
    yours: bytes = UNSPECIFIED
    next_server: bytes = UNSPECIFIED


def build(message: Dhcp4Message, flags: int, addresses: Addresses, layout: Layout) -> bytes:
    """The answer to `message`, ready for UDP."""
    header = _HEADER.pack(2, 1, 6, 0, message.xid, 0, flags, *addresses, message.relay, message.hardware)
    fields = layout.name.ljust(64, b"\0") + layout.file.ljust(128, b"\0")
    return (header + fields + _COOKIE + layout.options).ljust(_LEAST_MESSAGE, b"\0")


def option(code: int, value: bytes) -> bytes:
    """One option; a value of more than 255 bytes becomes several that the client joins again (RFC 3396)."""
    pieces = (value[start : start + 255] for start in range(0, len(value), 255))
    return b"".join(bytes((code, len(piece))) + piece for piece in pieces)


def encode_routes(routes: Iterable[GuestRoute]) -> bytes:
    """Routes as RFC 3442 has them: prefix length, the bytes of the destination that count, gateway."""
    data = b""
    for destination, gateway in routes:
        length = destination.prefixlen
        significant = destination.network_address.packed[: (length + 7) // 8]
        data += bytes((length,)) + significant + (gateway.packed if gateway else UNSPECIFIED)
    return data


def parse(payload: bytes) -> Dhcp4Message:
    """A client's message. Ignored when it is none."""
    if len(payload) > _LARGEST_MESSAGE:
        raise Ignored("oversized")
    if len(payload) < 236:
        raise Ignored
    op, link, length, _, xid, _, flags, client, _, _, relay, hardware = _HEADER.unpack_from(payload)
    if op != 1:
        raise Ignored("ignored_type")  # an answer: the guest itself runs a server
    if (
        link != 1
        or length != 6
        or not frames.is_station(hardware)
        or not is_host(client)
        or not is_host(relay)
    ):
        raise Ignored
    if payload[236:240] != _COOKIE:
        raise Ignored("ignored_bootp")
    options = _parse_options(payload)
    if TYPE not in options:
        raise Ignored("ignored_bootp")
    kind = options[TYPE][0]
    if kind not in FROM_CLIENT:
        raise Ignored("ignored_type")
    return Dhcp4Message(xid, flags, client, relay, hardware, kind, options)


def is_host(address: bytes) -> bool:
    """Whether an address of the header is one of a host's, or all zero for none."""
    return address == UNSPECIFIED or (0 < address[0] < 224 and address[0] != 127)


def _parse_options(payload: bytes) -> dict[int, bytes]:
    """The options by number. Those given several times are joined, over all three places (RFC 3396)."""
    options: dict[int, bytes] = {}
    # The cookie ends at 240. Option 52 says that `file` (1), `sname` (2) or both (3) have more options.
    _read_options(payload, 240, len(payload), options)
    if OVERLOAD in options:
        where = options[OVERLOAD][0] if len(options[OVERLOAD]) == 1 else 0
        if where & 1:
            _read_options(payload, 108, 236, options)
        if where & 2:
            _read_options(payload, 44, 108, options)
    for code, length in _LENGTHS.items():
        if code in options and len(options[code]) != length:
            raise Ignored
    if len(options.get(CLIENT, b"")) > 255 or len(options.get(RELAY, b"")) > 255:
        raise Ignored  # we could not echo it
    return options


def _read_options(payload: bytes, offset: int, end: int, options: dict[int, bytes]) -> None:
    while offset < end:
        code = payload[offset]
        if code == 255:
            return
        offset += 1
        if code == 0:
            continue
        if offset >= end or offset + 1 + payload[offset] > end:
            raise Ignored
        value = payload[offset + 1 : offset + 1 + payload[offset]]
        offset += 1 + len(value)
        options[code] = options[code] + value if code in options else value


def lay_out(first: bytes, chosen: list[Forms], last: bytes, space: int, text: Layout) -> Layout:
    """`first`, as many of the chosen options as go in, and `last`, with `text` in the header's text fields.

    What finds no room in `space` bytes is put where a text field is not in use (option 52), and left out
    whole when it does not fit there either: a client names first what it needs most. What has shorter forms
    gets by with one of them, in the room that all others have left.
    """
    if len(first) + len(last) + 4 > space:
        last = b""  # the options of the lease matter more than an echo
    together = b"".join(forms[0] for forms in chosen)
    if len(first) + len(together) + len(last) + 1 <= space:
        return text._replace(options=first + together + last + _END)
    # The options field gives three bytes to option 52; the places of file and sname are that option's bits.
    room = [space - len(first) - len(last) - 4, 0 if text.file else 127, 0 if text.name else 63]
    places = [b"", b"", b""]
    shorter = [forms[1:] for forms in chosen if not _put(forms[:1], places, room)]
    for forms in shorter:
        _put(forms, places, room)
    overload = (1 if places[1] else 0) | (2 if places[2] else 0)
    middle = bytes((OVERLOAD, 1, overload)) if overload else b""
    return Layout(
        first + middle + places[0] + last + _END,
        places[1] + _END if places[1] else text.file,
        places[2] + _END if places[2] else text.name,
    )


def _put(forms: Forms, places: list[bytes], room: list[int]) -> bool:
    """Puts the first of these that fits anywhere where it fits. False: none does."""
    for form in forms:
        for place in range(3):
            # An option in several pieces stays in one place, for not every client joins them across fields.
            if len(form) <= room[place]:
                places[place] += form
                room[place] -= len(form)
                return True
    return False
