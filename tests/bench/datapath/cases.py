"""Which ways are measured beside which, and what is asked of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.datapath import ways, wirings
from tests.bench.datapath.table import Goal, PathRow
from tests.bench.datapath.ways import FROM_GUEST, TO_GUEST, Slices, Way
from tests.bench.nodes import Nodes, add_ports, keep, run
from tests.bench.systems import System

_DIRECTIONS: Final = (TO_GUEST, FROM_GUEST)
_OURS, _WITHOUT_BRIDGE = "masquerade", "without bridge"
_KUBEVIRT, _SHOWN = "KubeVirt", "with br_netfilter"
_PLAIN, _VETH = "forwarding", "veth"
_WIRE, _SWITCH = "vm-bridge", "bridge"
_NO_TABLE, _NO_GUARDS, _MAC, _ALL, _REFERENCE = (
    "no table",
    "no guards",
    "macspoofchk",
    "all guards",
    "reference",
)


class PathSizes(NamedTuple):
    """How long each is measured, and with how many other guarded ports on the node."""

    slices: Slices
    ports: tuple[int, ...]

    def measured(self, rounds: int) -> PathSizes:
        """The same in so many rounds."""
        return self._replace(slices=self.slices._replace(rounds=rounds))


FULL = PathSizes(Slices(30, 40), (1, 100, 1000))
QUICK = PathSizes(Slices(2, 5), (1, 10))


def rows(nodes: Nodes, sizes: PathSizes, folder: Path) -> Iterator[PathRow]:
    """All tables, row by row. Failed, RuntimeError."""
    instrument = ways.build(folder)
    yield from _masquerade(instrument, sizes.slices)
    yield from _vm_bridge(instrument, sizes.slices)
    for count in sizes.ports:
        yield from _guards(instrument, nodes, count, sizes.slices)


def _masquerade(instrument: Path, slices: Slices) -> Iterator[PathRow]:
    with ExitStack() as undo:
        each = [
            wirings.routed(undo, _OURS),
            wirings.routed(undo, _WITHOUT_BRIDGE, bridge=False),
            wirings.kubevirt_routed(undo, _KUBEVIRT),
            *(
                [wirings.kubevirt_routed(undo, _SHOWN, shown=True)]
                if wirings.shows_bridged_packets()
                else []
            ),
            wirings.forwarded(undo, _PLAIN),
            wirings.direct(undo, _VETH),
        ]
        goals = {ways.UDP: 1.02, ways.TCP_ROUND_TRIP: 1.02, ways.STREAM: 1.02, ways.CONNECTION: 1.02}
        lower = {ways.UDP: 0.95, ways.TCP_ROUND_TRIP: 0.95, ways.STREAM: 0.95, ways.CONNECTION: 0.97}
        for row in _both_ways(instrument, each, slices, (*goals, ways.UDP_ROUND_TRIP)):
            operation = row.operation.partition(" ")[0]
            asked = (
                Goal(_OURS, _KUBEVIRT, goals.get(operation)),
                Goal(_WITHOUT_BRIDGE, _KUBEVIRT, lower.get(operation)),
                *_also(row, _OURS, (_SHOWN, _PLAIN, _VETH)),
            )
            yield row._replace(table="behind masquerade", goals=asked)
    with ExitStack() as undo:
        taps = [
            wirings.routed(undo, _OURS, tap=True),
            wirings.routed(undo, _WITHOUT_BRIDGE, tap=True, bridge=False),
            wirings.kubevirt_routed(undo, _KUBEVIRT, tap=True),
        ]
        for row in _taps(instrument, taps, slices):
            yield row._replace(
                table="behind masquerade",
                goals=(Goal(_OURS, _KUBEVIRT, 1.02), Goal(_WITHOUT_BRIDGE, _KUBEVIRT, 0.95)),
            )


def _vm_bridge(instrument: Path, slices: Slices) -> Iterator[PathRow]:
    with ExitStack() as undo:
        each = [
            wirings.bridged(undo, _WIRE),
            wirings.kubevirt_bridged(undo, _KUBEVIRT),
            *(
                [wirings.kubevirt_bridged(undo, _SHOWN, shown=True)]
                if wirings.shows_bridged_packets()
                else []
            ),
            wirings.switched(undo, _SWITCH),
            wirings.direct(undo, _VETH),
        ]
        goals = {ways.UDP: 0.97, ways.TCP_ROUND_TRIP: 0.97}
        for row in _both_ways(instrument, each, slices, (*goals, ways.UDP_ROUND_TRIP, ways.STREAM)):
            operation = row.operation.partition(" ")[0]
            asked = (
                Goal(_WIRE, _KUBEVIRT, goals.get(operation)),
                *_also(row, _WIRE, (_SHOWN, _SWITCH, _VETH)),
            )
            yield row._replace(table="behind vm-bridge", goals=asked)
    with ExitStack() as undo:
        taps = [wirings.bridged(undo, _WIRE, tap=True), wirings.kubevirt_bridged(undo, _KUBEVIRT, tap=True)]
        for row in _taps(instrument, taps, slices):
            yield row._replace(table="behind vm-bridge", goals=(Goal(_WIRE, _KUBEVIRT, 0.97),))


def _both_ways(
    instrument: Path, each: Sequence[Way], slices: Slices, operations: Sequence[str]
) -> Iterator[PathRow]:
    """The operations over IPv4, and UDP over IPv6."""
    for version, names in ((4, operations), (6, (ways.UDP,))):
        for operation in names:
            for direction in _DIRECTIONS:
                samples = ways.measure(
                    instrument, each, operation, slices, direction=direction, version=version
                )
                family = ", IPv6" if version == 6 else ""
                yield PathRow("", f"{operation} {direction}{family}", samples, ())


def _taps(instrument: Path, taps: Sequence[Way], slices: Slices) -> Iterator[PathRow]:
    for operation, direction in ((ways.INTO_TAP, TO_GUEST), (ways.OUT_OF_TAP, FROM_GUEST)):
        samples = ways.measure(instrument, taps, operation, slices, direction=direction)
        yield PathRow("", f"{ways.UDP} {direction}, real tap", samples, ())


def _also(row: PathRow, column: str, peers: Sequence[str]) -> tuple[Goal, ...]:
    return tuple(Goal(column, peer) for peer in peers if peer in row.samples)


def _guards(instrument: Path, nodes: Nodes, count: int, slices: Slices) -> Iterator[PathRow]:
    """From port to port of a bridge, both guarded, with so many other guarded ports on the node."""
    stem = f"ways{count}"
    with nodes.systems(stem) as systems, nodes.systems(f"{stem}none") as untouched:
        if count > 1:
            for system in (systems.reference, systems.agent):
                add_ports(system, 0, count)
        each = [
            _pair(untouched.agent, "l2", _NO_TABLE),
            _pair(systems.agent, "macspoofchk", _MAC),
            _pair(systems.agent, "guards", _ALL),
            _pair(systems.agent, "l2", _NO_GUARDS),
            _pair(systems.reference, "macspoofchk", _REFERENCE),
        ]
        limits = {1: 1.02, 100: 0.58, 1000: 0.12}
        asked: dict[str, tuple[Goal, ...]] = {
            ways.UDP: (
                Goal(_MAC, _REFERENCE, limits.get(count)),
                Goal(_ALL, _NO_TABLE, 1.2),
                Goal(_NO_GUARDS, _NO_TABLE, 1.05),
            ),
            ways.TCP_ROUND_TRIP: (
                Goal(_MAC, _REFERENCE),
                Goal(_ALL, _NO_TABLE, 1.14),
                Goal(_NO_GUARDS, _NO_TABLE),
            ),
            ways.STREAM: (Goal(_MAC, _REFERENCE), Goal(_ALL, _NO_TABLE), Goal(_NO_GUARDS, _NO_TABLE)),
        }
        for operation, goals in asked.items():
            samples = ways.measure(instrument, each, operation, slices)
            noun = "port" if count == 1 else "ports"
            yield PathRow("from port to port", f"{operation}, {count:,} {noun}", samples, goals)


def _pair(system: System, kind: str, column: str) -> Way:
    """Two pods on the system's bridge, with ports of that kind."""
    addresses: list[tuple[str, str]] = []
    pods = [f"{system.node}-{kind}-{end}" for end in ("one", "other")]
    for number, pod in enumerate(pods, 1):
        result = keep(system, pod, kind)
        if kind == "guards":
            (found,) = (each["address"] for each in result["ips"])
        else:
            found = f"192.168.{_KINDS[kind]}.{number}/24"
            run("ip", "-n", pod, "addr", "add", found, "dev", "eth0")
        addresses.append((found.partition("/")[0], ""))
    return Way(column, pods[0], pods[1], addresses[0], addresses[1])


# A network of its own for each.
_KINDS: Final = {"l2": 1, "macspoofchk": 2}
