"""Events are written by a thread of their own: bounded, once, and without harm where they cannot be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.kube.api import Api
from cnvnet.kube.client import Client
from cnvnet.kube.events import WARNING, EventWriter, InvolvedObject, KubernetesEvent
from cnvnet.kube.resources import EVENTS
from tests.fakes.api_server import ApiServer, black_hole, refuse
from tests.functional.agent.own_agent import eventually

VM = InvolvedObject("kubevirt.io/v1", "VirtualMachine", "prod", "web", "u1")
MOVED = KubernetesEvent(VM, "Moved", "from here to there")


MARK = KubernetesEvent(VM._replace(namespace="marks"), "Mark", "")


def every(_: object) -> bool:
    return True


class Desk:
    """A writer whose clock a test sets."""

    def __init__(self, api: Callable[[], Api | None]) -> None:
        self.now = 1000.0
        self.dropped: list[str] = []
        self.writer = EventWriter(api, "agent", self.dropped.append, clock=lambda: self.now)

        self._marks = 0

    def write(self, server: ApiServer, *events: KubernetesEvent) -> None:
        """Events, until all of them are written or dropped: what comes behind them is written."""
        for each in events:
            self.writer.put(each)
        self._marks += 1
        self.writer.put(MARK._replace(message=str(self._marks)))
        assert eventually(lambda: len(server.objects.matching(EVENTS, "marks", every)) == self._marks)


@pytest.fixture
def client(server: ApiServer) -> Iterator[Client]:
    made = server.client()
    yield made
    made.close()


@pytest.fixture
def desk(client: Client) -> Iterator[Desk]:
    made = Desk(lambda: client)
    made.writer.start()
    yield made
    made.writer.stop(10)


def written(server: ApiServer) -> list[dict[str, Any]]:
    return [each for each in server.objects.matching(EVENTS, "", every) if each["reason"] != "Mark"]


def test_an_event_is_about_its_object(desk: Desk, server: ApiServer) -> None:
    desk.write(server, MOVED._replace(type=WARNING))
    (event,) = written(server)
    assert event["metadata"]["namespace"] == "prod"
    assert event["involvedObject"] == {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "namespace": "prod",
        "name": "web",
        "uid": "u1",
    }
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "Moved", "from here to there")
    assert (event["source"], event["count"]) == ({"component": "agent"}, 1)


def test_an_object_without_a_namespace_has_its_events_in_default(desk: Desk, server: ApiServer) -> None:
    node = InvolvedObject.of({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "u"}})
    desk.write(server, KubernetesEvent(node, "Moved", "x" * 5000))
    (event,) = written(server)
    assert event["metadata"]["namespace"] == "default"
    assert "namespace" not in event["involvedObject"]
    assert len(event["message"]) == 1024


def test_the_same_event_is_counted_and_not_written_again(desk: Desk, server: ApiServer) -> None:
    desk.write(server, MOVED, MOVED, MOVED)
    assert [each["count"] for each in written(server)] == [1]
    assert server.count("patch", "events") == 0
    desk.now += 31
    desk.write(server, MOVED)
    assert [each["count"] for each in written(server)] == [4]
    # Another one, and the same one after a while.
    desk.write(server, MOVED._replace(message="from there to here"))
    desk.now += 601
    desk.write(server, MOVED)
    assert sorted(each["count"] for each in written(server)) == [1, 1, 4]


def test_one_object_has_only_so_many_events_that_differ(desk: Desk, server: ApiServer) -> None:
    """Such as those of an ADD that is repeated, with the seconds that are left in the text."""
    desk.write(server, *(MOVED._replace(message=f"{number} s") for number in range(20)))
    assert len(written(server)) == 10
    assert desk.dropped == ["VirtualMachine web has 10 like it"] * 10
    desk.write(server, MOVED._replace(reason="Other"))
    desk.now += 601
    desk.write(server, MOVED)
    assert len(written(server)) == 12


def test_an_event_that_the_server_has_forgotten_is_written_anew(desk: Desk, server: ApiServer) -> None:
    desk.write(server, MOVED)
    (event,) = written(server)
    server.objects.delete(EVENTS, "prod", event["metadata"]["name"], {})
    desk.now += 31
    desk.write(server, MOVED)
    assert [each["count"] for each in written(server)] == [1]


def test_what_cannot_be_written_is_dropped_with_the_reason(desk: Desk, server: ApiServer) -> None:
    server.inject(refuse(403, "Forbidden", "no events of yours"), plural="events")
    desk.write(server, MOVED)
    assert len(desk.dropped) == 1
    assert "no events of yours" in desk.dropped[0]
    # It was not written, so it is no repetition.
    desk.write(server, MOVED)
    assert len(written(server)) == 1


def test_without_an_api_there_are_no_events() -> None:
    desk = Desk(lambda: None)
    desk.writer.start()
    desk.writer.put(MOVED)
    desk.writer.stop(10)
    assert desk.dropped == []


def test_credentials_that_cannot_be_used_drop_events() -> None:
    def unusable() -> Api | None:
        raise CNIError(7, "a kubeconfig cannot be read")

    desk = Desk(unusable)
    desk.writer.start()
    desk.writer.put(MOVED)
    desk.writer.stop(10)
    assert desk.dropped == ["a kubeconfig cannot be read"]


def test_no_more_events_wait_than_can_be_kept(server: ApiServer, client: Client) -> None:
    desk = Desk(lambda: client)
    server.inject(black_hole, plural="events")
    desk.writer.start()
    begun = threading.active_count()
    for number in range(400):
        desk.writer.put(MOVED._replace(message=str(number)))
    assert "256 events wait" in desk.dropped
    assert threading.active_count() == begun
    server.ended.set()
    desk.writer.stop(10)


def test_a_writer_that_was_not_started_ends() -> None:
    desk = Desk(lambda: None)
    desk.writer.put(MOVED)
    desk.writer.stop(10)
