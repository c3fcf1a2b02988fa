"""The mark beside a database of leases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cnvnet.ipam.store.mark import Mark


def test_it_counts_and_is_as_large_as_before(tmp_path: Path) -> None:
    mark = Mark(str(tmp_path))
    assert mark.read() is None
    mark.make(7)
    size = os.stat(mark.path).st_size
    mark.count(12345)
    assert (mark.read(), os.stat(mark.path).st_size) == (12345, size)
    assert os.stat(mark.path).st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["leases.kept"]


def test_one_that_is_made_is_on_the_disk_and_one_that_counts_on_costs_no_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr("os.fsync", note)
    mark = Mark(str(tmp_path))
    mark.make(0)
    assert synced == [f"{mark.path}.new", str(tmp_path)]
    mark.count(1)
    assert len(synced) == 2


def test_one_that_is_gone_is_made_again(tmp_path: Path) -> None:
    Mark(str(tmp_path)).count(3)
    assert Mark(str(tmp_path)).read() == 3


@pytest.mark.parametrize("content", [b"", b"12", b"nonsense that is longer than a number"])
def test_one_that_cannot_be_understood_still_says_that_leases_were_kept(
    tmp_path: Path, content: bytes
) -> None:
    mark = Mark(str(tmp_path))
    Path(mark.path).write_bytes(content)
    assert mark.read() == 0


def test_trouble_with_it_is_no_trouble_of_a_call(tmp_path: Path) -> None:
    mark = Mark(str(tmp_path))
    os.mkdir(mark.path)
    mark.count(3)
    Mark(str(tmp_path / "nowhere")).count(3)
