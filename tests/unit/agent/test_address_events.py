"""The agent's events: through its own way to the API, and without harm where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from cnvnet.agent.address_events import AddressEvents
from cnvnet.cni.errors import CNIError
from cnvnet.kube.events import InvolvedObject, KubernetesEvent
from cnvnet.kube.resources import EVENTS
from cnvnet.resident import log
from cnvnet.vm.directory import Directory
from tests.fakes.api_server import ApiServer, refuse
from tests.functional.agent.own_agent import eventually

EVENT = KubernetesEvent(InvolvedObject("v1", "Pod", "prod", "web", "u1"), "AddressMoved", "x")


def said(server: ApiServer, directory: Any, *events: KubernetesEvent) -> int:
    """How many of the events were dropped, once each of them was written or dropped."""
    dropped: list[None] = []
    before = len(written(server))
    made = AddressEvents(directory, lambda: dropped.append(None))
    made.start()
    for each in events:
        made.put(each)
    assert eventually(lambda: len(dropped) + len(written(server)) - before == len(events))
    made.stop()
    return len(dropped)


def written(server: ApiServer) -> list[dict[str, Any]]:
    return server.objects.matching(EVENTS, "prod", lambda _: True)


def test_events_are_written_with_the_agents_credentials(server: ApiServer, directory: Directory) -> None:
    assert said(server, lambda: directory, EVENT, EVENT._replace(message="y")) == 0
    assert sorted(each["message"] for each in written(server)) == ["x", "y"]
    assert {each["reportingComponent"] for each in written(server)} == {"cnvnet-agent"}


def test_without_credentials_there_are_none() -> None:
    dropped: list[None] = []
    made = AddressEvents(lambda: None, lambda: dropped.append(None))
    made.start()
    made.put(EVENT)
    made.stop()
    assert dropped == []


def test_what_cannot_be_written_is_counted_and_logged_once(
    server: ApiServer, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    def warning(text: str, **fields: object) -> None:
        lines.append(f"{text}: {fields['error']}")

    monkeypatch.setattr(log, "warning", warning)
    server.inject(refuse(403, "Forbidden", "no"), plural="events", times=2)
    assert said(server, lambda: directory, EVENT, EVENT._replace(message="y")) == 2
    (line,) = lines
    assert line.startswith("events are not written: ")
    assert line.endswith("403 Forbidden: no")

    def unusable() -> Directory:
        raise CNIError(7, "a kubeconfig cannot be read")

    assert said(server, unusable, EVENT) == 1
    assert lines[1:] == ["events are not written: a kubeconfig cannot be read"]


def test_a_namespace_that_ends_hinders_no_other_event(server: ApiServer, directory: Directory) -> None:
    server.inject(refuse(403, "Forbidden", "because it is being terminated"), plural="events")
    assert said(server, lambda: directory, EVENT, EVENT._replace(message="y")) == 1
    assert [each["message"] for each in written(server)] == ["y"]
