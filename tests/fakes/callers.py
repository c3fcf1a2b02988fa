"""The caller of a call that the agent runs, for code that behaves otherwise there than in an executable."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, nullcontext

from cnvnet.call_context import Exec, Pause, on_behalf_of


class SilentCaller:
    """One of which nothing is asked."""

    def open(self, path: str, flags: int) -> int:
        raise AssertionError("the call asks nothing of its caller")

    def stat(self, path: str) -> os.stat_result:
        raise AssertionError("the call asks nothing of its caller")

    def program(self, path: str) -> Exec:
        raise AssertionError("the call asks nothing of its caller")


@contextmanager
def in_the_agent(pause: Pause = nullcontext) -> Generator[None]:
    """Inside the block this thread runs a call as a worker of the agent does."""
    with on_behalf_of(SilentCaller(), pause=pause):
        yield
