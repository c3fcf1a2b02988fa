"""What the time of a call that comes alone is spent on, and that of the same call right after another.

    unshare --net --mount .venv/bin/python -m tests.bench.shares [l2|l3|macspoofchk]...

Milliseconds from posix_spawn to wait, of calls through the agent with the launcher in C: means of the
quicker half of them. Each moment belongs to the thread that gets on with the call: it is in a program, or in
the kernel for it, or has been made runnable and does not run yet, or waits for something else. As `perf` has
recorded it, which takes some time itself. To be started outside of a namespace for processes, whose numbers
perf does not know; on a busy machine, with `chrt -r 1` before it.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench import programs
from tests.bench.nodes import Nodes, container_id, run
from tests.bench.systems import CHECKOUT, SCRATCH, System, await_quiet, call
from tests.functional.agent.own_agent import process_of

_ROUNDS: Final = 40
_PAUSE: Final = 0.2
_SCHEDULER: Final = ("sched:sched_switch", "sched:sched_waking", "sched:sched_process_fork")
_SYSTEM_CALLS: Final = ("raw_syscalls:sys_enter", "raw_syscalls:sys_exit")
# As perf script prints them: the thread, the processor, seconds, the event and its fields.
_LINE: Final = re.compile(r"\s(\d+) \[(\d+)\] (\d+)\.(\d{9}):\s+\w+:(\w+): (.*)")
_NEXT: Final = re.compile(r"next_pid=(\d+)")
_WOKEN: Final = re.compile(r" pid=(\d+)")
_CHILD: Final = re.compile(r"child_pid=(\d+)")
SHARES: Final[tuple[str, ...]] = (
    "agent: Python",
    "agent: kernel",
    "launcher",
    "caller",
    "waking up",
    "waiting",
)


class Event(NamedTuple):
    """At `at` nanoseconds on a processor: `thread` did it to `other`: switch, notify or start."""

    at: int
    cpu: int
    thread: int
    name: str
    other: int


class Window(NamedTuple):
    """A call, from one nanosecond of the monotonic clock to another."""

    label: str
    begun: int
    ended: int


def parse(lines: Iterable[str]) -> Iterator[Event]:
    for line in lines:
        found = _LINE.search(line)
        if found is None:
            continue
        thread, cpu, seconds, fraction, name, fields = found.groups()
        pattern = {"sched_switch": _NEXT, "sched_waking": _WOKEN, "sched_process_fork": _CHILD}.get(name)
        other = pattern.search(f" {fields}") if pattern else None
        yield Event(
            int(seconds + fraction), int(cpu), int(thread), name, int(other.group(1)) if other else 0
        )


class Machine:
    """Which threads run, and where they are, event by event."""

    def __init__(self, caller: int, agent: frozenset[int]) -> None:
        self._caller = caller
        self._agent = agent
        self._launchers: set[int] = set()
        self._running: dict[int, int] = {}
        self._woken: set[int] = set()
        self._in_kernel: set[int] = set()

    def take(self, event: Event) -> None:
        match event.name:
            case "sys_enter":
                self._in_kernel.add(event.thread)
            case "sys_exit":
                self._in_kernel.discard(event.thread)
            case "sched_waking":
                self._woken.add(event.other)
            case "sched_process_fork" if event.thread == self._caller:
                self._launchers.add(event.other)
                self._woken.add(event.other)
            case "sched_switch":
                self._woken.discard(event.other)
            case _:
                pass  # a child of another process
        self._running[event.cpu] = event.other if event.name == "sched_switch" else event.thread

    def share(self) -> str:
        """What belongs to the call at this moment."""
        running = set(self._running.values())
        if working := running & self._agent:
            return SHARES[0] if working - self._in_kernel else SHARES[1]
        if running & self._launchers:
            return SHARES[2]
        if self._caller in running:
            return SHARES[3]
        return SHARES[4] if self._woken & (self._agent | self._launchers | {self._caller}) else SHARES[5]


def shares(events: Iterable[Event], windows: Iterable[Window], machine: Machine) -> Iterator[Counter[str]]:
    """Nanoseconds of each window by share; windows in their order, and none inside another."""
    rest = iter(windows)
    window = next(rest, None)
    found = Counter[str]()
    last = 0
    for event in events:
        while window is not None and event.at > window.begun:
            found[machine.share()] += max(min(event.at, window.ended) - max(last, window.begun), 0)
            if event.at < window.ended:
                break
            yield found
            window, found = next(rest, None), Counter[str]()
        machine.take(event)
        last = event.at


@contextmanager
def _recorded(path: Path, agent: frozenset[int]) -> Generator[None]:
    events = [word for name in _SCHEDULER for word in ("-e", name)]
    # Of the agent alone, whose threads began one after the other: others make thousands.
    threads = f"common_pid >= {min(agent)} && common_pid <= {max(agent)}"
    events += [word for name in _SYSTEM_CALLS for word in ("-e", name, "--filter", threads)]
    command = ["perf", "record", "-q", "-a", "-m", "16M", "-k", "mono", *events, "-o", str(path)]
    with subprocess.Popen(command) as recorder:
        time.sleep(1)
        try:
            yield
        finally:
            time.sleep(0.2)
            recorder.terminate()


def _windows(system: System, kind: str) -> Iterator[Window]:
    """Alone and not in turns."""
    for number in range(_ROUNDS):
        for state, pause in (("alone", _PAUSE), ("at once", 0.0)):
            for command in ("ADD", "DEL"):
                time.sleep(pause)
                begun = time.monotonic_ns()
                call(system, command, kind, container_id(f"{number}"))
                yield Window(f"{command} {state}", begun, time.monotonic_ns())
            await_quiet(system)


def _measure(system: System, kind: str, folder: Path) -> None:
    path = folder / "perf.data"
    pid = process_of(f"/run/{system.node}/agent.sock")
    agent = frozenset(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir())
    with _recorded(path, agent):
        windows = list(_windows(system, kind))
    script = ["perf", "script", "--ns", "-F", "comm,tid,cpu,time,event,trace", "-i", str(path)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as printed:
        assert printed.stdout is not None
        found = list(shares(parse(printed.stdout), windows, Machine(os.getpid(), agent)))
    for label in dict.fromkeys(window.label for window in windows):
        parts = [each for window, each in zip(windows, found, strict=False) if window.label == label]
        print(f"{kind} {label}: {described(parts)}")


def described(calls: Sequence[Counter[str]]) -> str:
    """The whole and its shares, means of the quicker half: the other half had others in its way."""
    quick = sorted(calls, key=lambda each: sum(each.values()))[: (len(calls) + 1) // 2]
    means = {share: statistics.mean(each[share] for each in quick) / 1e6 for share in SHARES}
    return f"{sum(means.values()):.2f} = " + ", ".join(f"{share} {ms:.2f}" for share, ms in means.items())


def main() -> None:
    run("mount", "-t", "tmpfs", "bench", "/run")
    SCRATCH.mkdir()
    folder = Path(tempfile.mkdtemp(prefix="bench.", dir=CHECKOUT / ".tools"))
    try:
        with Nodes(folder, programs.make(CHECKOUT, folder)).systems("shares") as systems:
            for kind in sys.argv[1:] or ["l2"]:
                _measure(systems.agent, kind, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
