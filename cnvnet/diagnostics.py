"""Where diagnostics go: one line each to stderr, or to whoever collects them for the caller of this thread.

Code below `plugins` and `ipam` runs in an executable and in the agent's worker threads alike; only this
module knows whose stderr is meant. Nothing is ever printed to stdout, which belongs to `cni.executable`.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_lines: ContextVar[list[str] | None] = ContextVar("diagnostics", default=None)


def say(text: str) -> None:
    """One diagnostic, its line breaks flattened. Never raises: nothing depends on its being read."""
    line = " ".join(text.split("\n"))
    lines = _lines.get()
    if lines is not None:
        lines.append(line)
        return
    try:
        # Not print(), which takes a missing stderr for leave to write to stdout.
        sys.stderr.write(f"{line}\n")
    except (OSError, ValueError, AttributeError):
        pass  # stderr is closed, full or was never there


@contextmanager
def collected() -> Generator[list[str]]:
    """Everything said by this thread inside the block, instead of being printed."""
    lines: list[str] = []
    token = _lines.set(lines)
    try:
        yield lines
    finally:
        _lines.reset(token)
