"""The agent's queue of releases: it goes on whatever the API says, and says so once."""

from __future__ import annotations

import logging
import time

import pytest

from cnvnet.agent.lease_queue import LeaseQueue
from cnvnet.cni.errors import CNIError
from cnvnet.ipam.store.holds import Hold
from cnvnet.ipam.store.kubernetes import Drained
from tests.unit.ipam.store.conformance import LEASE


def test_it_looks_again_and_again_until_it_is_stopped() -> None:
    looks: list[int] = []

    def drain() -> Drained | None:
        looks.append(1)
        return None

    queue = LeaseQueue(drain, period=0.01)
    queue.start()
    end = time.monotonic() + 10
    while len(looks) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    queue.stop()
    assert len(looks) >= 3


def test_it_survives_what_it_does_not_expect(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cnvnet")

    def drain() -> Drained | None:
        raise KeyError("spec")

    LeaseQueue(drain).work()
    assert [each.message for each in caplog.records] == ["holds of ended pods wait for the Kubernetes API"]


def test_an_api_that_is_away_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cnvnet")
    answers: list[Drained | CNIError] = [
        CNIError(11, "away"),
        CNIError(11, "away"),
        Drained((), ("VM a/b: refused",)),
        Drained((Hold("held", "c1", "eth0", LEASE),), ()),
        CNIError(11, "away"),
    ]

    def drain() -> Drained:
        answer = answers.pop(0)
        if isinstance(answer, CNIError):
            raise answer
        return answer

    queue = LeaseQueue(drain)
    for _ in range(5):
        queue.work()
    waiting, released = "holds of ended pods wait for the Kubernetes API", "holds of ended pods released"
    assert [each.message for each in caplog.records] == [waiting, waiting, released, waiting]
