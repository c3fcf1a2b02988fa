"""What the tests of the Kubernetes store share."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.fakes.api_server import ApiServer, running_api_server
from tests.unit.ipam.store.nodes import Node


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[ApiServer]:
    """Of tests that write thousands of hold files: they end with no machine, and nothing is synced."""

    def fsync(_: int) -> None: ...

    monkeypatch.setattr(os, "fsync", fsync)
    with running_api_server() as made:
        yield made


@pytest.fixture
def node(server: ApiServer, tmp_path: Path) -> Node:
    return Node(server, tmp_path, clock=lambda: 1000)
