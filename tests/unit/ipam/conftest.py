"""Each store in turn, for the suites that all of them have to pass."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.unit.ipam.store.conformance import STORES, ClosableStore, Desk, Factory


@pytest.fixture(params=STORES)
def open_store(request: pytest.FixtureRequest) -> Factory:
    name: str = request.param
    return STORES[name]


@pytest.fixture
def any_store(open_store: Factory, tmp_path: Path) -> Generator[ClosableStore]:
    made = open_store(tmp_path / "state")
    yield made
    made.close()


@pytest.fixture
def desk(any_store: ClosableStore) -> Desk:
    return Desk(any_store)
