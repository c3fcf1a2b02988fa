"""The pod's interface as it was before a VM took its place: what is restored, and what the guest may know.

Only what stays by itself is kept: what router advertisements brought, and what the kernel makes of an
address, comes back without us.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

from cnvnet.cni.fields import Network
from cnvnet.kernel import addresses, neighbours, routes
from cnvnet.kernel.addresses import Address
from cnvnet.kernel.links import Link
from cnvnet.kernel.neighbours import Neighbour
from cnvnet.kernel.routes import Route
from cnvnet.kernel.rtnetlink import PROTOCOL_KERNEL, PROTOCOL_RA
from cnvnet.kernel.snapshots import Snapshot
from cnvnet.kernel.stack import Stack
from cnvnet.plugins.vm_bridge import old_record


class Original(NamedTuple):
    """The interface, as the record keeps it."""

    ifindex: int
    name: str
    mac: str
    mtu: int
    up: bool
    alias: str = ""
    # Two sysctls of the interface, None where the kernel has none.
    disable_ipv6: str | None = None
    ipv6_mtu: str | None = None
    snapshot: Snapshot = Snapshot()
    # None where the snapshot has the kernel's own routes. It has none of them when an older version's
    # record, or no record, describes the interface; then the kernel had made all of them, but to these
    # networks.
    missing_connected_routes: tuple[Network, ...] | None = None

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Those for good, in the kernel's order: of IPv6 the last one first."""
        decoded = [addresses.decode(raw) for raw in self.snapshot.addresses]
        lasting = [address for address in decoded if address is not None and address.permanent]
        ipv4 = [address for address in lasting if address.address.version == 4]
        return (*ipv4, *(address for address in reversed(lasting) if address.address.version == 6))


class KnownNetwork(NamedTuple):
    """What the pod knew of its network by the interface: the guest services pass it on."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    # The default routes of router advertisements.
    ra_routes: tuple[Route, ...] = ()
    # Networks of its addresses whose kernel route another program has removed, as the reference ptp plugin
    # does: no host there is reached directly.
    missing_connected_routes: tuple[Network, ...] = ()


def observe(pod: Stack, link: Link) -> Original:
    """All of it that can be restored."""
    return Original(
        link.ifindex,
        link.name,
        link.mac,
        link.mtu,
        link.up,
        link.alias,
        pod.sysctls.get(disable_ipv6(link.name)),
        pod.sysctls.get(ipv6_mtu(link.name)),
        pod.snapshot(link.ifindex),
    )


def known(was: Original) -> KnownNetwork:
    """What a snapshot says that is understood here."""
    kept = was.snapshot
    shown = [route for raw in (*kept.routes, *kept.heard) for route in routes.decode(raw)]
    routes_of_link = [route for route in shown if route.ifindex == was.ifindex]
    entries = (neighbours.decode(raw) for raw in kept.neighbours)
    return KnownNetwork(
        was.name,
        was.mac,
        was.mtu,
        was.addresses,
        tuple(route for route in routes_of_link if route.protocol not in (PROTOCOL_KERNEL, PROTOCOL_RA)),
        tuple(each for each in entries if each is not None and each.permanent),
        tuple(
            route for route in routes_of_link if route.protocol == PROTOCOL_RA and not route.dst.prefixlen
        ),
        _missing_connected_routes(was.addresses, routes_of_link) if was.up else (),
    )


def _missing_connected_routes(present: Iterable[Address], shown: Iterable[Route]) -> tuple[Network, ...]:
    reached = {route.dst for route in shown if route.protocol == PROTOCOL_KERNEL}
    networks = dict.fromkeys(
        each.address.network for each in present if each.peer is None and not each.noprefixroute
    )
    return tuple(network for network in networks if network.num_addresses > 1 and network not in reached)


def disable_ipv6(ifname: str) -> str:
    """The sysctl by which a link has no IPv6."""
    return f"net/ipv6/conf/{ifname}/disable_ipv6"


def ipv6_mtu(ifname: str) -> str:
    """The sysctl by which IPv6 sends smaller packets than the link takes."""
    return f"net/ipv6/conf/{ifname}/mtu"


def encode(original: Original) -> dict[str, Any]:
    """The document that `parse` reads back; messages as hexadecimal text."""
    kept = original.snapshot
    messages = {name: [raw.hex() for raw in getattr(kept, name)] for name in kept._fields if name != "at"}
    fields = original._asdict() | {"snapshot": {"at": kept.at, **messages}}
    del fields["missing_connected_routes"]
    return fields


def parse(document: object) -> Original | None:
    """None for what is not such a document: then only the links themselves show what was."""
    try:
        fields = cast("Mapping[str, Any]", document)
        old = "snapshot" not in fields
        return Original(
            ifindex=int(fields["ifindex"]),
            name=str(fields["name"]),
            mac=str(fields["mac"]),
            mtu=int(fields["mtu"]),
            up=bool(fields["up"]),
            alias=str(fields["alias"]),
            disable_ipv6=fields["disable_ipv6"],
            ipv6_mtu=fields.get("ipv6_mtu"),
            snapshot=old_record.snapshot(fields) if old else _snapshot(fields["snapshot"]),
            missing_connected_routes=old_record.missing_connected_routes(fields) if old else None,
        )
    except (KeyError, TypeError, ValueError):
        return None


def _snapshot(fields: Mapping[str, Any]) -> Snapshot:
    names = (name for name in Snapshot._fields if name != "at")
    messages = {name: tuple(map(bytes.fromhex, fields[name])) for name in names}
    return Snapshot(int(fields["at"]), **messages)
