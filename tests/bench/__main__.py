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
from pathlib import Path
from types import FrameType
from typing import IO, Final

from tests.bench import chart, programs, report
from tests.bench.cases import CASES, FULL, QUICK, Sizes
from tests.bench.nodes import Nodes, run
from tests.bench.report import Row
from tests.bench.systems import CHECKOUT, SCRATCH, Failed

_TOOLS: Final = CHECKOUT / ".tools"
_PREFIX: Final = "bench."
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Run:
    """The rows so far, and the cases that came to nothing."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.failed: list[str] = []
        self.interrupted = False

    def interrupt(self, _: int, __: FrameType | None) -> None:
        """The first of such signals ends the run, and nothing disturbs its end."""
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        self.interrupted = True
        raise KeyboardInterrupt

    def measure(self, names: list[str], sizes: Sizes, folder: Path) -> None:
        nodes = Nodes(folder, programs.make(folder))
        for name in names:
            begun = time.monotonic()
            try:
                for row in CASES[name](nodes, sizes):
                    self.rows.append(row)
                    _say(" | ".join(row.cells()))
            except (Failed, RuntimeError, OSError) as error:
                if self.interrupted:
                    return  # what it met on its way out is no news
                # The others tell as much as before.
                self.failed.append(name)
                _say(f"bench: case {name}: {error}")
            _say(f"{name}: {time.monotonic() - begun:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="cnvnet beside the reference plugins")
    parser.add_argument("--quick", action="store_true", help="two rounds on little, to see that it works")
    parser.add_argument("--rounds", type=int, help=f"so many of each (default {FULL.rounds})")
    parser.add_argument(
        "--only", action="append", default=[], choices=list(CASES), help="this case, and others so named"
    )
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw ADD by ports and leases, as SVG")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="all cases: the tables between the marks of this document",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_const", dest="form", const=report.as_markdown)
    form.add_argument("--json", action="store_const", dest="form", const=report.as_json)
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    if arguments.only and arguments.report:
        parser.error("--report needs all cases: leave --only away")
    if arguments.only and arguments.chart and not {"ports", "leases"} <= set(arguments.only):
        parser.error("--chart needs at least --only=ports --only=leases")
    if arguments.quick and arguments.report:
        parser.error("--report: --quick measures nothing that is worth to be kept")
    return arguments


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


def main() -> int:
    arguments = _arguments()
    if os.getpid() != 1:
        sys.exit("bench: start me as scripts/bench")
    measured = _Run()
    for number in _ENDING:
        signal.signal(number, measured.interrupt)
    lock = _only_one()
    run("mount", "-t", "tmpfs", "bench", "/run")
    SCRATCH.mkdir()
    if os.getloadavg()[0] > 1:
        _say(f"bench: others are at work here (load average {os.getloadavg()[0]:.1f}): expect noise")
    sizes = QUICK if arguments.quick else FULL
    if arguments.rounds:
        sizes = sizes._replace(rounds=arguments.rounds)
    # Leases are on a disk, as on a node; records and results are in memory, as /run is.
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_TOOLS))
    try:
        measured.measure(arguments.only or list(CASES), sizes, folder)
    except KeyboardInterrupt:
        pass  # asked for; what was measured is shown
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        shutil.rmtree(folder)
        lock.close()
    if measured.rows:
        (arguments.form or report.as_table)(measured.rows)
    if measured.interrupted or measured.failed:
        why = "interrupted" if measured.interrupted else f"failed: {', '.join(measured.failed)}"
        _say(f"bench: {why}")
        return 130 if measured.interrupted else 1
    if arguments.chart:
        arguments.chart.write_text(chart.draw(measured.rows))
    if arguments.report:
        arguments.report.write_text(report.replaced(arguments.report.read_text(), measured.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
