"""The store that runs every action twice: what it keeps, and that it finds actions with a memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnvnet.ipam.store.protocol import Ledger
from tests.fakes.rerun import RerunSqlite
from tests.unit.ipam.store.conformance import KEY, LEASE


def test_an_action_runs_twice_and_its_second_run_is_kept(tmp_path: Path) -> None:
    store = RerunSqlite(str(tmp_path))
    known: list[object] = []

    def action(ledger: Ledger) -> None:
        known.append(ledger.get(KEY))
        ledger.change(None, LEASE, until=0)

    store.run(action)
    assert known == [None, None]
    assert store.look(lambda ledger: ledger.get(KEY)) == LEASE
    store.close()


def test_an_action_that_remembers_its_first_run_is_found(tmp_path: Path) -> None:
    store = RerunSqlite(str(tmp_path))
    freed: list[str] = []

    def action(_: Ledger) -> list[str]:
        freed.append("10.0.0.5")
        return list(freed)

    with pytest.raises(AssertionError, match="two runs of one action come to different ends"):
        store.run(action)
    store.close()
