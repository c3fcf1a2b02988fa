"""The program: scripts/bench starts this in namespaces of its own, which end with it."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Final

from tests.bench import chart, cluster, programs, report
from tests.bench.cases import CASES, FULL, QUICK
from tests.bench.datapath import cases as paths
from tests.bench.datapath import table
from tests.bench.datapath.table import PathRow
from tests.bench.nodes import Nodes, run
from tests.bench.report import Row
from tests.bench.systems import CHECKOUT, SCRATCH, Failed

_TOOLS: Final = CHECKOUT / ".tools"
_PREFIX: Final = "bench."
# The case whose rows are of another kind, and fill tables of their own: processor time of packets.
_DATAPATH: Final = "datapath"
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Run:
    """The rows so far, and the cases that came to nothing."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.paths: list[PathRow] = []
        self.failed: list[str] = []
        self.interrupted = False

    def interrupt(self, _: int, __: FrameType | None) -> None:
        """The first of such signals ends the run, and nothing disturbs its end."""
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        self.interrupted = True
        raise KeyboardInterrupt

    def measure(self, cases: Mapping[str, Callable[[], Iterable[Row | PathRow]]]) -> None:
        for name, case in cases.items():
            begun = time.monotonic()
            try:
                for row in case():
                    if isinstance(row, PathRow):
                        self.paths.append(row)
                        _say(table.line(row))
                    else:
                        self.rows.append(row)
                        _say(report.line(row))
            except (Failed, RuntimeError, OSError) as error:
                if self.interrupted:
                    return  # what it met on its way out is no news
                # The others tell as much as before.
                self.failed.append(name)
                _say(f"bench: case {name}: {error}")
            _say(f"{name}: {time.monotonic() - begun:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. SystemExit: it cannot be carried out; standard error says why."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="cnvnet beside the reference plugins")
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="static-ip with its leases in a Kubernetes API, beside whereabouts: other cases than without",
    )
    parser.add_argument("--quick", action="store_true", help="two rounds on little, to see that it works")
    parser.add_argument("--rounds", type=int, help=f"so many of each (default {FULL.rounds})")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[*CASES, _DATAPATH, *cluster.NAMES],
        help="this case, and others so named",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="also measure the agent and the C launcher of another commit, on a node of their own in the "
        "same rounds: columns 'other, C' and '× other' (ours divided by the other's). DIR is a checkout "
        "of it (git worktree add DIR COMMIT) that its own scripts/setup bench has set up",
    )
    parser.add_argument(
        "--agents-only",
        action="store_true",
        help="with --against: measure nothing but the two agents with their C launchers, which is quicker",
    )
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw ADD by ports and leases, as SVG")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help=f"all cases, or {_DATAPATH} alone: the tables between the marks of this document",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_const", dest="form", const=report.as_markdown)
    form.add_argument("--json", action="store_const", dest="form", const=report.as_json)
    arguments = parser.parse_args(argv)
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    if arguments.quick and arguments.report:
        parser.error("--report: --quick measures nothing that is worth to be kept")
    if _DATAPATH in arguments.only:
        if arguments.only != [_DATAPATH] or arguments.cluster or arguments.against or arguments.chart:
            parser.error(f"--only {_DATAPATH}: its rows are of another kind, measure it alone")
        return arguments
    cases = cluster.NAMES if arguments.cluster else CASES
    if others := [each for each in arguments.only if each not in cases]:
        parser.error(f"--only {others[0]}: {'not with' if arguments.cluster else 'needs'} --cluster")
    if arguments.cluster and arguments.chart:
        parser.error("--chart has ports and leases of one node: leave --cluster away")
    if arguments.only and arguments.report:
        parser.error("--report needs all cases: leave --only away")
    if arguments.only and arguments.chart and not {"ports", "leases"} <= set(arguments.only):
        parser.error("--chart needs at least --only=ports --only=leases")
    if arguments.agents_only and (arguments.chart or not arguments.against):
        parser.error("--agents-only needs --against, and draws no --chart: it leaves the reference out")
    if arguments.against:
        if arguments.report:
            parser.error("--report has no columns for another checkout: leave --against away")
        arguments.against = arguments.against.resolve()
        if reason := programs.unusable(arguments.against):
            parser.error(f"--against {arguments.against}: {reason}")
    return arguments


