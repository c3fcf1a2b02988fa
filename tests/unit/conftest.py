"""What holds for all unit tests."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings

from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kube.client import Client
from cnvnet.vm.directory import Directory
from tests.fakes.api_server import ApiServer, running_api_server
from tests.fakes.launchers import Launchers

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _close_stores() -> Iterator[None]:
    """Close the stores and API clients of a test at its end: an executable leaves that to its own end."""
    opened: list[Sqlite | Client] = []

    # Not the test's own monkeypatch, which it may undo.
    with pytest.MonkeyPatch.context() as patch:
        for kind in (Sqlite, Client):
            patch.setattr(kind, "__init__", _remembering(kind.__init__, opened))
        yield
    for each in opened:
        with suppress(sqlite3.Error):
            each.close()


def _remembering(init: Callable[..., None], opened: list[Any]) -> Callable[..., None]:
    def remember(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        opened.append(self)

    return remember


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
