"""Addresses of links as values, and their messages.

Packed with `struct`, because every layer-3 ADD adds and reads some; tests compare each message with
pyroute2's.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from socket import AF_INET, AF_INET6
from typing import Final, NamedTuple

from cnvnet.kernel.netlink import CREATE, EXCL, HEADER_SIZE, NetlinkMessage, attribute, attributes
from cnvnet.kernel.rtnetlink import (
    IFA_ADDRESS,
    IFA_F_NODAD,
    IFA_FLAGS,
    IFA_LOCAL,
    IFA_PROTO,
    IFADDR,
    RTM_NEWADDR,
    SCOPE_GLOBAL,
    SCOPE_HOST,
    SCOPE_LINK,
    U32,
)

# From rtnetlink.h and if_addr.h in include/uapi/linux.
_RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
_IFA_BROADCAST: Final = 4
_IFA_F_DADFAILED: Final = 0x08
_IFA_F_TENTATIVE: Final = 0x40
_IFA_F_PERMANENT: Final = 0x80
_IFA_F_NOPREFIXROUTE: Final = 0x200
# The MTU that a network must have at least to carry a version of IP: every host takes packets of that size
# (RFC 791; RFC 8200, section 5, and with less the kernel does not speak IPv6 on a link).
MIN_IPV4_MTU: Final = 576
MIN_IPV6_MTU: Final = 1280


class Address(NamedTuple):
    """An address as the kernel reports it. `scope` is the kernel's number (0 global, 253 link, 254 host)."""

    ifindex: int
    address: IPv4Interface | IPv6Interface
    scope: int = 0
    # Duplicate address detection is still running, or has found another host with the address.
    tentative: bool = False
    dad_failed: bool = False
    # False: it has a lifetime, as those of router advertisements.
    permanent: bool = True
    # It came without the route to its network.
    noprefixroute: bool = False
    # Which program added it (IFAPROT_*); 0 where that program did not say.
    proto: int = 0
    broadcast: IPv4Address | None = None
    # The other end of a point-to-point link.
    peer: IPv4Address | IPv6Address | None = None


class AddAddress(NamedTuple):
    """Gives a link an address.

    EEXIST when the link has it; ENODEV when there is no such link, EACCES when IPv6 is switched off on it.
    `nodad` skips duplicate address detection of an IPv6 address. An IPv4 address gets the broadcast address
    of its network, and a loopback one the scope host, as `ip` and the reference plugins do it.
    """

    ifindex: int
    address: IPv4Interface | IPv6Interface
    nodad: bool = False


class DeleteAddress(NamedTuple):
    """EADDRNOTAVAIL when the link does not have it, ENODEV when there is no such link."""

    ifindex: int
    address: IPv4Interface | IPv6Interface
    peer: IPv4Address | IPv6Address | None = None


def query(ifindex: int = 0) -> NetlinkMessage:
    """Asks for the addresses of one link, or of all."""
    return NetlinkMessage(_RTM_GETADDR, 0, IFADDR.pack(0, 0, 0, 0, ifindex))


def encode_add(wanted: AddAddress) -> NetlinkMessage:
    """RTM_NEWADDR."""
    address = wanted.address
    packed = address.ip.packed
    flags = IFA_F_NODAD if wanted.nodad and address.version == 6 else 0
    body = _header(address, wanted.ifindex, flags) + attribute(IFA_LOCAL, packed)
    body += attribute(IFA_ADDRESS, packed)
    if isinstance(address, IPv4Interface) and address.network.prefixlen < 31:
        body += attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return NetlinkMessage(RTM_NEWADDR, CREATE | EXCL, body)


def encode(address: Address) -> NetlinkMessage:
    """RTM_NEWADDR of an address as the kernel would report it, without its state."""
    interface = address.address
    flags = _IFA_F_PERMANENT if address.permanent else 0
    flags |= _IFA_F_NOPREFIXROUTE if address.noprefixroute else 0
    family = AF_INET if interface.version == 4 else AF_INET6
    body = IFADDR.pack(family, interface.network.prefixlen, flags & 0xFF, address.scope, address.ifindex)
    body += attribute(IFA_LOCAL, interface.ip.packed)
    body += attribute(IFA_ADDRESS, (address.peer or interface.ip).packed)
    if address.broadcast is not None:
        body += attribute(_IFA_BROADCAST, address.broadcast.packed)
    body += attribute(IFA_FLAGS, U32.pack(flags))
    if address.proto:
        body += attribute(IFA_PROTO, bytes([address.proto]))
    return NetlinkMessage(RTM_NEWADDR, CREATE | EXCL, body)


def encode_delete(wanted: DeleteAddress) -> NetlinkMessage:
    """RTM_DELADDR."""
    packed = wanted.address.ip.packed
    body = _header(wanted.address, wanted.ifindex, 0) + attribute(IFA_LOCAL, packed)
    return NetlinkMessage(
        _RTM_DELADDR, 0, body + attribute(IFA_ADDRESS, (wanted.peer or wanted.address.ip).packed)
    )


def decode(raw: bytes) -> Address | None:
    """The address in an RTM_NEWADDR message; None for families other than IP."""
    family, prefixlen, flags, scope, ifindex = IFADDR.unpack_from(raw, HEADER_SIZE)
    attrs = attributes(raw, HEADER_SIZE + IFADDR.size)
    # IFA_ADDRESS of a point-to-point link is the other end; IPv6 has no IFA_LOCAL otherwise.
    packed = attrs.get(IFA_LOCAL) or attrs.get(IFA_ADDRESS)
    if packed is None or family not in (AF_INET, AF_INET6):
        return None
    if IFA_FLAGS in attrs:
        flags = U32.unpack(attrs[IFA_FLAGS])[0]
    address = IPv4Interface((packed, prefixlen)) if family == AF_INET else IPv6Interface((packed, prefixlen))
    far = attrs.get(IFA_ADDRESS, packed)
    return Address(
        ifindex=ifindex,
        address=address,
        scope=scope,
        tentative=bool(flags & _IFA_F_TENTATIVE),
        dad_failed=bool(flags & _IFA_F_DADFAILED),
        permanent=bool(flags & _IFA_F_PERMANENT),
        noprefixroute=bool(flags & _IFA_F_NOPREFIXROUTE),
        proto=attrs.get(IFA_PROTO, b"\0")[0],
        broadcast=IPv4Address(attrs[_IFA_BROADCAST]) if _IFA_BROADCAST in attrs else None,
        peer=ip_address(far) if far != packed else None,
    )


def scope_of(address: IPv4Interface | IPv6Interface) -> int:
    """The scope a new address gets; IPv6's is the kernel's own rule."""
    if address.is_loopback:
        return SCOPE_HOST
    return SCOPE_LINK if address.version == 6 and address.is_link_local else SCOPE_GLOBAL


def link_local(mac: bytes) -> IPv6Address:
    """The address that a host forms from its MAC address (RFC 4291, appendix A)."""
    identifier = bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + identifier)


def _header(address: IPv4Interface | IPv6Interface, ifindex: int, flags: int) -> bytes:
    family = AF_INET if address.version == 4 else AF_INET6
    return IFADDR.pack(family, address.network.prefixlen, flags, scope_of(address), ifindex)
