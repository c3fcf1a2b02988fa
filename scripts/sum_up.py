"""Prints the counts of each suite's report in a folder, their sum last.

Fails if a test has failed, or if more than MOST_REPEATED passed only when they were run a second time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

# Two processors that others may load too make a few of thousands of tests late; more have another cause.
MOST_REPEATED = 10


class Counts(NamedTuple):
    """How many tests ended which way, and how long they took."""

    passed: int
    failed: int
    skipped: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def read_report(path: Path) -> Counts:
    """The counts in a JUnit report of pytest's."""
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))

    def total(name: str) -> int:
        return sum(int(suite.get(name, "0")) for suite in suites)

    failed = total("failures") + total("errors")
    passed = total("tests") - failed - total("skipped")
    return Counts(passed, failed, total("skipped"), sum(float(suite.get("time", "0")) for suite in suites))


def read_repeated(path: Path) -> list[str]:
    """The tests that were run a second time, by the log of a run of pytest with pytest-rerunfailures."""
    return [
        line.split()[1]
        for line in path.read_text(errors="replace").splitlines()
        if line.startswith("RERUN ")
    ]


def main(folder: Path) -> int:
    """Print the sums; the exit status of the whole run."""
    counts = {path.stem: read_report(path) for path in sorted(folder.glob("*.xml"))}
    failed = folder / "failed"
    for suite in failed.read_text().split() if failed.exists() else []:
        reported = counts.get(suite, Counts(0, 0, 0, 0.0))
        counts[suite] = reported._replace(failed=reported.failed + 1)
        print(f"{suite}: ended before its last test did, see {folder / suite}.log")
    for suite, count in sorted(counts.items()):
        print(f"{suite + ':':<20}{count} in {count.seconds:.0f} s")
    repeated = [(path.stem, test) for path in sorted(folder.glob("*.log")) for test in read_repeated(path)]
    for suite, test in repeated:
        print(f"{suite}: run a second time, to be made steady: {test}")
    if len(repeated) > MOST_REPEATED:
        print(f"{len(repeated)} tests were run a second time: more than {MOST_REPEATED} count as a failure")
    columns = zip(*counts.values(), strict=True)
    print(Counts(*(sum(column) for column in columns)) if counts else Counts(0, 0, 0, 0.0))
    return 1 if any(count.failed for count in counts.values()) or len(repeated) > MOST_REPEATED else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
