"""An API server in memory and the client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cnvnet.kube.client import Client
from tests.fakes.api_server import ApiServer, running_api_server


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with running_api_server() as running:
        yield running


@pytest.fixture
def client(server: ApiServer) -> Iterator[Client]:
    made = server.client()
    yield made
    made.close()
