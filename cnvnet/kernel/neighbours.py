"""Neighbour entries as values."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple


class Neighbour(NamedTuple):
    """An entry of the ARP or ND table; `permanent` ones never expire, `proxy` ones are answered for others."""

    ifindex: int
    address: IPv4Address | IPv6Address
    mac: str
    permanent: bool = True
    proxy: bool = False


class AddNeighbour(NamedTuple):
    """Creates or replaces."""

    neighbour: Neighbour


class DeleteNeighbour(NamedTuple):
    """ENOENT when there is none."""

    neighbour: Neighbour
