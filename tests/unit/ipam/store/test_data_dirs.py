"""The list of folders with leases: whatever is in it, what can be read is, and what is there stays."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cnvnet.ipam.store import data_dirs
from cnvnet.kernel import regular_file


def test_before_the_first_there_is_no_list(tmp_path: Path) -> None:
    assert data_dirs.read(str(tmp_path / "state")) == ((), "")
    assert not (tmp_path / "state").exists()


def test_a_folder_is_added_once_and_explained_to_people(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    for folder in ("/srv/a", "/srv/\xfc b", "/srv/a"):
        data_dirs.add(state, folder)
    assert data_dirs.read(state) == (("/srv/a", "/srv/\xfc b"), "")
    listed = Path(data_dirs.path(state))
    assert listed.read_text("utf-8").startswith("# ")
    assert listed.stat().st_mode & 0o777 == 0o600
    inode = listed.stat().st_ino
    data_dirs.add(state, "/srv/a")
    assert listed.stat().st_ino == inode


def test_many_at_once_lose_none(tmp_path: Path) -> None:
    folders = [f"/srv/{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        for each in [threads.submit(data_dirs.add, str(tmp_path), folder) for folder in folders]:
            each.result()
    assert sorted(data_dirs.read(str(tmp_path)).folders) == sorted(folders)


def test_one_that_waits_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_dirs, "_PATIENCE", 0.02)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="locked by another process"):
            data_dirs.add(str(tmp_path), "/srv/a")
    finally:
        os.close(fd)
    data_dirs.add(str(tmp_path), "/srv/a")


@pytest.mark.parametrize("line", [b"relative", b"/with\ta tab", b"/no\xffutf8", b"/a\0b"])
def test_lines_that_are_no_path_are_said_and_stay(tmp_path: Path, line: bytes) -> None:
    listed = Path(data_dirs.path(str(tmp_path)))
    # The last line was cut off.
    listed.write_bytes(b"/srv/a\n" + line + b"\n/srv/b")
    found = data_dirs.read(str(tmp_path))
    assert found.folders == ("/srv/a", "/srv/b")
    assert f"{listed}: " in found.damage
    assert "is no absolute path: put it right or remove it" in found.damage
    data_dirs.add(str(tmp_path), "/srv/c")
    assert data_dirs.read(str(tmp_path)).folders == ("/srv/a", "/srv/b", "/srv/c")
    assert line in listed.read_bytes().split(b"\n")


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "large"])
def test_what_is_no_file_is_said_and_stays(tmp_path: Path, kind: str) -> None:
    listed = Path(data_dirs.path(str(tmp_path)))
    if kind == "fifo":
        os.mkfifo(listed)
    elif kind == "link":
        listed.symlink_to("/etc/passwd")
    elif kind == "folder":
        listed.mkdir()
    else:
        listed.write_bytes(b"/srv\n" * regular_file.LIMIT)
    before = listed.lstat()
    found = data_dirs.read(str(tmp_path))
    assert found.folders == ()
    assert found.damage.startswith(f"{listed}: ")
    with pytest.raises(OSError, match=r"not a regular file|larger than"):
        data_dirs.add(str(tmp_path), "/srv/a")
    assert (listed.lstat().st_ino, listed.lstat().st_size) == (before.st_ino, before.st_size)
    assert [each.name for each in tmp_path.iterdir()] == [listed.name]


def test_a_list_that_is_full_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dirs.add(str(tmp_path), "/srv/a")
    monkeypatch.setattr(regular_file, "LIMIT", Path(data_dirs.path(str(tmp_path))).stat().st_size)
    with pytest.raises(OSError, match="it would be larger than"):
        data_dirs.add(str(tmp_path), "/srv/b")
    assert data_dirs.read(str(tmp_path)) == (("/srv/a",), "")
