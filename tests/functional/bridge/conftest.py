"""The programs under test, and a pod beside the node."""

from __future__ import annotations

import pytest

from tests.functional.bridge.bridge_network import PROGRAMS
from tests.harness import Node, Sandbox


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    """Each test that asks for this runs against the reference and against ours."""
    return str(request.param)


@pytest.fixture
def pod(node: Node) -> Sandbox:
    return node.pod()
