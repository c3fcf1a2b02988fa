"""A node whose folders are in memory: what is tested is kill -9, not the disk, and there are many syncs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Node, a_node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as folder, a_node(Path(folder)) as made:
        yield made
