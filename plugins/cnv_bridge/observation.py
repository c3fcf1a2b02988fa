"""What the kernel has of the attachments that the records tell of: for people, changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from cnvnet.attachment.record import Key, Record
from cnvnet.kernel.links import Link
from cnvnet.kernel.nft import tables as kernel_nft
from cnvnet.kernel.nft.tables import Element
from cnvnet.kernel.stack import Kernel
from cnvnet.plugins.cnv_bridge import guards
from cnvnet.plugins.cnv_bridge.state import PortState, is_port

# States of a port beside the kernel's own.
UP: Final = "up"
DOWN: Final = "down"
NO_CARRIER: Final = "no-carrier"
MISSING: Final = "missing"

# A counter of the guards' table for frames that nothing was said against.
_NO_DROP: Final = "passed_other"
# The set that says a port is guarded, and the configuration's key for it.
_GUARDS: Final = {
    "mac_ports": "macspoofchk",
    "ip_ports": "ipspoofchk",
    "dhcp_ports": "dhcpGuard",
    "ra_ports": "raGuard",
}


class ObservedPort(NamedTuple):
    """The host's end of an attachment; `mac` is that of the other end, `bridge` "" when it is on none.

    `guards` are the configuration's keys that ADD was given, `unguarded` the elements that the kernel lacks.
    """

    name: str
    mac: str
    state: str
    bridge: str
    guards: tuple[str, ...]
    unguarded: tuple[Element, ...]


class ObservedTable(NamedTuple):
    """The nftables table of the guards: whether it is whole, and the chain of a newer program in it."""

    loaded: bool
    newer: str


class Observation(NamedTuple):
    """`ports` has those of the records that name one."""

    ports: Mapping[Key, ObservedPort]
    table: ObservedTable


def observe(kernel: Kernel, records: Sequence[Record]) -> Observation:
    """Compares cnv-bridge's records of this boot with the kernel of the call's namespace. Raises OSError."""
    left = {record.key: PortState.of(record) for record in records}
    wanted = [element for each in left.values() for element in each.elements]
    with kernel.nft() as nft:
        newer = kernel_nft.newer(nft, guards.FAMILY, guards.TABLE, guards.VERSION)
        table = ObservedTable(guards.loaded(nft), newer)
        lost = frozenset(nft.missing(wanted)) if wanted else frozenset[Element]()
    with kernel.stack() as host:
        links = host.links()
    named = {link.name: link for link in links}
    bridges = {link.ifindex: link.name for link in links}
    ports = {key: _port(each, named, bridges, lost) for key, each in left.items() if each.host}
    return Observation(ports, table)


def drops(kernel: Kernel) -> dict[str, int]:
    """Frames that the guards have dropped since their table was loaded, by reason. Raises OSError."""
    with kernel.nft() as nft:
        counters = nft.counters(guards.FAMILY, guards.TABLE)
    return {reason: packets for reason, packets in counters.items() if reason != _NO_DROP}


def _port(
    left: PortState, links: Mapping[str, Link], bridges: Mapping[int, str], lost: frozenset[Element]
) -> ObservedPort:
    link = links.get(left.host)
    if link is not None and not is_port(link, left):
        link = None
    return ObservedPort(
        name=left.host,
        mac=left.container_mac,
        state=_state(link),
        bridge=bridges.get(link.master, "") if link is not None else "",
        guards=tuple(key for name, key in _GUARDS.items() if any(e.set == name for e in left.elements)),
        unguarded=tuple(element for element in left.elements if element in lost),
    )


def _state(link: Link | None) -> str:
    if link is None:
        return MISSING
    if not link.up:
        return DOWN
    return NO_CARRIER if link.operstate == "LOWERLAYERDOWN" else UP
