"""Objects are followed whatever the server does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest

from cnvnet.kube import transport, watch
from cnvnet.kube.api import Document
from cnvnet.kube.client import Client
from cnvnet.kube.resources import VM_LEASES
from cnvnet.kube.watch import Change, Selection, Watcher
from tests.fakes.api_server import ApiServer, black_hole, refuse

LEASES = Selection(VM_LEASES)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(watch, "_LONGEST_PAUSE", 0.1)


class Following:
    """What a watcher has said."""

    def __init__(self, client: Client, selection: Selection) -> None:
        self.changes: list[tuple[Change, str]] = []
        self.documents: list[Document] = []
        self.reports: list[str] = []
        self.watcher = Watcher(client, selection, self._changed, self.reports.append)

    def _changed(self, change: Change, document: Document) -> None:
        self.documents.append(document)
        self.changes.append((change, document["metadata"]["name"]))

    def wait_for(self, *changes: tuple[Change, str]) -> None:
        """For these, in this order, and nothing else; they are forgotten then."""
        eventually(lambda: len(self.changes) >= len(changes))
        seen, self.changes = self.changes, []
        assert seen == list(changes)


def eventually(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, "it has not come to be"
        time.sleep(0.005)


@contextmanager
def following(client: Client, selection: Selection = LEASES) -> Generator[Following]:
    seen = Following(client, selection)
    thread = threading.Thread(target=seen.watcher.run)
    thread.start()
    try:
        yield seen
    finally:
        seen.watcher.stop()
        thread.join(10)
        assert not thread.is_alive()


def create(server: ApiServer, name: str, **metadata: object) -> Document:
    document = {"metadata": {"name": name, **metadata}, "spec": {"vm": name}}
    return server.objects.create(VM_LEASES, "default", document)


def delete(server: ApiServer, name: str) -> None:
    server.objects.delete(VM_LEASES, "default", name, {})


def change(server: ApiServer, name: str, **metadata: object) -> None:
    server.objects.patch(
        VM_LEASES, "default", name, {"metadata": metadata, "spec": {"n": server.objects.version}}
    )


def test_what_is_there_and_what_happens_is_reported_in_its_order(client: Client, server: ApiServer) -> None:
    create(server, "a")
    with following(client) as seen:
        seen.wait_for(("CHANGED", "a"))
        create(server, "b")
        change(server, "a")
        delete(server, "a")
        seen.wait_for(("CHANGED", "b"), ("CHANGED", "a"), ("GONE", "a"))
        assert (seen.reports, seen.watcher.problem) == ([""], "")
    assert (server.count("list"), server.count("watch")) == (1, 1)


def test_an_object_that_no_longer_matches_has_left_and_is_asked_for(
    client: Client, server: ApiServer
) -> None:
    """The server sends DELETED and what it was before, which may lack its last state."""
    made = create(server, "a", labels={"node": "n1"})
    with following(client, LEASES._replace(labels="node=n1")) as seen:
        seen.wait_for(("CHANGED", "a"))
        change(server, "a", labels={"node": "n2"})
        seen.wait_for(("LEFT", "a"))
        change(server, "a", labels={"node": "n1"})
        seen.wait_for(("CHANGED", "a"))
        delete(server, "a")
        seen.wait_for(("GONE", "a"))
    left, gone = seen.documents[1], seen.documents[3]
    assert left["metadata"]["labels"] == {"node": "n2"}
    assert gone == {
        "apiVersion": "cnvnet.io/v1alpha1",
        "kind": "VMLease",
        "metadata": {"namespace": "default", "name": "a", "uid": made["metadata"]["uid"]},
    }
    assert server.count("get") == 2


def test_an_object_of_which_it_cannot_be_asked_what_has_become_of_it_is_asked_for_again(
    client: Client, server: ApiServer
) -> None:
    create(server, "a", labels={"node": "n1"})
    with following(client, LEASES._replace(labels="node=n1")) as seen:
        seen.wait_for(("CHANGED", "a"))
        server.inject(refuse(500, "InternalError", "etcd"), verb="get", times=2)
        change(server, "a", labels={"node": "n2"})
        seen.wait_for(("LEFT", "a"))
        eventually(lambda: seen.watcher.problem == "")
    assert any("get vmleases default/a: 500" in each for each in seen.reports)


def test_what_no_longer_matches_while_the_server_is_away_has_left(client: Client, server: ApiServer) -> None:
    create(server, "left", labels={"node": "n1"})
    create(server, "gone", labels={"node": "n1"})
    create(server, "renewed", labels={"node": "n1"})
    with following(client, LEASES._replace(labels="node=n1")) as seen:
        eventually(lambda: len(seen.changes) == 3)
        seen.changes.clear()
        with server.objects.changed:
            server.hang_up()
            change(server, "left", labels={"node": "n2"})
            delete(server, "gone")
            delete(server, "renewed")
            create(server, "renewed", labels={"node": "n2"})
            server.objects.forget()
        eventually(lambda: len(seen.changes) == 3)
        assert sorted(seen.changes) == [("GONE", "gone"), ("GONE", "renewed"), ("LEFT", "left")]


def test_what_happens_while_the_server_is_away_is_reported_without_another_list(
    client: Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnvnet.kube.transport._REFUSED_FOR", 0.01)
    create(server, "a")
    with following(client) as seen:
        seen.wait_for(("CHANGED", "a"))
        server.stop()
        eventually(lambda: "connection refused" in str(seen.watcher.problem))
        create(server, "b")
        delete(server, "a")
        server.start()
        seen.wait_for(("CHANGED", "b"), ("GONE", "a"))
        assert seen.watcher.problem == ""
    assert server.count("list") == 1


def test_what_the_server_has_forgotten_is_found_by_difference(client: Client, server: ApiServer) -> None:
    for name in ("kept", "changed", "deleted", "replaced"):
        create(server, name)
    with following(client) as seen:
        eventually(lambda: len(seen.changes) == 4)
        seen.changes.clear()
        with server.objects.changed:
            server.hang_up()
            change(server, "changed")
            delete(server, "deleted")
            delete(server, "replaced")
            create(server, "replaced")
            create(server, "new")
            server.objects.forget()
        eventually(lambda: len(seen.changes) >= 5)
        assert sorted(seen.changes) == [
            ("CHANGED", "changed"),
            ("CHANGED", "new"),
            ("CHANGED", "replaced"),
            ("GONE", "deleted"),
            ("GONE", "replaced"),
        ]
        assert seen.changes.index(("GONE", "replaced")) < seen.changes.index(("CHANGED", "replaced"))
        create(server, "later")
        eventually(lambda: seen.changes[5:] == [("CHANGED", "later")])
    assert server.count("list") == 2


def test_a_connection_on_which_nothing_comes_is_replaced(client: Client, server: ApiServer) -> None:
    create(server, "a")
    with following(client, LEASES._replace(idle=0.2)) as seen:
        seen.wait_for(("CHANGED", "a"))
        server.is_silent = True
        create(server, "b")
        eventually(lambda: "no answer in time" in str(seen.reports))
        server.is_silent = False
        seen.wait_for(("CHANGED", "b"))
    assert server.count("list") == 1


def test_what_says_nothing_any_more_is_noticed_within_a_minute() -> None:
    """A connection that was forgotten in between, and a machine that has vanished: by the kernel's probes.

    A watch that is well never reaches the first: the server has ended it by then.
    """
    assert LEASES.seconds + LEASES.seconds // 4 + 4 < LEASES.idle < 60
    assert transport.PROBE_AFTER + transport.PROBES * transport.PROBE_EVERY < 60


def test_a_watch_goes_on_from_the_last_bookmark(client: Client, server: ApiServer) -> None:
    create(server, "a", labels={"node": "n1"})
    with following(client, LEASES._replace(labels="node=n1", seconds=1)) as seen:
        seen.wait_for(("CHANGED", "a"))
        for _ in range(3):
            create(server, f"other{server.objects.version}")
        eventually(lambda: server.count("watch") == 2)
        last = [each.asked for each in server.requests if each.asked.verb == "watch"][-1]
        assert last.query["resourceVersion"] == str(server.objects.version)
    assert server.count("list") == 1


def test_a_refused_list_is_repeated_with_growing_pauses(client: Client, server: ApiServer) -> None:
    server.inject(refuse(403, "Forbidden", "not yet"), verb="list", times=4)
    create(server, "a")
    with following(client) as seen:
        begun = time.monotonic()
        seen.wait_for(("CHANGED", "a"))
        assert time.monotonic() - begun > 0.01 + 0.02 + 0.04 + 0.05
        eventually(lambda: seen.watcher.problem == "")
    text = f"Kubernetes API {server.url}: list vmleases: 403 Forbidden: not yet"
    assert seen.reports == [text, ""]


def test_pauses_grow_up_to_the_longest_and_begin_anew_after_a_long_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def longest(_: float, highest: float) -> float:
        return highest

    monkeypatch.undo()
    monkeypatch.setattr("random.uniform", longest)
    backoff = watch.Backoff()
    assert [backoff.pause(0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [backoff.pause(29), backoff.pause(3600), backoff.pause(0)] == [30, 0.5, 1]
    backoff.reset()
    assert backoff.pause(0) == 0.5


def test_watches_that_end_at_once_are_not_opened_as_fast(client: Client, server: ApiServer) -> None:
    with following(client, LEASES._replace(seconds=0, labels="none=none")) as seen:
        eventually(lambda: seen.watcher.problem == "")
        server.is_silent = True
        before = server.count("watch")
        time.sleep(0.4)
        assert server.count("watch") - before < 20


def test_metadata_is_followed_alone(client: Client, server: ApiServer) -> None:
    create(server, "a")
    with following(client, LEASES._replace(metadata_only=True)) as seen:
        seen.wait_for(("CHANGED", "a"))
        change(server, "a")
        seen.wait_for(("CHANGED", "a"))
    assert ["spec" in each for each in seen.documents] == [False, False]


@pytest.mark.parametrize("state", ["follows", "pauses", "was not run"])
def test_it_stops_at_once(
    client: Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(watch, "_FIRST_PAUSE", 600.0)
    monkeypatch.setattr(watch, "_LONGEST_PAUSE", 600.0)
    if state == "pauses":
        server.inject(refuse(500), verb="list")
    seen = Following(client, LEASES)
    thread = threading.Thread(target=seen.watcher.run)
    if state == "was not run":
        seen.watcher.stop()
    thread.start()
    if state != "was not run":
        eventually(lambda: seen.watcher.problem is not None)
    begun = time.monotonic()
    seen.watcher.stop()
    thread.join(10)
    assert time.monotonic() - begun < 5


def test_a_stop_while_the_watch_is_being_opened_counts(client: Client, server: ApiServer) -> None:
    server.inject(black_hole, verb="watch")
    with following(client) as seen:
        eventually(lambda: server.count("watch") == 1)
        seen.watcher.stop()
        server.stop()


def test_an_error_of_the_consumer_ends_it(client: Client, server: ApiServer) -> None:
    create(server, "a")

    def notify(change: Change, document: Document) -> None:
        raise ValueError(document["metadata"]["name"])

    with pytest.raises(ValueError, match="a"):
        Watcher(client, LEASES, notify).run()
