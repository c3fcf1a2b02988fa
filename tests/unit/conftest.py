"""What holds for all unit tests."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings

from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.vm.directory import Directory
from tests.fakes.api_server import ApiServer, running_api_server
from tests.fakes.launchers import Launchers

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _close_stores() -> Iterator[None]:
    """Close the stores of a test at its end: an executable leaves that to its own end."""
    stores: list[Sqlite] = []
    init = Sqlite.__init__

    def remember(self: Sqlite, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        stores.append(self)

    # Not the test's own monkeypatch, which it may undo.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sqlite, "__init__", remember)
        yield
    for store in stores:
        with suppress(sqlite3.Error):
            store.close()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """A Kubernetes API server in memory."""
    with running_api_server() as running:
        yield running


@pytest.fixture
def launchers(server: ApiServer) -> Launchers:
    """The pods and VMs in it."""
    return Launchers(server)


@pytest.fixture
def directory(server: ApiServer) -> Iterator[Directory]:
    """The directory of it."""
    client = server.client()
    yield Directory(client)
    client.close()
