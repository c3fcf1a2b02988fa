"""The last lines of scripts/test, of real runs of pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]

# Each test fails as often as its parameter says, in the life of one process.
TESTS = """
import pytest
seen = {}
@pytest.mark.parametrize("failures", [%s])
def test_it(failures, request):
    seen[request.node.name] = seen.get(request.node.name, 0) + 1
    assert seen[request.node.name] > failures
"""


def sum_up(folder: Path, failures: str) -> tuple[int, list[str]]:
    """Exit status and lines of sum_up.py over a run of tests that fail so often."""
    tests = folder / "test_some.py"
    tests.write_text(TESTS % failures)
    logs = folder / "logs"
    logs.mkdir()
    command = [sys.executable, "-m", "pytest", "-q", "-raR", "-p", "no:cacheprovider", "--reruns", "1"]
    run = subprocess.run(
        [*command, f"--junit-xml={logs}/unit.xml", str(tests)], cwd=folder, capture_output=True, text=True
    )
    (logs / "unit.log").write_text(run.stdout)
    summed = subprocess.run(
        [sys.executable, CHECKOUT / "scripts" / "sum_up.py", logs], capture_output=True, text=True
    )
    return summed.returncode, summed.stdout.splitlines()


def test_a_test_that_passes_the_second_time_is_named(tmp_path: Path) -> None:
    status, lines = sum_up(tmp_path, "0, 1")
    assert status == 0
    assert lines[0].startswith("unit:")
    assert "2 passed, 0 failed, 0 skipped" in lines[0]
    assert lines[1:] == [
        "unit: run a second time, to be made steady: test_some.py::test_it[1]",
        "2 passed, 0 failed, 0 skipped",
    ]


def test_a_test_that_fails_twice_is_a_failure(tmp_path: Path) -> None:
    status, lines = sum_up(tmp_path, "0, 2")
    assert (status, lines[-1]) == (1, "1 passed, 1 failed, 0 skipped")


def test_many_that_pass_the_second_time_are_a_failure(tmp_path: Path) -> None:
    status, lines = sum_up(tmp_path, ", ".join(["1"] * 11))
    assert status == 1
    assert lines[-2] == "11 tests were run a second time: more than 10 count as a failure"
