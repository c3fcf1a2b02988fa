"""Fixtures of the end-to-end tests: one cluster for all that need one, since they leave nothing in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.testbed import Testbed, running_testbed


@pytest.fixture(scope="session")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """A Kubernetes with one node. Folders of failed runs have the logs of all its programs."""
    with running_testbed(tmp_path_factory.mktemp("testbed")) as running:
        yield running
