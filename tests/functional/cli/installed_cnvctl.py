"""cnvctl as it is installed, on the files of a node and in its namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.harness import Node, installed


class Printed(NamedTuple):
    """What one call printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def rows(self) -> list[list[str]]:
        """The lines of a table below its headings, cut at blanks as awk does it."""
        return [line.split() for line in self.stdout.splitlines()[1:]]

    @property
    def pairs(self) -> dict[str, str]:
        """Lines of a name and a value."""
        return {
            name: value.strip()
            for name, _, value in (line.partition("  ") for line in self.stdout.splitlines())
        }

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def cnvctl(node: Node, *args: str, code: int = 0, within: Sequence[str] = ()) -> Printed:
    """One call that ends with this exit code; what it printed. `within` is a command that runs it."""
    done = subprocess.run(
        ["nsenter", f"--net={node.netns}", *within, installed("cnvctl"), *args],
        env=node.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, f"cnvctl {args} ended with {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return Printed(done.returncode, done.stdout, done.stderr)