def _cases(
    chosen: argparse.Namespace, folder: Path, undo: ExitStack
) -> dict[str, Callable[[], Iterable[Row | PathRow]]]:
    """Those that are chosen; what they make is below `folder` and ends with `undo`."""
    other = programs.make(chosen.against, folder / "other") if chosen.against else None
    ours = programs.make(CHECKOUT, folder / "ours")
    if chosen.cluster:
        # Only then what the tests of a cluster need has to be here.
        from tests.bench.cluster import cases
        from tests.bench.cluster.clusters import Clusters

        clusters = Clusters(folder, ours, other, undo, agents_only=chosen.agents_only)
        of_cluster = cases.QUICK if chosen.quick else cases.FULL
        of_cluster = of_cluster._replace(rounds=chosen.rounds or of_cluster.rounds)
        return {
            name: partial(cases.rows, name, clusters, of_cluster) for name in chosen.only or cluster.NAMES
        }
    sizes = QUICK if chosen.quick else FULL
    sizes = sizes._replace(rounds=chosen.rounds or sizes.rounds)
    nodes = Nodes(folder, ours, other, agents_only=chosen.agents_only)
    if chosen.only == [_DATAPATH]:
        path_sizes = paths.QUICK if chosen.quick else paths.FULL
        path_sizes = path_sizes.measured(chosen.rounds or path_sizes.slices.rounds)
        return {_DATAPATH: partial(paths.rows, nodes, path_sizes, folder)}
    return {name: partial(CASES[name], nodes, sizes) for name in chosen.only or CASES}


def reported(document: str, rows: list[Row], paths: list[PathRow], *, cluster: bool) -> str:
    """The document with what was measured between the marks of the command. ValueError: it has none."""
    if paths:
        return report.replaced(document, table.markdown(paths), f"scripts/bench --only {_DATAPATH}")
    command = "scripts/bench --cluster" if cluster else "scripts/bench"
    return report.replaced(document, report.markdown(rows), command)


def _only_one() -> IO[str]:
    """Two at once would measure each other; what one has left that was killed is removed."""
    lock = (_TOOLS / "bench-lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("bench: another one runs in this checkout")
    for left in _TOOLS.glob(f"{_PREFIX}*"):
        shutil.rmtree(left)
    return lock


def _ensure_there(names: Iterable[str]) -> None:
    missing = ", ".join(name for name in names if not (_TOOLS / "bin" / name).exists())
    if missing:
        sys.exit(f"bench: {missing}: not here (scripts/peers builds it, or CNV_PEERS=FOLDER has it)")


def main() -> int:
    chosen = arguments(sys.argv[1:])
    if os.getpid() != 1:
        sys.exit("bench: start me as scripts/bench")
    if chosen.cluster:
        _ensure_there(cluster.PROGRAMS)
    measured = _Run()
    for number in _ENDING:
        signal.signal(number, measured.interrupt)
    lock = _only_one()
    run("mount", "-t", "tmpfs", "bench", "/run")
    SCRATCH.mkdir()
    if os.getloadavg()[0] > 1:
        _say(f"bench: others are at work here (load average {os.getloadavg()[0]:.1f}): expect noise")
    if chosen.against:
        _say(f"other: {programs.commit(chosen.against)}, ours: {programs.commit(CHECKOUT)}")
    # Leases are on a disk, as on a node; records and results are in memory, as /run is.
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_TOOLS))
    os.environ["CNV_PEERS"] = str(_TOOLS / "bin")
    try:
        with ExitStack() as undo:
            measured.measure(_cases(chosen, folder, undo))
    except KeyboardInterrupt:
        pass  # asked for; what was measured is shown
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        shutil.rmtree(folder)
        lock.close()
    if measured.rows:
        (chosen.form or report.as_table)(measured.rows)
    if measured.paths:
        (table.as_json if chosen.form is report.as_json else table.as_markdown)(measured.paths)
    if measured.interrupted or measured.failed:
        why = "interrupted" if measured.interrupted else f"failed: {', '.join(measured.failed)}"
        _say(f"bench: {why}")
        return 130 if measured.interrupted else 1
    if chosen.chart:
        chosen.chart.write_text(chart.draw(measured.rows))
    if chosen.report:
        text = reported(chosen.report.read_text(), measured.rows, measured.paths, cluster=chosen.cluster)
        chosen.report.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
