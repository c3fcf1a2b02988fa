"""Addresses of links as values."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface
from typing import NamedTuple


class Address(NamedTuple):
    """An address as the kernel reports it. `scope` is the kernel's number (0 global, 253 link, 254 host)."""

    ifindex: int
    address: IPv4Interface | IPv6Interface
    scope: int = 0
    tentative: bool = False
    dad_failed: bool = False


class AddAddress(NamedTuple):
    """EEXIST when the link has it. `nodad` skips duplicate address detection of an IPv6 address."""

    ifindex: int
    address: IPv4Interface | IPv6Interface
    nodad: bool = False


class DeleteAddress(NamedTuple):
    """EADDRNOTAVAIL when the link does not have it."""

    ifindex: int
    address: IPv4Interface | IPv6Interface
