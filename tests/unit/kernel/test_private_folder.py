"""Folders that only root may change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cnvnet.call_context import captured
from cnvnet.kernel import private_folder


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_others_never_write_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "a" / "run" / "attachments"
    before = os.umask(umask)
    try:
        private_folder.ensure(str(folder.parent), str(folder))
    finally:
        os.umask(before)
    assert mode(folder) == mode(folder.parent) == 0o700
    assert mode(tmp_path / "a") == 0o755 & ~umask


def test_what_an_older_version_left_open_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    with captured() as lines:
        private_folder.ensure(str(folder))
    assert mode(folder) == 0o755
    assert lines == [f"{folder}: mode 0777 let others write: they no longer can"]
    with captured() as lines:
        private_folder.ensure(str(folder))
    assert lines == []


@pytest.mark.parametrize("left", ["file", "symlink"])
def test_a_file_is_ours_alone_whatever_was_left_beside_it(tmp_path: Path, left: str) -> None:
    """Another user has opened it, or lets it lead elsewhere, from before only root could write there."""
    fresh, victim = tmp_path / "secret.new", tmp_path / "victim"
    victim.write_text("as it was")
    if left == "file":
        fresh.hardlink_to(victim)
    else:
        fresh.symlink_to(victim)
    private_folder.put(str(tmp_path / "secret"), b"content")
    assert (tmp_path / "secret").read_bytes() == b"content"
    assert mode(tmp_path / "secret") == 0o600
    assert victim.read_text() == "as it was"
    assert not fresh.exists()


def test_a_sticky_folder_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    private_folder.ensure(str(tmp_path))
    assert mode(tmp_path) == 0o1777


def test_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError):
            private_folder.ensure(str(path))
