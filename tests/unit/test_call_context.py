"""Diagnostics find the stderr they are meant for."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from threading import Thread

import pytest

from cnvnet.call_context import Exec, captured, log, on_behalf_of, waiting


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


class _Caller:
    def open(self, path: str, flags: int) -> int:
        raise AssertionError("the call asks nothing of its caller")

    def stat(self, path: str) -> os.stat_result:
        raise AssertionError("the call asks nothing of its caller")

    def program(self, path: str) -> Exec:
        raise AssertionError("the call asks nothing of its caller")


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
    with on_behalf_of(_Caller(), pause=pause):
        with captured(), waiting():
            seen.append("waits")
        with pytest.raises(ValueError, match="bad"), waiting():
            raise ValueError("bad")
    with waiting():
        pass
    assert seen == ["pauses", "waits", "is back", "pauses", "is back"]
