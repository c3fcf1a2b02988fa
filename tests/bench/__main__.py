"""The program: scripts/bench starts this in namespaces of its own, which end with it."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench import chart, programs, report
from tests.bench.cases import CASES, FULL, QUICK, Sizes
from tests.bench.nodes import Nodes, run
from tests.bench.report import Row
from tests.bench.systems import CHECKOUT, SCRATCH, Failed


def _rows(names: list[str], sizes: Sizes, folder: Path) -> Iterator[Row]:
    nodes = Nodes(folder, programs.make(folder))
    for name in names:
        yield from CASES[name](nodes, sizes)


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
        sizes = sizes._replace(rounds=arguments.rounds, points=min(arguments.rounds, sizes.points))
    # Leases are on a disk, as on a node; records and results are in memory, as /run is.
    folder = Path(tempfile.mkdtemp(prefix="bench.", dir=CHECKOUT / ".tools"))
    rows: list[Row] = []
    try:
        for row in _rows(arguments.only or list(CASES), sizes, folder):
            rows.append(row)
            _say(" | ".join(row.cells()))
    except KeyboardInterrupt:
        return 130
    except (Failed, RuntimeError) as error:
        _say(f"bench: {error}")
        return 1
    finally:
        shutil.rmtree(folder)
    (arguments.form or report.as_table)(rows)
    if arguments.chart:
        arguments.chart.write_text(chart.draw(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
