"""The configuration of masquerade: every key, parsed once.

`vmNetworkCIDR`, `vmIPv6NetworkCIDR`, `ports` and `portRanges` are those of a VM's spec in KubeVirt, with the
bounds of its admission; `istio` stands for the annotation sidecar.istio.io/inject. The others are ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple

from cnvnet.cni.args import parse_args
from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields, as_network
from cnvnet.cni.request import Request
from cnvnet.guest.options import GuestOptions
from cnvnet.kernel.addresses import MIN_IPV4_MTU
from cnvnet.kernel.tap import MAX_MTU
from cnvnet.plugins.binding.tap_options import TapOptions
from cnvnet.vm import identity
from cnvnet.vm.launcher import Subject

# KubeVirt's own networks behind a pod: a guest that moves from its binding to this one keeps its addresses.
DEFAULT_NETWORK: Final = "10.0.2.0/24"
DEFAULT_IPV6_NETWORK: Final = "fd10:0:2::/120"
# What KubeVirt's own live migration listens on in the pod.
DEFAULT_RESERVED: Final = (49152, 49153)
TCP: Final = 6
UDP: Final = 17
_PROTOCOLS: Final = {"": TCP, "tcp": TCP, "udp": UDP}
_PORTS: Final = (1, 65535)


class PortRange(NamedTuple):
    """Ports of one protocol (its number), both ends included."""

    protocol: int
    first: int
    last: int


class Config(NamedTuple):
    """What the configuration asks for."""

    # The networks between pod and guest; the first host is the gateway, the second the guest.
    network: IPv4Network
    ipv6_network: IPv6Network
    # The ports that lead to the guest, merged and sorted. Where there are none, all lead to it that are not
    # reserved.
    listed: tuple[PortRange, ...]
    # TCP ports that are kept for the pod itself.
    reserved: tuple[int, ...]
    # Whether Istio's sidecar takes the pod's connections first.
    istio: bool
    # Whether the gateway's address is on a bridge, as with KubeVirt, or on the tap itself.
    bridge: bool
    # Whether the guest reaches its own ports by the pod's address.
    hairpin: bool
    # Bytes; 0 is the MTU of the pod's interface.
    mtu: int
    tap: TapOptions
    # What the call says it is for; None for a container outside Kubernetes that is no VM.
    claim: identity.VM | PodRef | None
    # Whether the VM is about to move here from another pod.
    target: bool
    guest: GuestOptions
    # The guest's, made from the VM's name; "" for none.
    hostname: str

    @classmethod
    def parse(cls, request: Request) -> Config:
        """Raises CNIError (7, for CNI_ARGS 4) naming the key that is wrong or contradicts another."""
        fields = request.fields
        claim = identity.claim(fields, parse_args(request.args, identity.KNOWN_ARGS), request.ifname)
        vm = claim if isinstance(claim, identity.VM) else None
        listed = _listed(fields)
        istio, bridge = fields.flag("istio"), fields.flag("bridge", default=True)
        if istio and not bridge:
            raise InvalidConfig(
                f"{fields.path('bridge')}: Istio's sidecar knows the guest by the bridge (leave it away)"
            )
        mtu = fields.integer("mtu")
        if mtu and not MIN_IPV4_MTU <= mtu <= MAX_MTU:
            raise InvalidConfig(f"mtu: {mtu} is not between {MIN_IPV4_MTU} and {MAX_MTU}")
        return cls(
            network=_network(fields),
            ipv6_network=_ipv6_network(fields),
            listed=listed,
            reserved=_reserved(fields, listed),
            istio=istio,
            bridge=bridge,
            hairpin=fields.flag("hairpin", default=True),
            mtu=mtu,
            tap=TapOptions.parse(fields),
            claim=claim,
            target=vm is not None and vm.role == identity.TARGET,
            guest=GuestOptions.parse(fields),
            hostname=vm.hostname if vm is not None else "",
        )

    def of(self, subject: Subject) -> Config:
        """The same for the VM that the Kubernetes API knows."""
        return self._replace(target=subject.role == identity.TARGET, hostname=subject.hostname)

    def as_added(self, role: str, /) -> Config:
        """The same for a pod that had this role at its ADD."""
        return self._replace(target=role == identity.TARGET)


def _network(fields: Fields) -> IPv4Network:
    # KubeVirt's API takes numbers with leading zeros.
    text = _without_zeros(fields.text("vmNetworkCIDR")) or DEFAULT_NETWORK
    where = fields.path("vmNetworkCIDR")
    network = as_network(text, where)
    if not isinstance(network, IPv4Network):
        raise InvalidConfig(f"{where}: {text} is not an IPv4 network")
    _ensure_hosts(network, where, longest=30)
    return network


def _ipv6_network(fields: Fields) -> IPv6Network:
    text = fields.text("vmIPv6NetworkCIDR") or DEFAULT_IPV6_NETWORK
    where = fields.path("vmIPv6NetworkCIDR")
    network = as_network(text, where)
    if not isinstance(network, IPv6Network):
        raise InvalidConfig(f"{where}: {text} is not an IPv6 network")
    _ensure_hosts(network, where, longest=126)
    return network


def _ensure_hosts(network: IPv4Network | IPv6Network, where: str, *, longest: int) -> None:
    if network.prefixlen > longest:
        raise InvalidConfig(f"{where}: {network} has no room for a gateway and a guest (/{longest} at most)")
    gateway, guest = network.network_address + 1, network.network_address + 2
    for host in (gateway, guest):
        if host.is_loopback or host.is_multicast or host.is_link_local or int(host) < 1 << 24:
            raise InvalidConfig(f"{where}: {host} cannot be the address of a host")


def _without_zeros(text: str) -> str:
    address, slash, length = text.partition("/")
    octets = [octet.lstrip("0") or "0" if octet.isdigit() else octet for octet in address.split(".")]
    return ".".join(octets) + slash + length if text else ""


def _listed(fields: Fields) -> tuple[PortRange, ...]:
    ranges: list[PortRange] = []
    for item in (*(fields.each("ports") or ()), *(fields.each("portRanges") or ())):
        item.know("name")  # in KubeVirt's API a port may have one
    for item in fields.each("ports") or ():
        port = _port(item, "port")
        ranges.append(PortRange(_protocol(item), port, port))
    for item in fields.each("portRanges") or ():
        ranges.append(PortRange(_protocol(item), _port(item, "start"), _port(item, "end")))
        if ranges[-1].last < ranges[-1].first:
            raise InvalidConfig(f"{item.path('end')}: {ranges[-1].last} is less than {ranges[-1].first}")
    return merged(ranges)


def _port(item: Fields, key: str) -> int:
    if not item.has(key):
        raise InvalidConfig(f"{item.path(key)}: required")
    return item.integer(key, minimum=_PORTS[0], maximum=_PORTS[1])


def _protocol(item: Fields) -> int:
    text = item.text("protocol")
    protocol = _PROTOCOLS.get(text.lower())
    if protocol is None:
        raise InvalidConfig(f'{item.path("protocol")}: "{text[:40]}" is neither TCP nor UDP')
    return protocol


def merged(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """The same ports as the fewest ranges, sorted."""
    fewest: list[PortRange] = []
    for wanted in sorted(ranges):
        last = fewest[-1] if fewest else None
        if last and last.protocol == wanted.protocol and wanted.first <= last.last + 1:
            fewest[-1] = last._replace(last=max(last.last, wanted.last))
        else:
            fewest.append(wanted)
    return tuple(fewest)


def _reserved(fields: Fields, listed: tuple[PortRange, ...]) -> tuple[int, ...]:
    given = fields.has("reservedPorts")
    ports = (
        fields.integers("reservedPorts", minimum=_PORTS[0], maximum=_PORTS[1]) if given else DEFAULT_RESERVED
    )
    wanted = {
        port for port in ports for each in listed if each.protocol == TCP and each.first <= port <= each.last
    }
    if wanted and given:
        raise InvalidConfig(f"{fields.path('reservedPorts')}: {min(wanted)} is among the VM's ports as well")
    # A default port that the configuration lists for the guest is not reserved: the list is explicit.
    return tuple(sorted(set(ports) - wanted))
