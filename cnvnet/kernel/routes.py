"""Routes as values."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

MAIN_TABLE = 254


class Route(NamedTuple):
    """A unicast route. `gw` None is on-link; `scope` None lets the kernel's usual rule decide (link if no gw)."""

    dst: IPv4Network | IPv6Network
    ifindex: int
    gw: IPv4Address | IPv6Address | None = None
    table: int = MAIN_TABLE
    priority: int = 0
    scope: int | None = None
    mtu: int = 0
    advmss: int = 0
    onlink: bool = False
    protocol: int = 0


class AddRoute(NamedTuple):
    """`append` adds a further next hop to an existing destination instead of refusing it (ECMP)."""

    route: Route
    append: bool = False


class DeleteRoute(NamedTuple):
    """ESRCH when there is none."""

    route: Route
