"""Nodes in memory for the tests of cnv-bridge's commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.plugins.cnv_bridge.fake_node import FULL, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A node whose network has layer 2 alone."""
    return World(tmp_path)


@pytest.fixture
def full(tmp_path: Path) -> World:
    """A node whose network has all that an ADD can be asked for."""
    return World(tmp_path, **FULL)
