"""Diagnostics find the stderr they are meant for."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from threading import Event, Thread, get_ident

import pytest

from cnvnet.call_context import captured, ending_at, log, request_limit, started, waiting
from tests.fakes.callers import in_the_agent


def test_outside_a_call_a_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    log("one\ntwo")
    assert capsys.readouterr() == ("", "one two\n")


def test_without_a_stderr_it_is_lost_and_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    log("not heard")
    assert capsys.readouterr().out == ""


def test_each_thread_collects_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    of_thread: list[list[str]] = []

    def work() -> None:
        with captured() as lines:
            log("theirs")
        of_thread.append(lines)

    with captured() as own:
        thread = Thread(target=work)
        thread.start()
        thread.join()
        log("own")
    assert (own, of_thread) == (["own"], [["theirs"]])
    assert capsys.readouterr() == ("", "")


def test_a_call_that_waits_for_another_machine_pauses_and_comes_back_also_after_an_error() -> None:
    seen: list[str] = []

    @contextmanager
    def pause() -> Generator[None]:
        seen.append("pauses")
        try:
            yield
        finally:
            seen.append("is back")

    with waiting():
        pass
    with in_the_agent(pause):
        with captured(), waiting():
            seen.append("waits")
        with pytest.raises(ValueError, match="bad"), waiting():
            raise ValueError("bad")
    with waiting():
        pass
    assert seen == ["pauses", "waits", "is back", "pauses", "is back"]


def test_an_executable_starts_nothing_beside_itself() -> None:
    assert started(get_ident) is None


def test_what_is_started_runs_beside_its_call_with_the_calls_deadline_and_diagnostics() -> None:
    goes_on = Event()

    def action() -> tuple[int, float | None]:
        # This thread has no lock that it could leave for others.
        with waiting():
            assert goes_on.wait(60)
        log("said beside")
        return get_ident(), request_limit()

    left: list[str] = []

    @contextmanager
    def pause() -> Generator[None]:
        left.append("the call waits")
        yield

    with in_the_agent(pause), captured() as lines, ending_at(99.0):
        result = started(action)
        assert result is not None
        goes_on.set()
        thread, limit = result()
    assert thread != get_ident()
    assert (limit, lines, left) == (99.0, ["said beside"], ["the call waits"])


def test_an_error_of_what_was_started_is_raised_where_its_value_is_asked_for() -> None:
    def fail() -> None:
        raise ValueError("bad")

    with in_the_agent():
        result = started(fail)
        assert result is not None
        with pytest.raises(ValueError, match="bad"):
            result()
