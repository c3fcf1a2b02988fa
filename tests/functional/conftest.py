"""Fixtures of the functional tests: each gets a host of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.harness import Node, a_node


@pytest.fixture(autouse=True)
def _way_of_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test marked `alone` gets no agent from the harness, whatever CNV_THROUGH says."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("alone"):
            patch.setattr(harness, "through", "")
        yield


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with a_node(tmp_path) as made:
        yield made
