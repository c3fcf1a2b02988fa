"""What is measured: each case makes its nodes, yields its rows and takes the nodes away."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import NamedTuple

from tests.bench.frames import Sender
from tests.bench.nodes import Nodes, Systems, add_leases, add_ports, container_id, keep, run
from tests.bench.report import Place, Row
from tests.bench.rounds import Samples, Turn, interleaved
from tests.bench.systems import ITSELF, REFERENCE, System, await_quiet, burst, call


class Sizes(NamedTuple):
    """How many rounds, and how much is there already."""

    rounds: int
    ports: tuple[int, ...]
    chains: int
    leases: tuple[int, ...]
    # host-local reads all of its files: beyond this a round takes minutes.
    most_of_reference: int
    burst: int
    parallel: int


FULL = Sizes(50, (0, 1000, 2000, 4000), 20_000, (0, 10_000, 50_000, 1_000_000), 50_000, 50, 16)
QUICK = Sizes(2, (0, 20, 40), 50, (0, 100, 200), 100, 6, 3)

# Seconds without a call, and what is called then: kind, name of the row, goals of ADD and DEL.
_PAUSE = 0.2
_COLD = (
    ("l2", "L2", (0.6, 0.15)),
    ("l3", "L3", (0.5, 0.15)),
    ("macspoofchk", "macspoofchk", (0.2, 0.1)),
)

# The reference with its other backend, until the slower of the two is left out.
_IPTABLES = "iptables"

Case = Callable[[Nodes, Sizes], Iterator[Row]]


def version(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    with nodes.systems("version") as systems:
        (samples,) = interleaved(_turns(systems, "l2", ("VERSION",)), sizes.rounds)
    yield Row("VERSION", "", samples, limit=0.35, alone_limit=12)


def l2(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    with nodes.systems("l2") as systems:
        add, delete = _add_delete(systems, "l2", sizes.rounds)
    yield Row("L2 ADD", "", add, limit=0.6, alone_limit=50)
    yield Row("L2 DEL", "", delete, limit=0.15)


def l3(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    with nodes.systems("l3") as systems:
        add, delete = _add_delete(systems, "l3", sizes.rounds)
    yield Row("L3 ADD", "", add, limit=0.45)
    yield Row("L3 DEL", "", delete, limit=0.15)


def ports(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    """macspoofchk with more and more guarded ports on the node; at last frames through one of them."""
    with nodes.systems("ports") as systems, nodes.systems("noports") as empty:
        existing = 0
        for count in sizes.ports:
            if count > existing:
                _say(f"making {count - existing:,} ports")
                for system in systems.nodes:
                    add_ports(system, existing, count)
            existing = count
            state = f"{count:,} ports"
            add, delete = _add_delete(systems, "macspoofchk", sizes.rounds, itself=empty if count else None)
            place = Place("ports", count, count)
            if count == 0:
                yield Row("macspoofchk ADD", state, add, limit=0.2, place=place)
                yield Row("macspoofchk DEL", state, delete, limit=0.1)
            elif count == sizes.ports[-1]:
                yield Row("macspoofchk ADD", state, add, limit=0.03, own_limit=1.3, place=place)
                yield Row("macspoofchk DEL", state, delete, limit=0.03, own_limit=1.3)
            else:
                yield Row("macspoofchk ADD", state, add, place=place)
                yield Row("macspoofchk DEL", state, delete)
        yield _frames(systems, nodes, sizes.rounds, f"{existing:,} ports")


def _frames(systems: Systems, nodes: Nodes, rounds: int, state: str) -> Row:
    """Through a guarded port of each node, and through an unguarded one of a node without any guards."""
    with ExitStack() as opened:
        plain = opened.enter_context(nodes.systems("plain"))
        columns = {system.name: (system, "macspoofchk") for system in systems.nodes}
        columns[ITSELF] = (plain.agent, "l2")
        turns: list[Turn] = []
        for column, (system, kind) in columns.items():
            pods = [f"{system.node}-{each}" for each in ("sender", "target")]
            for pod in pods:
                keep(system, pod, kind)
            sender = opened.enter_context(closing(Sender(*pods)))
            turns.append(Turn(column, sender.cycle))
        (samples,) = interleaved(turns, rounds)
    return Row("1,000 frames/s", state, samples, limit=30, own_limit=0.8, at_least=True)


def chains(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    """macspoofchk among the chains of others, as kube-proxy keeps them."""
    _say(f"making {sizes.chains:,} chains")
    with nodes.systems("chains", chains=sizes.chains) as systems, nodes.systems("nochains") as empty:
        add, delete = _add_delete(systems, "macspoofchk", sizes.rounds, itself=empty)
    state = f"{sizes.chains:,} foreign chains"
    yield Row("macspoofchk ADD", state, add, own_limit=1.3)
    yield Row("macspoofchk DEL", state, delete, own_limit=1.3)


def bursts(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    """Many pods at once: the DELs are over when the links are gone."""
    with nodes.systems("burst") as systems:
        pods: dict[str, list[str]] = {}
        for system in systems.nodes:
            pods[system.node] = [f"{system.node}-{number}" for number in range(sizes.burst)]
            for pod in pods[system.node]:
                run("ip", "netns", "add", pod)

        def cycle(system: System, _: int) -> list[float]:
            return [burst(system, each, "l2", pods[system.node], sizes.parallel) for each in ("ADD", "DEL")]

        turns = [Turn(system.name, partial(cycle, system)) for system in systems.all]
        add, delete = interleaved(turns, sizes.rounds)
    state = f"{sizes.parallel} at a time"
    yield Row(f"{sizes.burst} L2 ADD", state, add, limit=0.55)
    yield Row(f"{sizes.burst} L2 DEL", state, delete, limit=0.4)


def ipmasq(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    """Beside the faster of the reference's backends, which may be another one for DEL."""
    commands = ("ADD", "DEL")
    with nodes.systems("ipmasq") as systems:
        turns = _turns(systems, "ipmasq nftables", commands)
        if not systems.agents_only:
            iptables = systems.reference._replace(name=_IPTABLES)
            turns.append(_turn(_IPTABLES, iptables, "ipmasq iptables", commands))
        figures = interleaved(turns, sizes.rounds)
    for command, samples in zip(commands, figures, strict=True):
        yield Row(f"ipMasq {command}", _keep_faster_backend(samples), samples, limit=0.3)


