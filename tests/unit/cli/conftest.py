"""Fixtures for the tests of cnvctl."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnvnet.ipam.store.sqlite import Sqlite
from tests.fakes.rerun import RerunSqlite
from tests.unit.cli.lease_node import Node


@pytest.fixture(params=[Sqlite, RerunSqlite])
def node(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Node:
    """With a store, and with one that runs each action twice."""
    monkeypatch.setattr("cnvnet.cli.stores.Sqlite", request.param)
    return Node(tmp_path)


@pytest.fixture
def full(node: Node) -> Node:
    """All five addresses of `many` are taken: vm0 runs, the others were stopped a day ago each."""
    for number in range(5):
        node.add(f"vm{number}", ago=10 * 86400)
    for number in range(1, 5):
        node.delete(f"vm{number}", ago=number * 86400 + 60)
    return node
