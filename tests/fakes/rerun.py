"""A store that meets a conflict in every run, and runs each action again: as optimistic concurrency does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.ipam.store.sqlite_ledger import SqliteLedger

T = TypeVar("T")


class _Conflict(Exception):
    """Ends the first run, of which nothing is kept."""


class RerunSqlite(Sqlite):
    """The embedded store, which takes back the first run of each action and keeps the second.

    An action with an effect beyond its ledger shows: its two runs, on equal ledgers, come to different ends,
    or the effect is there twice.
    """

    def run(self, action: Callable[[SqliteLedger], T], /) -> T:
        ends: list[object] = []

        def first(ledger: SqliteLedger) -> None:
            try:
                ends.append(action(ledger))
            except Exception as e:  # noqa: BLE001 -- whatever it is, the second run has to end alike
                ends.append((type(e), str(e)))
            raise _Conflict

        def second(ledger: SqliteLedger) -> T:
            try:
                result = action(ledger)
            except Exception as e:
                _ensure_same(ends[0], (type(e), str(e)))
                raise
            _ensure_same(ends[0], result)
            return result

        try:
            super().run(first)
        except _Conflict:
            return super().run(second)
        raise AssertionError("the first run was kept")


def _ensure_same(first: object, second: object) -> None:
    # An object that equals only itself, such as the connection that a test asks for, tells nothing.
    if type(first).__eq__ is not object.__eq__:
        assert first == second, "two runs of one action come to different ends"
