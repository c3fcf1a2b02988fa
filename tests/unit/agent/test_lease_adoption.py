"""The agent's thread that makes this node's leases the cluster's: it goes on whatever it meets."""

from __future__ import annotations

import logging
import time

import pytest

from cnvnet.agent.lease_adoption import LeaseAdoption
from cnvnet.cni.errors import CNIError
from cnvnet.ipam.static_ip.adoption import Adopted
from tests.unit.ipam.store.conformance import LEASE


def test_it_looks_again_and_again_until_it_is_stopped() -> None:
    looks: list[int] = []

    def adopt() -> Adopted | None:
        looks.append(1)
        return None

    adoption = LeaseAdoption(adopt, period=0.01)
    adoption.start()
    end = time.monotonic() + 10
    while len(looks) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    adoption.stop()
    assert len(looks) >= 3


def test_it_survives_what_it_does_not_expect(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cnvnet")

    def adopt() -> Adopted | None:
        raise KeyError("spec")

    LeaseAdoption(adopt).work()
    assert [each.message for each in caplog.records] == ["a lease of this node is not the cluster's yet"]


def test_each_reason_is_said_once_until_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cnvnet")
    looks: list[Adopted | CNIError] = [
        Adopted((LEASE,), ("a", "b")),
        Adopted((), ("b", "c")),
        CNIError(11, "c"),
        Adopted((), ()),
        Adopted((), ("a",)),
    ]
    answers = iter(looks)

    def adopt() -> Adopted | None:
        answer = next(answers)
        if isinstance(answer, CNIError):
            raise answer
        return answer

    adoption = LeaseAdoption(adopt)
    lines: list[int] = []
    for _ in looks:
        caplog.clear()
        adoption.work()
        lines.append(len(caplog.records))
    assert lines == [3, 1, 0, 0, 1]
