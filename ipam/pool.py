"""Which addresses a network has to give, as arithmetic: nothing is enumerated, a /64 costs what a /24 does.

Plain integers instead of netaddr: static-ip is started for every ADD, where importing netaddr alone would
cost more than the rest of the call, and all it would be used for here is one subtraction of spans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from cnvnet.cni.fields import Address, Network


class Span(NamedTuple):
    """Neighbouring addresses of one family as integers, both ends included."""

    first: int
    last: int


class Range(NamedTuple):
    """A part of a subnet to allocate from. `gateway` None where the configuration has none to report.

    `gateway_key` is the key that names the gateway, "" if none does.
    """

    subnet: Network
    first: Address
    last: Address
    gateway: Address | None = None
    gateway_key: str = ""

    @property
    def name(self) -> str:
        """How messages call it; host-local writes it the same way."""
        return f"{self.first}-{self.last}"

    def holds(self, ip: Address) -> bool:
        """Whether an address is in the range."""
        return ip.version == self.subnet.version and int(self.first) <= int(ip) <= int(self.last)

    def overlaps(self, other: Range) -> bool:
        """Whether the two have an address in common."""
        return self.holds(other.first) or other.holds(self.first)


class RangeSet(NamedTuple):
    """Ranges of one family, of which a lease gets one address. Made by `pool`.

    `spans` is what may be given out: sorted, apart from each other, without gateways, exclusions, network
    and broadcast addresses.
    """

    ranges: tuple[Range, ...]
    spans: tuple[Span, ...]

    @property
    def version(self) -> int:
        """The version of IP: 4 or 6."""
        return self.ranges[0].subnet.version

    @property
    def size(self) -> int:
        """How many addresses it gives."""
        return sum(last - first + 1 for first, last in self.spans)

    @property
    def name(self) -> str:
        """The ranges as messages name them."""
        return ",".join(each.name for each in self.ranges)

    def range_of(self, ip: Address) -> Range | None:
        """The range an address belongs to: the one that holds it, else the first whose subnet does.

        The second covers leases made before the ranges were narrowed: a VM keeps its address, and the subnet
        is all that its prefix and gateway depend on.
        """
        for each in self.ranges:
            if each.holds(ip):
                return each
        return next((each for each in self.ranges if ip in each.subnet), None)

    def gives(self, ip: Address) -> bool:
        """Whether the address may be given out."""
        return ip.version == self.version and any(first <= int(ip) <= last for first, last in self.spans)


class Pool(NamedTuple):
    """All a network has to give: one address of each set per lease. Made by `pool`."""

    sets: tuple[RangeSet, ...]

    def set_of(self, ip: Address) -> int | None:
        """The index of the set whose ranges hold the address, given out or not."""
        for index, each in enumerate(self.sets):
            if any(part.holds(ip) for part in each.ranges):
                return index
        return None

    def range_of(self, ip: Address) -> Range | None:
        """The range an address belongs to, of any set: the one that holds it, else one whose subnet does."""
        index = self.set_of(ip)
        sets = self.sets if index is None else (self.sets[index],)
        return next((part for each in sets if (part := each.range_of(ip)) is not None), None)

    def purpose_of(self, ip: Address) -> str:
        """What the address is for if no VM can ever have it, as a message says it; "" for all others."""
        for each in (part for ranges in self.sets for part in ranges.ranges):
            if ip == each.gateway:
                return "the gateway"
            if ip == each.subnet.network_address:
                return "the network address"
            if ip.version == 4 and ip == each.subnet.broadcast_address:
                return "the broadcast address"
        return ""

    @property
    def name(self) -> str:
        """The sets as messages name them."""
        return "; ".join(each.name for each in self.sets)


def pool(sets: Iterable[Sequence[Range]], excluded: Iterable[tuple[Address, Address]]) -> Pool:
    """The pool of these range sets. A gateway of any range and everything excluded is never given out.

    A range's own ends may include the network's and the broadcast address; those are left out as well.
    """
    wanted = [tuple(ranges) for ranges in sets]
    kept = list(excluded)
    for each in (part for ranges in wanted for part in ranges):
        if each.gateway is not None:
            kept.append((each.gateway, each.gateway))
        kept.append((each.subnet.network_address, each.subnet.network_address))
        if each.subnet.version == 4:
            kept.append((each.subnet.broadcast_address, each.subnet.broadcast_address))
    return Pool(tuple(_range_set(ranges, kept) for ranges in wanted))


def _range_set(ranges: tuple[Range, ...], kept: Iterable[tuple[Address, Address]]) -> RangeSet:
    version = ranges[0].subnet.version
    holes = sorted(Span(int(first), int(last)) for first, last in kept if first.version == version)
    spans: list[Span] = []
    for each in sorted(ranges, key=lambda part: int(part.first)):
        spans.extend(_subtract(Span(int(each.first), int(each.last)), holes))
    return RangeSet(ranges, tuple(spans))


def _subtract(span: Span, holes: Iterable[Span]) -> Iterator[Span]:
    """What is left of a span; the holes are sorted and may overlap."""
    at = span.first
    for hole in holes:
        if hole.first > span.last:
            break
        if hole.first > at:
            yield Span(at, hole.first - 1)
        at = max(at, hole.last + 1)
    if at <= span.last:
        yield Span(at, span.last)


def probing_order(given: RangeSet, seed: bytes) -> Iterator[tuple[Address, Address]]:
    """Every address of the set once, as spans: from a place that the seed decides on, and round again.

    The same seed always starts at the same place, so a VM whose record was lost tends to get its old
    address, and two VMs allocated concurrently rarely meet.
    """
    import hashlib  # 3 ms, for new leases only

    # sha256, never hash(): Python's own is different in every process.
    place = int.from_bytes(hashlib.sha256(seed).digest()[:16], "big") % given.size
    start = 0
    # `place` counts through all spans of the set; here it becomes an offset within one of them.
    for index, (first, last) in enumerate(given.spans):
        if place <= last - first:
            start = index
            break
        place -= last - first + 1
    first, last = given.spans[start]
    middle = first + place
    order = [Span(middle, last), *given.spans[start + 1 :], *given.spans[:start]]
    if middle > first:
        order.append(Span(first, middle - 1))
    for low, high in order:
        yield as_address(given.version, low), as_address(given.version, high)


def as_address(version: int, value: int) -> Address:
    """The address of this family with this value."""
    return IPv4Address(value) if version == 4 else IPv6Address(value)
