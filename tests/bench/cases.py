"""What is measured: each case makes its nodes, yields its rows and takes the nodes away."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import NamedTuple

from tests.bench.frames import Sender
from tests.bench.nodes import Nodes, Pair, add_leases, add_ports, container_id, keep, run
from tests.bench.report import Place, Row
from tests.bench.rounds import Samples, Turn, interleaved
from tests.bench.systems import ITSELF, REFERENCE, System, await_quiet, burst, call


class Sizes(NamedTuple):
    """How many rounds, and how much is there already."""

    rounds: int
    ports: tuple[int, ...]
    chains: int
    leases: tuple[int, ...]
    # host-local reads all of its files: beyond this nobody would wait for it.
    most_of_reference: int
    burst: int
    parallel: int


FULL = Sizes(50, (0, 1000, 2000, 4000), 20_000, (0, 10_000, 50_000, 1_000_000), 50_000, 50, 16)
QUICK = Sizes(2, (0, 20, 40), 50, (0, 100, 200), 100, 6, 3)

Case = Callable[[Nodes, Sizes], Iterator[Row]]


def version(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    with nodes.pair("version") as pair:
        (samples,) = interleaved(_turns(pair, "l2", ("VERSION",)), sizes.rounds)
    yield Row("VERSION", "", samples, limit=0.35, alone_limit=12)


def l2(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    with nodes.pair("l2") as pair:
        add, delete = _add_delete(pair, "l2", sizes.rounds)
    yield Row("L2 ADD", "", add, limit=0.6, alone_limit=50)
    yield Row("L2 DEL", "", delete, limit=0.15)


def l3(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    with nodes.pair("l3") as pair:
        add, delete = _add_delete(pair, "l3", sizes.rounds)
    yield Row("L3 ADD", "", add, limit=0.45)
    yield Row("L3 DEL", "", delete, limit=0.15)


def ports(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    """macspoofchk with more and more guarded ports on the node; at last frames through one of them."""
    with nodes.pair("ports") as pair, nodes.pair("noports") as empty:
        there = 0
        for count in sizes.ports:
            if count > there:
                _say(f"making {count - there:,} ports")
                for system in pair.nodes:
                    add_ports(system, there, count)
            there = count
            state = f"{count:,} ports"
            add, delete = _add_delete(pair, "macspoofchk", sizes.rounds, itself=empty if count else None)
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
        yield _frames(pair, nodes, sizes.rounds, f"{there:,} ports")


def _frames(pair: Pair, nodes: Nodes, rounds: int, state: str) -> Row:
    """Through a guarded port of either node, and through an unguarded one of a node without any guards."""
    with ExitStack() as opened:
        plain = opened.enter_context(nodes.pair("plain"))
        columns = {
            REFERENCE: (pair.reference, "macspoofchk"),
            pair.agent.name: (pair.agent, "macspoofchk"),
            ITSELF: (plain.agent, "l2"),
        }
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
    with nodes.pair("chains", chains=sizes.chains) as pair, nodes.pair("nochains") as empty:
        add, delete = _add_delete(pair, "macspoofchk", sizes.rounds, itself=empty)
    state = f"{sizes.chains:,} foreign chains"
    yield Row("macspoofchk ADD", state, add, own_limit=1.3)
    yield Row("macspoofchk DEL", state, delete, own_limit=1.3)


def bursts(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    """Many pods at once: the DELs are over when the links are gone."""
    with nodes.pair("burst") as pair:
        pods: dict[str, list[str]] = {}
        for system in pair.nodes:
            pods[system.node] = [f"{system.node}-{number}" for number in range(sizes.burst)]
            for pod in pods[system.node]:
                run("ip", "netns", "add", pod)

        def cycle(system: System, _: int) -> list[float]:
            return [burst(system, each, "l2", pods[system.node], sizes.parallel) for each in ("ADD", "DEL")]

        turns = [Turn(system.name, partial(cycle, system)) for system in pair]
        add, delete = interleaved(turns, sizes.rounds)
    state = f"{sizes.parallel} at a time"
    yield Row(f"{sizes.burst} L2 ADD", state, add, limit=0.55)
    yield Row(f"{sizes.burst} L2 DEL", state, delete, limit=0.4)


def ipmasq(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    """Beside the faster of the reference's backends, which may be another one for DEL."""
    commands = ("ADD", "DEL")
    with nodes.pair("ipmasq") as pair:
        turns = _turns(pair, "ipmasq nftables", commands)
        other = pair.reference._replace(name="iptables")
        turns.append(_turn("iptables", other, "ipmasq iptables", commands))
        figures = interleaved(turns, sizes.rounds)
    for command, samples in zip(commands, figures, strict=True):
        iptables = samples.pop("iptables")
        backend = "nftables"
        if statistics.median(iptables) < statistics.median(samples[REFERENCE]):
            samples[REFERENCE], backend = iptables, "iptables"
        yield Row(f"ipMasq {command}", f"reference: {backend}", samples, limit=0.3)


def leases(nodes: Nodes, sizes: Sizes) -> Iterator[Row]:
    """The address managers alone, with more and more addresses given out."""
    with nodes.pair("leases") as pair, nodes.pair("noleases") as empty:
        there = {system.name: 0 for system in pair.nodes}
        for count in sizes.leases:
            for system in pair.nodes:
                wanted = count if system.name != REFERENCE else min(count, sizes.most_of_reference)
                if wanted > there[system.name]:
                    _say(f"{system.name}: making {wanted - there[system.name]:,} leases")
                    add_leases(system, there[system.name], wanted)
                there[system.name] = wanted
            is_last = count == sizes.leases[-1]
            add, delete = _add_delete(pair, "ipam", sizes.rounds, itself=empty if count else None)
            of_reference = there[REFERENCE]
            state = f"{count:,} leases" + (f", reference {of_reference:,}" if of_reference != count else "")
            place = Place("leases", count, of_reference)
            if is_last:
                yield Row("IPAM ADD", state, add, limit=0.02, own_limit=1.5, place=place)
            else:
                yield Row("IPAM ADD", state, add, place=place)
            yield Row("IPAM DEL", state, delete)


CASES: dict[str, Case] = {
    "version": version,
    "l2": l2,
    "l3": l3,
    "ports": ports,
    "chains": chains,
    "burst": bursts,
    "ipmasq": ipmasq,
    "leases": leases,
}


def _add_delete(pair: Pair, kind: str, rounds: int, *, itself: Pair | None = None) -> list[Samples]:
    """`itself`: the agent, too, where there is nothing to slow it down."""
    commands = ("ADD", "DEL")
    turns = _turns(pair, kind, commands)
    if itself is not None:
        turns.append(_turn(ITSELF, itself.agent, kind, commands))
    return interleaved(turns, rounds)


def _turns(pair: Pair, kind: str, commands: Sequence[str]) -> list[Turn]:
    return [_turn(system.name, system, kind, commands) for system in pair]


def _turn(column: str, system: System, kind: str, commands: Sequence[str]) -> Turn:
    def cycle(number: int) -> list[float]:
        name = container_id(f"round {number}")
        spent = [call(system, command, kind, name)[0] for command in commands]
        await_quiet(system)
        return spent

    return Turn(column, cycle)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
