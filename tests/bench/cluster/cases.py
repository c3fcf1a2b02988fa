"""What is measured in a cluster: the IPAM calls alone, of pods that are no VM and of VMs."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from http.client import HTTPException
from itertools import chain
from typing import Final, NamedTuple

from tests.bench.cluster import NAMES
from tests.bench.cluster.callers import Caller, Sandbox, burst
from tests.bench.cluster.clusters import Cluster, Clusters
from tests.bench.report import Goal, Row
from tests.bench.rounds import Samples, Turn, interleaved
from tests.bench.systems import AGENT, ITSELF, WHEREABOUTS, Failed
from tests.e2e.api import ApiError


class Sizes(NamedTuple):
    """How many rounds, of how much."""

    rounds: int
    # Rounds of bursts, the pods of one, and how many are called at a time.
    bursts: int
    pods: int
    parallel: int
    leases: int
    # Seconds without a call, and how often.
    pause: float
    pauses: int
    agents: int
    # Pods of all agents together, and how many of one agent's are called at a time.
    fleet: int
    at_a_time: int


FULL: Final = Sizes(50, 5, 100, 16, 10_000, 10.0, 6, 20, 1000, 5)
QUICK: Final = Sizes(2, 1, 6, 3, 30, 0.2, 2, 2, 8, 2)

Case = Callable[[Clusters, Sizes], Iterator[Row]]

# Goals: of a plain pod's ADD, of a VM's by what it is, of any DEL, and of bursts.
_POD: Final = 0.25
_VM: Final = {"first": 0.45, "same VMI again": 0.3, "restart": 0.35}
_DEL: Final = 0.25
_PODS: Final = 0.15
_VMS: Final = 0.3
# How many times the median the slowest call of a burst may take.
_OUTLIER: Final = 10.0
# Of a full cluster, against an empty one.
_FULL: Final = 1.2
# Seconds for all calls of a fleet.
_FLEET: Final = 15.0


def rows(name: str, clusters: Clusters, sizes: Sizes) -> Iterator[Row]:
    """Those of a case. Failed."""
    try:
        yield from CASES[name](clusters, sizes)
    except (ApiError, HTTPException, AssertionError) as error:
        # What the cluster of the tests says of itself.
        raise Failed(str(error)) from error


def pod(clusters: Clusters, sizes: Sizes) -> Iterator[Row]:
    """A pod that is no VM."""
    add, delete = interleaved([_pod_turn(cluster, each) for cluster, each in clusters.callers], sizes.rounds)
    yield Row("pod ADD", "", add, limit=_POD)
    yield Row("pod DEL", "", delete, limit=_DEL)


def vm(clusters: Clusters, sizes: Sizes) -> Iterator[Row]:
    """A VM: its first start, the next sandbox of its pod, and its restart."""
    turns = [_vm_turn(cluster, each) for cluster, each in clusters.callers]
    *adds, delete = _by_call(interleaved(turns, sizes.rounds))
    for (which, limit), samples in zip(_VM.items(), adds, strict=True):
        yield Row("VM ADD", which, samples, limit=limit)
    yield Row("VM DEL", "", delete, limit=_DEL)


def unguarded(clusters: Clusters, sizes: Sizes) -> Iterator[Row]:
    """The same in a cluster without admission policies."""
    with clusters.without_policies():
        for row in chain(pod(clusters, sizes), vm(clusters, sizes)):
            state = ", ".join(filter(None, (row.state, "no policies")))
            yield row._replace(state=state, limit=None)


def crowd(clusters: Clusters, sizes: Sizes) -> Iterator[Row]:
    """Many pods at once."""
    state = f"{sizes.parallel} at a time, {sizes.bursts} rounds"
    for what, make, limit in (("pods", _pods, _PODS), ("VMs", _launchers, _VMS)):
        slowest: list[float] = []
        turns = [
            _crowd_turn(cluster, each, make, sizes, slowest if each.column == AGENT else [])
            for cluster, each in clusters.callers
        ]
        add, delete = interleaved(turns, sizes.bursts)
        outlier = Goal("", "× median: slowest call", max(slowest), _OUTLIER, at_least=False)
        yield Row(f"{sizes.pods} {what} ADD", state, add, limit=limit, more=(outlier,))
        yield Row(f"{sizes.pods} {what} DEL", state, delete)


def full(clusters: Clusters, sizes: Sizes) -> Iterator[Row]:
    """A cluster that has leases beside one that has few."""
    state = f"{sizes.leases:,} leases"
    with clusters.another("full") as cluster:
        _say(f"making {state}")
        cluster.add_leases(sizes.leases)
        itself = (clusters.cluster, clusters.agent._replace(column=ITSELF))
        both = ((cluster, cluster.add_agent(AGENT)), itself)
        add, delete = interleaved([_pod_turn(*each) for each in both], sizes.rounds)
        yield Row("pod ADD", state, add, own_limit=_FULL)
        yield Row("pod DEL", state, delete, own_limit=_FULL)
        *adds, delete = _by_call(interleaved([_vm_turn(*each) for each in both], sizes.rounds))
        for which, samples in zip(_VM, adds, strict=True):
            yield Row("VM ADD", f"{which}, {state}", samples, own_limit=_FULL)
        yield Row("VM DEL", state, delete, own_limit=_FULL)


def idle(clusters: Clusters, sizes: Sizes) -> Iterator[Row]:
    """Pods that come one by one, far apart: no call pays for a new connection."""
    cluster, caller = clusters.cluster, clusters.agent
    (sandbox,) = _pods(cluster, caller, 1)
    _add_and_delete(caller, sandbox)
    before = cluster.connections(caller)
    spent: list[float] = []
    for _ in range(sizes.pauses):
        time.sleep(sizes.pause)
        spent.append(_add_and_delete(caller, sandbox)[0])
    opened = Goal("", "new connections", len(cluster.connections(caller) - before), 0, at_least=False)
    yield Row("pod ADD", f"{sizes.pauses} of them, {sizes.pause:g} s apart", {AGENT: spent}, more=(opened,))


def fleet(clusters: Clusters, sizes: Sizes) -> Iterator[Row]:
    """The agents of many nodes at once."""
    cluster = clusters.cluster
    _say(f"starting {sizes.agents} agents, making {sizes.fleet:,} pods")
    with ExitStack() as undo:
        callers = [cluster.add_agent(AGENT, undo=undo) for _ in range(sizes.agents)]
        pods = [_pods(cluster, each, sizes.fleet // sizes.agents) for each in callers]
        # In turn, so that all of them have work all the time.
        calls = [pair for turn in zip(*pods, strict=True) for pair in zip(callers, turn, strict=True)]
        made = burst("ADD", calls, sizes.agents * sizes.at_a_time)
        seconds = Goal("", "s", made.whole / 1000, _FLEET, at_least=False)
        state = f"{sizes.agents} agents, {sizes.at_a_time} at a time each"
        yield Row(f"{len(calls):,} pods ADD", state, {AGENT: [made.whole]}, more=(seconds,))


CASES: Final[dict[str, Case]] = dict(zip(NAMES, (pod, vm, crowd, full, idle, fleet, unguarded), strict=True))


def _pod_turn(cluster: Cluster, caller: Caller) -> Turn:
    (made,) = _pods(cluster, caller, 1)

    def cycle(number: int) -> list[float]:
        return _add_and_delete(caller, made._replace(number=number))

    return Turn(caller.column, cycle)


def _add_and_delete(caller: Caller, sandbox: Sandbox) -> list[float]:
    return [caller.call(command, sandbox) for command in ("ADD", "DEL")]


def _vm_turn(cluster: Cluster, caller: Caller) -> Turn:
    """Three ADDs, each with its DEL. For whereabouts, which knows no VM, all are alike."""

    def cycle(number: int) -> list[float]:
        (running,) = cluster.start_machines(1, caller.node)
        first = Sandbox(running.pod)
        spent = [*_add_and_delete(caller, first), *_add_and_delete(caller, first._replace(number=1))]
        again = cluster.restart(running)
        return [*spent, *_add_and_delete(caller, Sandbox(again.pod))]

    def plain_cycle(_: int) -> list[float]:
        calls = [_add_and_delete(caller, made._replace(number=each)) for each in range(len(_VM))]
        return [spent for call in calls for spent in call]

    if caller.column != WHEREABOUTS:
        return Turn(caller.column, cycle)
    (made,) = _pods(cluster, caller, 1)
    return Turn(caller.column, plain_cycle)


def _by_call(figures: Sequence[Samples]) -> list[Samples]:
    """Of a VM's cycles: those of each ADD, and of all DELs."""
    deletions = figures[1::2]
    delete = {column: [spent for each in deletions for spent in each[column]] for column in figures[0]}
    return [*figures[::2], delete]


def _crowd_turn(
    cluster: Cluster,
    caller: Caller,
    make: Callable[[Cluster, Caller, int], list[Sandbox]],
    sizes: Sizes,
    slowest: list[float],
) -> Turn:
    """All ADDs, then all DELs. `slowest` is given the slowest ADD of each round, divided by the median."""

    def cycle(number: int) -> list[float]:
        calls = [(caller, each) for each in make(cluster, caller, sizes.pods)]
        added, deleted = (burst(command, calls, sizes.parallel) for command in ("ADD", "DEL"))
        if number >= 0:
            slowest.append(max(added.each) / statistics.median(added.each))
        return [added.whole, deleted.whole]

    return Turn(caller.column, cycle)


def _pods(cluster: Cluster, caller: Caller, count: int) -> list[Sandbox]:
    return [Sandbox(each) for each in cluster.pods(count, caller.node)]


def _launchers(cluster: Cluster, caller: Caller, count: int) -> list[Sandbox]:
    if caller.column == WHEREABOUTS:
        return _pods(cluster, caller, count)
    return [Sandbox(each.pod) for each in cluster.start_machines(count, caller.node)]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
