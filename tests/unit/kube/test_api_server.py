"""The API server in memory does what a real one does."""

from __future__ import annotations

import pytest

from cnvnet.kube.client import Client
from tests.fakes.api_scenarios import SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_in_memory(client: Client, scenario: str) -> None:
    SCENARIOS[scenario](client, "default")
