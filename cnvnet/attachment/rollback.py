"""Steps that are all tried, also after one of them has failed: the rollback of an ADD, and a DEL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TypeVarTuple

from cnvnet.call_context import log
from cnvnet.cni.errors import CNIError
from cnvnet.kernel.netns import LostNamespace

Args = TypeVarTuple("Args")


class ErrorCollector:
    """The errors of steps that go on after one another's failure; a line each says which step it was."""

    def __init__(self) -> None:
        self.errors: list[CNIError | OSError] = []

    def attempt(self, what: str, step: Callable[[*Args], object], *args: *Args) -> None:
        """Take a step; its CNIError or OSError is logged and kept."""
        try:
            step(*args)
        except (CNIError, OSError) as e:
            self.errors.append(e)
            log(f"{what}: {e}")

    def raise_first(self) -> None:
        """Raises the error of the first step that failed, if one did."""
        if self.errors:
            raise self.errors[0]


class Rollback:
    """Undoes the steps of an ADD, the last one first, if an exception leaves the block.

    A step that fails is logged and does not replace the exception. The step of `on_clean` runs last, and
    only when all others have worked: the record must stay as long as anything that it names is there.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._collector = ErrorCollector()

    def push(self, what: str, step: Callable[[*Args], object], *args: *Args) -> None:
        """Add the step that undoes what has just been done."""
        self._stack.callback(lambda: self._collector.attempt(what, step, *args))

    def on_clean(self, what: str, step: Callable[[], object]) -> None:
        """Runs `step` after all others, when none of them has failed. To be pushed first."""
        self._stack.callback(self._if_clean, what, step)

    def __enter__(self) -> Rollback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A thread that cannot leave another namespace must not change anything: the next call reads the
        # record.
        if kind is None or issubclass(kind, LostNamespace):
            self._stack.pop_all()
        else:
            self._stack.close()

    def _if_clean(self, what: str, step: Callable[[], object]) -> None:
        if not self._collector.errors:
            self._collector.attempt(what, step)
