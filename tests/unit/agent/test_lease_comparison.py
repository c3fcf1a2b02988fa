"""When the agent compares what its pods hold with the API, and that no ADD comes before."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

import pytest

from cnvnet.agent.lease_comparison import LeaseComparison, event_of
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.ipam.store.holds import HELD, Hold
from cnvnet.ipam.store.kubernetes_comparison import FENCED, Compared, Finding
from cnvnet.kube.api import Api
from tests.fakes.api_server import running_api_server
from tests.unit.ipam.store.conformance import LEASE

HOLD = Hold(HELD, "c1", "eth0", LEASE, dispute="10.0.0.5 is VM default/db's, too", fenced=True)


class Node:
    """What a comparison is made of, and what it was asked."""

    def __init__(self, api: Api | None = None) -> None:
        self.api = api
        self.answer: Compared | CNIError | None = Compared()
        self.looks: list[tuple[str | None, str]] = []
        self.disputed: list[Hold] = []
        self.fences = 0
        self.during: Callable[[], None] = lambda: None
        self.comparison = LeaseComparison(
            self._compare, self._disputed, self._fence, lambda: self.api, soon=0.05, period=0.2
        )

    def _compare(self, *, network: str | None, scope: str) -> Compared | None:
        self.looks.append((network, scope))
        self.during()
        if isinstance(self.answer, CNIError):
            raise self.answer
        return self.answer

    def _disputed(self) -> Iterable[Hold]:
        return self.disputed

    def _fence(self) -> None:
        self.fences += 1


def test_the_first_add_of_a_network_waits_for_its_comparison_and_the_next_one_does_not() -> None:
    node = Node()
    node.comparison.ensure_compared("blue")
    node.comparison.ensure_compared("blue")
    node.comparison.ensure_compared("red")
    assert node.looks == [("blue", "everything"), ("red", "everything")]
    node.comparison.work(whole=True)
    node.comparison.ensure_compared("green")
    assert node.looks[2:] == [(None, "everything")]


def test_an_add_is_refused_while_the_api_does_not_answer() -> None:
    node = Node()
    node.answer = Compared(absent="Kubernetes API https://x: get vmleases: refused")
    with pytest.raises(CNIError, match="get vmleases: refused") as caught:
        node.comparison.ensure_compared("blue")
    assert caught.value.code == TRY_AGAIN_LATER
    node.answer = Compared()
    node.comparison.ensure_compared("blue")
    assert len(node.looks) == 2


def test_what_one_hold_says_keeps_no_network_from_adds() -> None:
    node = Node()
    node.answer = Compared(left=("VM a/b (eth0): refused",))
    node.comparison.ensure_compared("blue")
    node.comparison.ensure_compared("blue")
    assert len(node.looks) == 1


def test_what_could_not_be_compared_is_tried_again_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    node.answer = Compared(left=("VM a/b (eth0): refused",))
    for _ in range(3):
        node.comparison.work(whole=False)
    assert node.looks == [(None, "everything")] * 3
    assert len(caplog.messages) == 1
    node.answer = Compared()
    node.comparison.work(whole=False)
    node.comparison.work(whole=False)
    assert len(node.looks) == 4


def test_adds_that_come_meanwhile_wait_for_the_one_look() -> None:
    node = Node()
    begun, may_end = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        may_end.wait(10)

    node.during = wait
    threads = [threading.Thread(target=node.comparison.ensure_compared, args=("blue",)) for _ in range(3)]
    for each in threads:
        each.start()
    assert begun.wait(10)
    may_end.set()
    for each in threads:
        each.join(10)
    assert node.looks == [("blue", "everything")]


def test_while_the_connection_stands_disputes_alone_are_looked_at() -> None:
    node = Node()
    node.comparison.work(whole=True)
    node.comparison.work(whole=False)
    assert node.looks == [(None, "everything")]
    node.disputed = [HOLD]
    node.comparison.work(whole=False)
    node.comparison.work(whole=True)
    assert node.looks[1:] == [(None, "disputes"), (None, "leases")]
    # A DEL may have ended what was fenced.
    assert node.fences == 4


def test_an_api_that_came_and_went_between_two_attempts_to_watch_it_is_compared_again() -> None:
    node = Node()
    node.comparison.observe("refused")
    # It is there for a moment, and gone again before the watch sees it.
    node.comparison.work(whole=True)
    assert node.comparison.is_compared("blue")
    node.comparison.observe("")
    assert not node.comparison.is_compared("blue")
    node.comparison.work(whole=False)
    assert node.comparison.is_compared("blue")
    assert node.looks == [(None, "everything")] * 2


def test_what_is_found_is_logged_and_an_api_that_is_away_is_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cnvnet")
    node = Node()
    node.answer = Compared((Finding(HOLD, FENCED, HOLD.dispute),), ("VM a/b (eth0): refused",))
    node.comparison.work(whole=True)
    for node.answer in (Compared(absent="away"), CNIError(5, "away"), Compared()):
        node.comparison.work(whole=True)
    messages = [each.message for each in caplog.records]
    assert messages == [
        "address is another one's: the pod is fenced",
        "a hold could not be compared with the Kubernetes API",
        "holds wait to be compared with the Kubernetes API",
    ]


def test_a_fenced_pod_has_a_warning_as_its_event() -> None:
    (holder,) = HOLD.lease.holders
    of_pod = HOLD._replace(
        lease=HOLD.lease._replace(holders=(holder._replace(pod="default/web-1", pod_uid="u"),))
    )
    event = event_of(Finding(of_pod, FENCED, HOLD.dispute))
    assert event is not None
    assert (event.involved.name, event.involved.uid, event.reason) == ("web-1", "u", "AddressFenced")
    assert (event.type, event.message.startswith("10.0.0.5, fd00::5: address is another one's")) == (
        "Warning",
        True,
    )
    # A pod of another runtime is known to no API.
    assert event_of(Finding(HOLD, FENCED, HOLD.dispute)) is None


def test_disputes_are_counted_by_state_and_network() -> None:
    node = Node()
    node.disputed = [HOLD, HOLD, HOLD._replace(fenced=False)]
    assert node.comparison.counts() == {("fenced", "net"): 2, ("open", "net"): 1}


def eventually(what: Callable[[], object]) -> bool:
    """Whether it becomes true, on a machine that may be busy."""
    end = time.monotonic() + 30
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_it_looks_again_at_everything_when_the_api_comes_back() -> None:
    with running_api_server() as server:
        node = Node(server.client())
        node.comparison.start()
        try:
            assert eventually(lambda: server.count("watch", "ipnetworks"))
            assert eventually(lambda: (None, "leases") in node.looks)
            server.stop()
            node.answer = Compared(absent="refused")
            assert eventually(lambda: not node.comparison.is_compared("blue"))
            with pytest.raises(CNIError, match="refused"):
                node.comparison.ensure_compared("blue")
            server.start()
            node.answer = Compared()
            assert eventually(lambda: node.comparison.is_compared("blue"))
        finally:
            node.comparison.stop()


def test_it_looks_again_at_everything_when_the_connection_broke_off_for_a_moment() -> None:
    """The client tries again by itself, so that no problem is ever reported."""
    with running_api_server() as server:
        node = Node(server.client())
        node.comparison.start()
        try:
            assert eventually(lambda: server.count("watch", "ipnetworks"))
            assert eventually(lambda: (None, "leases") in node.looks)
            node.looks.clear()
            server.hang_up()
            assert eventually(lambda: (None, "everything") in node.looks)
            assert node.comparison.is_compared("blue")
        finally:
            node.comparison.stop()


def test_it_survives_what_it_does_not_expect(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()

    def fail() -> None:
        raise KeyError("spec")

    node.during = fail
    node.comparison.work(whole=True)
    assert "holds wait to be compared with the Kubernetes API" in caplog.messages
    node.during = lambda: None
    node.comparison.work(whole=True)
    assert node.comparison.is_compared("blue")
