"""Addresses of links as values, and their messages.

Packed by hand because every layer-3 ADD adds and reads some; the tests hold each message against pyroute2's.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from socket import AF_INET, AF_INET6
from typing import Final, NamedTuple

from cnvnet.kernel.netlink import CREATE, EXCL, HEADER_SIZE, Message, attribute, attributes

# include/uapi/linux/{rtnetlink,if_addr}.h
RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_BROADCAST: Final = 4
_IFA_FLAGS: Final = 8
_IFA_PROTO: Final = 11
_IFA_F_NODAD: Final = 0x02
_IFA_F_DADFAILED: Final = 0x08
_IFA_F_TENTATIVE: Final = 0x40
_IFA_F_PERMANENT: Final = 0x80
_IFA_F_NOPREFIXROUTE: Final = 0x200
SCOPE_GLOBAL: Final = 0
SCOPE_LINK: Final = 253
SCOPE_HOST: Final = 254

_IFADDR: Final = struct.Struct("=BBBBI")
_U32: Final = struct.Struct("=I")


class Address(NamedTuple):
    """An address as the kernel reports it. `scope` is the kernel's number (0 global, 253 link, 254 host).

    One that is not `permanent` has a lifetime, as those of router advertisements. `proto` says who made it
    (IFAPROT_*, 0 where nobody said), `peer` is the other end of a point-to-point link. `noprefixroute`: it
    came without the route to its network.
    """

    ifindex: int
    address: IPv4Interface | IPv6Interface
    scope: int = 0
    tentative: bool = False
    dad_failed: bool = False
    permanent: bool = True
    noprefixroute: bool = False
    proto: int = 0
    broadcast: IPv4Address | None = None
    peer: IPv4Address | IPv6Address | None = None


class AddAddress(NamedTuple):
    """EEXIST when the link has it; ENODEV when there is no such link, EACCES when IPv6 is switched off on
    it.

    `nodad` skips duplicate address detection of an IPv6 address. An IPv4 address gets the broadcast
    address of its network, and a loopback one the scope host, as `ip` and the reference plugins do it.
    """

    ifindex: int
    address: IPv4Interface | IPv6Interface
    nodad: bool = False


class DeleteAddress(NamedTuple):
    """EADDRNOTAVAIL when the link does not have it, ENODEV when there is no such link."""

    ifindex: int
    address: IPv4Interface | IPv6Interface
    peer: IPv4Address | IPv6Address | None = None


def query(ifindex: int = 0) -> Message:
    """Asks for the addresses of one link, or of all."""
    return Message(_RTM_GETADDR, 0, _IFADDR.pack(0, 0, 0, 0, ifindex))


def encode_add(wanted: AddAddress) -> Message:
    """RTM_NEWADDR."""
    address = wanted.address
    packed = address.ip.packed
    flags = _IFA_F_NODAD if wanted.nodad and address.version == 6 else 0
    body = _header(address, wanted.ifindex, flags) + attribute(_IFA_LOCAL, packed)
    body += attribute(_IFA_ADDRESS, packed)
    if isinstance(address, IPv4Interface) and address.network.prefixlen < 31:
        body += attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return Message(RTM_NEWADDR, CREATE | EXCL, body)


def encode(address: Address) -> Message:
    """RTM_NEWADDR: an address as the kernel would report it, but for its state."""
    found = address.address
    flags = _IFA_F_PERMANENT if address.permanent else 0
    flags |= _IFA_F_NOPREFIXROUTE if address.noprefixroute else 0
    family = AF_INET if found.version == 4 else AF_INET6
    body = _IFADDR.pack(family, found.network.prefixlen, flags & 0xFF, address.scope, address.ifindex)
    body += attribute(_IFA_LOCAL, found.ip.packed)
    body += attribute(_IFA_ADDRESS, (address.peer or found.ip).packed)
    if address.broadcast is not None:
        body += attribute(_IFA_BROADCAST, address.broadcast.packed)
    body += attribute(_IFA_FLAGS, _U32.pack(flags))
    if address.proto:
        body += attribute(_IFA_PROTO, bytes([address.proto]))
    return Message(RTM_NEWADDR, CREATE | EXCL, body)


def encode_delete(wanted: DeleteAddress) -> Message:
    """RTM_DELADDR."""
    packed = wanted.address.ip.packed
    body = _header(wanted.address, wanted.ifindex, 0) + attribute(_IFA_LOCAL, packed)
    return Message(
        _RTM_DELADDR, 0, body + attribute(_IFA_ADDRESS, (wanted.peer or wanted.address.ip).packed)
    )


def decode(raw: bytes) -> Address | None:
    """The address in an RTM_NEWADDR message; None for families other than IP."""
    family, prefixlen, flags, scope, ifindex = _IFADDR.unpack_from(raw, HEADER_SIZE)
    found = attributes(raw, HEADER_SIZE + _IFADDR.size)
    # IFA_ADDRESS of a point-to-point link is the other end; IPv6 has no IFA_LOCAL otherwise.
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None or family not in (AF_INET, AF_INET6):
        return None
    if _IFA_FLAGS in found:
        flags = _U32.unpack(found[_IFA_FLAGS])[0]
    address = IPv4Interface((packed, prefixlen)) if family == AF_INET else IPv6Interface((packed, prefixlen))
    far = found.get(_IFA_ADDRESS, packed)
    return Address(
        ifindex=ifindex,
        address=address,
        scope=scope,
        tentative=bool(flags & _IFA_F_TENTATIVE),
        dad_failed=bool(flags & _IFA_F_DADFAILED),
        permanent=bool(flags & _IFA_F_PERMANENT),
        noprefixroute=bool(flags & _IFA_F_NOPREFIXROUTE),
        proto=found.get(_IFA_PROTO, b"\0")[0],
        broadcast=IPv4Address(found[_IFA_BROADCAST]) if _IFA_BROADCAST in found else None,
        peer=ip_address(far) if far != packed else None,
    )


def scope_of(address: IPv4Interface | IPv6Interface) -> int:
    """The scope a new address gets; IPv6's is the kernel's own rule."""
    if address.is_loopback:
        return SCOPE_HOST
    return SCOPE_LINK if address.version == 6 and address.is_link_local else SCOPE_GLOBAL


def _header(address: IPv4Interface | IPv6Interface, ifindex: int, flags: int) -> bytes:
    family = AF_INET if address.version == 4 else AF_INET6
    return _IFADDR.pack(family, address.network.prefixlen, flags, scope_of(address), ifindex)
