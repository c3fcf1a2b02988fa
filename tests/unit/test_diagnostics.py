"""Diagnostics find the stderr they are meant for."""

from __future__ import annotations

import sys
from threading import Thread

import pytest

from cnvnet.diagnostics import collected, say


def test_outside_a_call_a_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\ntwo")
    assert capsys.readouterr() == ("", "one two\n")


def test_without_a_stderr_it_is_lost_and_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    say("nobody hears this")
    assert capsys.readouterr().out == ""


def test_each_thread_collects_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[list[str]] = []

    def work() -> None:
        with collected() as lines:
            say("theirs")
        heard.append(lines)

    with collected() as mine:
        thread = Thread(target=work)
        thread.start()
        thread.join()
        say("mine")
    assert (mine, heard) == (["mine"], [["theirs"]])
    assert capsys.readouterr() == ("", "")
