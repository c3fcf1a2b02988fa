"""Lines for machines and for people."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnvnet.resident import log

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def lines(capsys: pytest.CaptureFixture[str], form: str, **fields: Any) -> list[str]:
    log.configure("info", form)
    log.info("guest served", **fields)
    return capsys.readouterr().err.splitlines()


def test_text_has_date_and_zone(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = lines(capsys, "text", record="a.json", waiting=0)
    assert re.fullmatch(TIME + r" info    guest served record=a.json waiting=0", line)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a b", '"a b"'),
        ('say "x"', r'"say \"x\""'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ("red\x1b[31m", r"red\x1b[31m"),
        ("one\ntwo", r'"one\ntwo"'),
        ("csi\x9b31m", r"csi\x9b31m"),
        ("right\u202eleft", r"right\u202eleft"),
        ("half\udcff", r"half\udcff"),
    ],
)
def test_text_obeys_no_terminal_code(capsys: pytest.CaptureFixture[str], value: str, shown: str) -> None:
    (line,) = lines(capsys, "text", value=value)
    assert line.endswith(f" value={shown}")


def test_json_is_one_line_whatever_a_value_is(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = lines(capsys, "json", value="a\n\x1b\udcff", other=object)
    document = json.loads(line)
    assert document["value"] == "a\n\x1b\udcff"
    assert re.fullmatch(TIME, document["ts"])


def test_a_log_in_memory_has_an_end(tmp_path: Path) -> None:
    path, before = tmp_path / "agent.log", tmp_path / "agent.log.1"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, b"first\n")
        log.limit(fd, str(path), 6)
        assert (path.read_bytes(), before.exists()) == (b"first\n", False)
        os.write(fd, b"second\n")
        log.limit(fd, str(path), 6)
        os.write(fd, b"third\n")
        assert (path.read_bytes(), before.read_bytes()) == (b"third\n", b"first\nsecond\n")
    finally:
        os.close(fd)


def test_a_log_that_is_elsewhere_is_left_alone(tmp_path: Path) -> None:
    ours, other = tmp_path / "agent.log", tmp_path / "other"
    ours.write_text("ours\n")
    other.write_text("other\n")
    with other.open("ab") as file:
        log.limit(file.fileno(), str(ours), 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.log", "other"]
    assert other.read_text() == "other\n"


def test_what_was_logged_before_is_kept_through_no_link(tmp_path: Path) -> None:
    path, other = tmp_path / "agent.log", tmp_path / "other"
    path.write_text("ours\n")
    other.write_text("other\n")
    (tmp_path / "agent.log.1").symlink_to(other)
    with path.open("ab") as file:
        log.limit(file.fileno(), str(path), 0)
    assert (path.read_text(), other.read_text()) == ("ours\n", "other\n")


class Pipe:
    """Two pages of a log that is read when the test says so."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 8192)

    def read(self) -> list[dict[str, Any]]:
        """The lines that are whole."""
        lines = os.read(self.reading, 1 << 16).decode().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    made = Pipe()
    with os.fdopen(made.writing, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        log.configure("info", "json")
        yield made
    os.close(made.reading)


@pytest.mark.timeout(20)
def test_a_log_that_is_not_read_keeps_no_call_waiting(pipe: Pipe) -> None:
    for number in range(500):
        log.info("call", number=number)
    kept = [line["number"] for line in pipe.read()]
    assert kept == list(range(len(kept)))
    assert log.lost() == 500 - len(kept)
    log.info("agent ended")
    gap, line = pipe.read()
    assert {**gap, "level": "warning", "msg": "log lines are lost", "lines": 500 - len(kept)} == gap
    assert line["msg"] == "agent ended"
    assert log.lost() == 0


@pytest.mark.timeout(20)
def test_a_line_that_was_cut_ends_before_the_next_one(pipe: Pipe) -> None:
    log.info("call", error="x" * 10_000)
    assert log.lost() == 1
    assert pipe.read() == []
    log.info("agent ended")
    assert [line["msg"] for line in pipe.read()] == ["log lines are lost", "agent ended"]


@pytest.mark.timeout(20)
def test_a_log_whose_reader_has_gone_is_nothing_to_stop_for(pipe: Pipe) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, pipe.reading)
    os.close(null)
    log.info("call")
    assert log.lost() == 1


def test_a_traceback_is_several_lines_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "text")
    try:
        raise ValueError("red\x1b[31m")
    except ValueError:
        log.crash("internal error", request="call")
    first, *trace = capsys.readouterr().err.splitlines()
    assert first.endswith("error   internal error request=call")
    assert trace[-1] == r"ValueError: red\x1b[31m"