def _keep_faster_backend(samples: Samples) -> str:
    """Leave of the reference's two backends the faster one as its column; return the row's state."""
    if REFERENCE not in samples:
        return ""
    iptables = samples.pop(_IPTABLES)
    if statistics.median(iptables) >= statistics.median(samples[REFERENCE]):
        return "reference: nftables"
    samples[REFERENCE] = iptables
    return "reference: iptables"


def leases(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    """The address managers alone, with more and more addresses given out."""
    with nodes.systems("leases") as systems, nodes.systems("noleases") as empty:
        existing = {system.name: 0 for system in systems.nodes}
        for count in sizes.leases:
            for system in systems.nodes:
                wanted = count if system.name != REFERENCE else min(count, sizes.most_of_reference)
                if wanted > existing[system.name]:
                    _say(f"{system.name}: making {wanted - existing[system.name]:,} leases")
                    add_leases(system, existing[system.name], wanted)
                existing[system.name] = wanted
            is_last = count == sizes.leases[-1]
            add, delete = _add_delete(systems, "ipam", sizes.rounds, itself=empty if count else None)
            of_reference = existing.get(REFERENCE, count)
            state = f"{count:,} leases" + (f", reference {of_reference:,}" if of_reference != count else "")
            place = Place("leases", count, of_reference)
            if is_last:
                yield Row("IPAM ADD", state, add, limit=0.02, own_limit=1.5, place=place)
            else:
                yield Row("IPAM ADD", state, add, place=place)
            yield Row("IPAM DEL", state, delete)


def cold(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    """Every call comes alone, after a pause in which the processor goes to sleep and forgets."""
    state = f"after {_PAUSE:g} s of quiet"
    with nodes.systems("cold") as systems:
        for kind, operation, limits in _COLD:
            turns = [
                _turn(system.name, system, kind, ("ADD", "DEL"), pause=_PAUSE) for system in systems.all
            ]
            add, delete = interleaved(turns, sizes.rounds)
            yield Row(f"{operation} ADD", state, add, limit=limits[0])
            yield Row(f"{operation} DEL", state, delete, limit=limits[1])


CASES: dict[str, Case] = {
    "version": version,
    "l2": l2,
    "l3": l3,
    "ports": ports,
    "chains": chains,
    "burst": bursts,
    "ipmasq": ipmasq,
    "leases": leases,
    "cold": cold,
}


def _add_delete(systems: Systems, kind: str, rounds: int, *, itself: Systems | None = None) -> list[Samples]:
    """`itself`: the agent, too, where there is nothing to slow it down."""
    commands = ("ADD", "DEL")
    turns = _turns(systems, kind, commands)
    if itself is not None:
        turns.append(_turn(ITSELF, itself.agent, kind, commands))
    return interleaved(turns, rounds)


def _turns(systems: Systems, kind: str, commands: Sequence[str]) -> list[Turn]:
    return [_turn(system.name, system, kind, commands) for system in systems.all]


def _turn(column: str, system: System, kind: str, commands: Sequence[str], *, pause: float = 0) -> Turn:
    """`pause`: seconds of quiet before each call."""

    def cycle(number: int) -> list[float]:
        name = container_id(f"round {number}")
        spent: list[float] = []
        for command in commands:
            time.sleep(pause)
            spent.append(call(system, command, kind, name)[0])
        await_quiet(system)
        return spent

    return Turn(column, cycle)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
