"""Deeds that are all tried, whatever became of those before: the undoing of an ADD, and a DEL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TypeVarTuple

from cnvnet.cni.errors import CNIError
from cnvnet.diagnostics import say
from cnvnet.kernel.netns import LostNamespace

Args = TypeVarTuple("Args")


class Attempts:
    """Remembers what went wrong; `what` says in a diagnostic which deed it was."""

    def __init__(self) -> None:
        self.errors: list[CNIError | OSError] = []

    def attempt(self, what: str, deed: Callable[[*Args], object], *args: *Args) -> None:
        try:
            deed(*args)
        except (CNIError, OSError) as e:
            self.errors.append(e)
            say(f"{what}: {e}")


class Undo:
    """What an ADD has done so far: undone, the last deed first, if the block is left by an exception.

    An undo that fails is reported and does not replace the exception. `finally_` runs last of all, and only
    when every undo has worked: what a record knows must be kept as long as any of it is there.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._attempts = Attempts()

    def push(self, what: str, deed: Callable[[*Args], object], *args: *Args) -> None:
        self._stack.callback(lambda: self._attempts.attempt(what, deed, *args))

    def finally_(self, what: str, deed: Callable[[], object]) -> None:
        """To be pushed first."""
        self._stack.callback(self._if_all_went_well, what, deed)

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A thread stuck in a foreign namespace must not touch anything: the record tells the next call.
        if kind is None or issubclass(kind, LostNamespace):
            self._stack.pop_all()
        else:
            self._stack.close()

    def _if_all_went_well(self, what: str, deed: Callable[[], object]) -> None:
        if not self._attempts.errors:
            self._attempts.attempt(what, deed)
