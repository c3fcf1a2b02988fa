"""The rounds: scripts/bench starts this in namespaces of its own, which end with it."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench import report
from tests.bench.nodes import add_foreign_chains, add_leases, add_ports, container_id, make_pair, run
from tests.bench.report import Row
from tests.bench.resident import Resident
from tests.bench.systems import CHECKOUT, SCRATCH, Failed, System, call

Pair = tuple[System, System]

KINDS = {"l2": "L2", "macspoofchk": "macspoofchk", "l3": "L3"}


class Sizes(NamedTuple):
    """How much is there already, and how long one row may take."""

    ports: tuple[int, ...]
    chains: int
    leases: tuple[int, ...]
    rounds: int
    seconds: float


FULL = Sizes((0, 1000, 4000), 20_000, (0, 10_000, 100_000), 40, 20.0)
QUICK = Sizes((0, 20), 50, (0, 100), 2, 5.0)
# The slowest rows stop early, but not before this many rounds.
FEWEST_ROUNDS = 5


class Residents:
    """The processes that take our calls with --resident."""

    def __init__(self, profile: str) -> None:
        self._profile = profile
        self._started: list[Resident] = []

    def __call__(self, node: str) -> Resident:
        self._started.append(Resident(node, self._profile and f"{self._profile}.{node}"))
        return self._started[-1]

    def close(self) -> None:
        for each in self._started:
            each.close()


class Bench:
    """Measures rows, and prepares what they need only if one of them is wanted."""

    def __init__(
        self, sizes: Sizes, only: list[str], folder: Path, resident: Residents | None = None
    ) -> None:
        self.sizes = sizes
        self.only = [text.lower() for text in only]
        self.folder = folder
        self.resident = resident

    def make_pair(self, name: str) -> Pair:
        return make_pair(name, self.folder, resident=self.resident)

    def wants(self, *rows: tuple[str, str]) -> bool:
        """Whether one of these (operation, state) was asked for."""
        names = [f"{operation} {state}".lower() for operation, state in rows]
        return not self.only or any(text in name for text in self.only for name in names)

    def rows(self) -> Iterator[Row]:
        yield from self.versions()
        yield from self.ports()
        yield from self.foreign_chains()
        yield from self.leases()

    def versions(self) -> Iterator[Row]:
        names = {"l2": "bridge VERSION", "ipam": "IPAM VERSION"}
        if not self.wants(*((name, "") for name in names.values())):
            return
        pair = self.make_pair("version")
        for kind, name in names.items():
            if self.wants((name, "")):
                reference, ours = self.interleaved(pair, ("VERSION",), kind)
                yield Row(name, "", reference[0], ours[0])

    def ports(self) -> Iterator[Row]:
        states = [(count, f"{count:,} ports") for count in self.sizes.ports]
        wanted = [count for count, state in states if self.wants(*_both(KINDS.values(), state))]
        if not wanted:
            return
        pair = self.make_pair("ports")
        there = 0
        for count, state in states:
            if count > max(wanted):
                return
            if count > there:
                _say(f"making {count - there:,} ports")
                for system in pair:
                    add_ports(system, there, count)
                there = count
            for kind, name in KINDS.items():
                yield from self.add_and_delete(pair, kind, name, state)

    def foreign_chains(self) -> Iterator[Row]:
        state = f"{self.sizes.chains:,} chains"
        if not self.wants(*_both(KINDS.values(), state)):
            return
        pair = self.make_pair("chains")
        _say(f"making {self.sizes.chains:,} chains")
        for system in pair:
            add_foreign_chains(system, self.sizes.chains)
        for kind, name in KINDS.items():
            yield from self.add_and_delete(pair, kind, name, state)

    def leases(self) -> Iterator[Row]:
        for count in self.sizes.leases:
            state = f"{count:,} leases"
            if self.wants(*_both(["IPAM"], state)):
                pair = self.make_pair(f"leases{count}")
                _say(f"making {count:,} leases")
                for system in pair:
                    add_leases(system, count)
                yield from self.add_and_delete(pair, "ipam", "IPAM", state)

    def add_and_delete(self, pair: Pair, kind: str, name: str, state: str) -> Iterator[Row]:
        if not self.wants(*_both([name], state)):
            return

        commands = ("ADD", "DEL")
        reference, ours = self.interleaved(pair, commands, kind)
        for index, command in enumerate(commands):
            yield Row(f"{name} {command}", state, reference[index], ours[index])

    def interleaved(self, pair: Pair, commands: tuple[str, ...], kind: str) -> list[list[list[float]]]:
        """By system and command, the samples of all rounds; the systems take turns at going first."""

        def cycle(system: System, number: int) -> list[float]:
            name = container_id(f"round {number}")
            return [call(system, command, kind, name)[0] for command in commands]

        for system in pair:
            cycle(system, -1)  # caches are warm, chains are made
        rounds: dict[str, list[list[float]]] = {system.name: [] for system in pair}
        deadline = time.monotonic() + self.sizes.seconds
        for number in range(self.sizes.rounds):
            if number >= FEWEST_ROUNDS and time.monotonic() > deadline:
                break
            for system in pair if number % 2 else reversed(pair):
                rounds[system.name].append(cycle(system, number))
        return [[list(samples) for samples in zip(*rounds[system.name], strict=True)] for system in pair]


def _both(names: Iterable[str], state: str) -> list[tuple[str, str]]:
    return [(f"{name} {command}", state) for name in names for command in ("ADD", "DEL")]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="cnvnet beside the reference plugins")
    parser.add_argument("--quick", action="store_true", help="two rounds on little, to see that it works")
    parser.add_argument("--rounds", type=int, help=f"at most so many of each (default {FULL.rounds})")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help='rows with this in their name, like "L2 ADD 1,000"',
    )
    parser.add_argument(
        "--resident",
        action="store_true",
        help="our calls go to a process that stays, and are timed inside it",
    )
    parser.add_argument("--profile", default="", metavar="FILE", help="with --resident: cProfile's, by node")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_const", dest="form", const=report.as_markdown)
    form.add_argument("--json", action="store_const", dest="form", const=report.as_json)
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    if os.getpid() != 1:
        sys.exit("bench: start me as scripts/bench")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run("mount", "-t", "tmpfs", "bench", "/run")
    SCRATCH.mkdir()
    sizes = QUICK if arguments.quick else FULL
    if arguments.rounds:
        sizes = sizes._replace(rounds=arguments.rounds)
    # Leases are on a disk, as on a node; records and results are in memory, as /run is.
    folder = Path(tempfile.mkdtemp(prefix="bench.", dir=CHECKOUT / ".tools"))
    residents = Residents(arguments.profile) if arguments.resident else None
    try:
        rows: list[Row] = []
        for row in Bench(sizes, arguments.only, folder, residents).rows():
            rows.append(row)
            _say(" ".join(row.cells()))
    except KeyboardInterrupt:
        return 130
    except (Failed, RuntimeError) as error:
        _say(f"bench: {error}")
        return 1
    finally:
        if residents is not None:
            residents.close()
        shutil.rmtree(folder)
    (arguments.form or report.as_table)(rows, resident=arguments.resident)
    return 0


if __name__ == "__main__":
    sys.exit(main())
