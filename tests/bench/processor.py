"""What a call takes of the processor: the agent, its launcher, and this process that makes it.

    unshare --net --mount --pid --fork --mount-proc .venv/bin/python -m tests.bench.processor

Milliseconds. Calls one after the other: medians by the clock, from posix_spawn to wait, and of the agent's
processor time, of which links that are deleted later are a part. In bursts: processor time per call.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench import programs
from tests.bench.nodes import Nodes, Systems, container_id, run
from tests.bench.systems import CHECKOUT, SCRATCH, System, await_quiet, burst, call
from tests.functional.agent.own_agent import process_of

_ROUNDS: Final = 300
_BURSTS: Final = 20
_PODS: Final = 50
_PARALLEL: Final = 16
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Spent(NamedTuple):
    """Milliseconds of the processor."""

    python: float
    kernel: float
    launchers: float
    caller: float


def _agent(system: System) -> int:
    return process_of(f"/run/{system.node}/agent.sock")


def _exactly(pid: int) -> float:
    """Milliseconds of all threads of a process, to the nanosecond but not by mode."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


def _spent(pid: int) -> Spent:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    python, kernel = (int(field) * 1000 / _TICKS for field in fields[11:13])
    usage = [resource.getrusage(processes) for processes in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)]
    launchers, caller = ((each.ru_utime + each.ru_stime) * 1000 for each in usage)
    return Spent(python, kernel, launchers, caller)


def _measured(pid: int, count: int, step: Callable[[], object]) -> Spent:
    """Of one of so many."""
    before = _spent(pid)
    step()
    after = _spent(pid)
    return Spent(*((then - now) / count for now, then in zip(before, after, strict=True)))


def one_by_one(system: System, kind: str) -> None:
    pid = _agent(system)
    clock: dict[str, list[float]] = {"ADD": [], "DEL": []}
    agent: dict[str, list[float]] = {"ADD": [], "DEL": []}
    for number in range(_ROUNDS):
        for command in clock:
            before = _exactly(pid)
            spent, _ = call(system, command, kind, container_id(f"round {number}"))
            if command == "DEL":
                await_quiet(system)
            clock[command].append(spent)
            agent[command].append(_exactly(pid) - before)
    for command in clock:
        figures = f"{statistics.median(clock[command]):.2f} by the clock"
        print(f"{kind.upper()} {command}: {figures}, the agent {statistics.median(agent[command]):.2f}")


def in_bursts(system: System) -> None:
    pods = [f"{system.node}-{number}" for number in range(_PODS)]
    for pod in pods:
        run("ip", "netns", "add", pod)
    pid = _agent(system)
    found: dict[str, list[Spent]] = {"ADD": [], "DEL": []}
    for _ in range(_BURSTS):
        for command, spent in found.items():
            step = partial(burst, system, command, "l2", pods, _PARALLEL)
            spent.append(_measured(pid, _PODS, step))
    for command, spent in found.items():
        means = Spent(*(statistics.mean(column) for column in zip(*spent, strict=True)))
        shares = ", ".join(f"{name} {each:.2f}" for name, each in means._asdict().items())
        print(f"{_PODS} L2 {command}, {_PARALLEL} at a time, each: {shares}")


def _all(systems: Systems) -> None:
    for kind in ("l2", "l3"):
        one_by_one(systems.agent, kind)
    in_bursts(systems.agent)


def main() -> None:
    run("mount", "-t", "tmpfs", "bench", "/run")
    SCRATCH.mkdir()
    folder = Path(tempfile.mkdtemp(prefix="bench.", dir=CHECKOUT / ".tools"))
    try:
        with Nodes(folder, programs.make(CHECKOUT, folder)).systems("processor") as systems:
            _all(systems)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
