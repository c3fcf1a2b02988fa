"""ARP (RFC 826) and neighbour discovery (RFC 4861) for addresses that no host behind the tap answers for.

These are next hops whose MAC address the pod knew from permanent neighbour entries only (AWS VPC CNI's
169.254.1.1), a DHCP server id outside the guest's subnet, which Windows asks for before it renews, and a
router of another MAC.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from cnvnet.guest import frames
from cnvnet.guest.frames import Endpoints, Ignored, Reply
from cnvnet.guest.settings import Settings
from cnvnet.kernel.addresses import link_local

# ICMPv6 types and options of neighbour discovery (RFC 4861, sections 4.3, 4.4 and 4.6.1).
SOLICITATION: Final = 135
ADVERTISEMENT: Final = 136
SOURCE_LINK: Final = 1
TARGET_LINK: Final = 2

# RFC 826: hardware and protocol type, their lengths, the operation, then sender and target, MAC and address.
_ARP: Final = struct.Struct("!HHBBH6s4s6s4s")
# Flags of an advertisement. A guest drops a router that answers without the first (RFC 4861, section 7.2.5).
_ROUTER: Final = 0x80
_SOLICITED: Final = 0x40
# The group of an address is this prefix and the address's last three bytes (RFC 4291, section 2.7.1).
_SOLICITED_NODE: Final = bytes.fromhex("ff0200000000000000000001ff")


class Neighbours(NamedTuple):
    """MAC addresses by packed address, IPv4 and IPv6 together; the guest's own are never among them."""

    known: Mapping[bytes, bytes]


def prepare(settings: Settings) -> Neighbours:
    """The addresses to answer for, from checked settings."""
    known = {n.address.packed: frames.mac(n.mac) for n in settings.neighbours}
    guest: set[bytes] = set()
    if settings.v4 is not None:
        guest.add(settings.v4.address.ip.packed)
        if settings.v4.server not in settings.v4.address.network:
            known.setdefault(settings.v4.server.packed, frames.mac(settings.server_mac))
    if settings.v6 is not None:
        guest.add(settings.v6.address.ip.packed)
        router = settings.v6.router
        # The owner of server_mac is a link of the pod, whose kernel answers for the address made from it.
        own = link_local(frames.mac(settings.server_mac)).packed
        if router is not None and settings.v6.router_mac and router.packed != own:
            known.setdefault(router.packed, frames.mac(settings.v6.router_mac))
    return Neighbours({address: mac for address, mac in known.items() if address not in guest})


def reply(neighbours: Neighbours, frame: bytes) -> Reply:
    """The answer to an ARP request.

    Events: arp_reply; not answered: other_traffic, malformed, not_ours.
    """
    if frame[12:14] != frames.ETHERTYPE_ARP:
        return Reply((), frames.OTHER_TRAFFIC)
    if len(frame) < 42 or not frames.is_station(frame[6:12]):
        return Reply((), frames.MALFORMED)
    link, protocol, *lengths, operation, sender_mac, sender, _, target = _ARP.unpack_from(frame, 14)
    if (link, protocol, lengths) != (1, 0x0800, [6, 4]) or not frames.is_station(sender_mac):
        return Reply((), frames.MALFORMED)
    mac = neighbours.known.get(target)
    # Equal sender and target: the guest announces its own address.
    if operation != 1 or mac is None or sender == target:
        return Reply((), "not_ours")
    answer = _ARP.pack(1, 0x0800, 6, 4, 2, mac, target, sender_mac, sender)
    return Reply((sender_mac + mac + frames.ETHERTYPE_ARP + answer,), "arp_reply")


def reply6(neighbours: Neighbours, frame: bytes) -> Reply:
    """The answer to a neighbour solicitation.

    Events: nd_reply; not answered: other_traffic, malformed, not_ours.
    """
    try:
        message = frames.icmp6(frame)
        if message is None or message.type != SOLICITATION:
            return Reply((), frames.OTHER_TRAFFIC)
        target = _solicited(message)
    except Ignored as why:
        return Reply((), why.event)
    mac = neighbours.known.get(target)
    if mac is None:
        return Reply((), "not_ours")
    # A next hop is a router by definition: without the R flag the guest would drop it from its list. No O
    # flag, as for proxies (section 7.2.8): what the address' owner itself says is not overridden.
    flags = _ROUTER | _SOLICITED
    receiver, link = message.source, message.link_source
    if receiver == frames.UNSPECIFIED6:
        flags, receiver, link = _ROUTER, frames.ALL_NODES, frames.ALL_NODES_MAC
    body = struct.pack("!B3x", flags) + target + bytes((TARGET_LINK, 1)) + mac
    return Reply(
        (frames.build_icmp6(Endpoints(mac, link, target, receiver), ADVERTISEMENT, body),), "nd_reply"
    )


def _solicited(message: frames.Icmp6) -> bytes:
    """The target of a valid neighbour solicitation (RFC 4861, section 7.1.1)."""
    body = message.body
    if message.hop_limit != 255 or message.code or len(body) < 20:
        raise Ignored
    target = body[4:20]
    options = frames.neighbour_options(body, 20)
    if target[0] == 0xFF:
        raise Ignored
    if message.source == frames.UNSPECIFIED6 and (
        SOURCE_LINK in options or message.destination[:13] != _SOLICITED_NODE
    ):
        raise Ignored
    return target
