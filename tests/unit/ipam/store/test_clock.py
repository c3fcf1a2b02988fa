"""The time of day as leases have it."""

from __future__ import annotations

import time

import pytest

from cnvnet.ipam.store.clock import now


def test_it_is_the_time_of_day() -> None:
    assert abs(now() - time.time()) < 5


def test_a_year_that_python_cannot_tell_is_the_last_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflowing() -> float:
        raise OverflowError("timestamp too large to convert to C _PyTime_t")

    monkeypatch.setattr("time.time", overflowing)
    assert time.gmtime(now()).tm_year == 2262
