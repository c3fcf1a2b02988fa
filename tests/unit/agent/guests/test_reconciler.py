"""Which records have changed since the last look: none is missed, however fast it comes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cnvnet.agent.guests.reconciler import RecordChanges


def test_each_change_is_reported_once(tmp_path: Path) -> None:
    records = RecordChanges(str(tmp_path))
    assert records.changed() == []
    (tmp_path / "a.json").write_text("1")
    (tmp_path / "b.json").write_text("1")
    (tmp_path / "a.json.new").write_text("1")  # half written
    assert sorted(records.changed()) == ["a.json", "b.json"]
    assert records.changed() == []
    (tmp_path / "a.json.new").rename(tmp_path / "a.json")
    assert records.changed() == ["a.json"]
    (tmp_path / "b.json").unlink()
    assert records.changed() == ["b.json"]
    assert records.changed() == []


def test_a_change_in_the_same_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    records = RecordChanges(str(tmp_path))
    (tmp_path / "a.json").write_text("1")
    assert records.changed() == ["a.json"]
    now = os.stat(tmp_path)
    (tmp_path / "b.json").write_text("1")
    os.utime(tmp_path, ns=(now.st_atime_ns, now.st_mtime_ns))
    assert records.changed() == ["b.json"]


def test_an_unchanged_folder_is_not_read_again(tmp_path: Path) -> None:
    records = RecordChanges(str(tmp_path))
    (tmp_path / "a.json").write_text("1")
    long_ago = time.time_ns() - 60 * 10**9
    os.utime(tmp_path, ns=(long_ago, long_ago))
    assert records.changed() == ["a.json"]
    # Only a look at its files could tell.
    os.utime(tmp_path / "a.json", ns=(1, 1))
    assert records.changed() == []


def test_a_folder_may_come_later_and_go(tmp_path: Path) -> None:
    folder = tmp_path / "attachments"
    records = RecordChanges(str(folder))
    assert records.changed() == []
    folder.mkdir()
    (folder / "a.json").write_text("1")
    assert records.changed() == ["a.json"]
    (folder / "a.json").unlink()
    folder.rmdir()
    assert records.changed() == ["a.json"]
