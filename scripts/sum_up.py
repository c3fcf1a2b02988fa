"""Prints the counts of each suite's report in a folder, their sum last. Fails if a test has failed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


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
    columns = zip(*counts.values(), strict=True)
    print(Counts(*(sum(column) for column in columns)) if counts else Counts(0, 0, 0, 0.0))
    return 1 if any(count.failed for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
