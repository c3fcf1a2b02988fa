"""Launchers get beside other programs' files, in one step, and only where something is to be changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cnvnet.agent import launchers
from cnvnet.agent.listener import Unusable
from cnvnet.executables import NAMES

LAUNCHER = b"\x7fELF\0: this file must be called cnv-bridge, \0"


@pytest.fixture(autouse=True)
def _image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prefix/libexec").mkdir(parents=True)
    (tmp_path / "prefix/libexec/cnv-launch").write_bytes(LAUNCHER)
    monkeypatch.setattr("sys.prefix", str(tmp_path / "prefix"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "bin"
    made.mkdir()
    return made


def test_every_plugin_becomes_a_launcher(folder: Path) -> None:
    umask = os.umask(0o077)
    try:
        assert launchers.install(str(folder)) == []
    finally:
        os.umask(umask)
    assert {path.name for path in folder.iterdir()} == set(NAMES)
    assert all(path.read_bytes() == LAUNCHER for path in folder.iterdir())
    assert all(path.stat().st_mode & 0o777 == 0o755 for path in folder.iterdir())


def test_older_ones_are_replaced_and_the_same_ones_are_not_touched(folder: Path) -> None:
    (folder / "masquerade").write_bytes(b"older" + LAUNCHER)
    # A start of the agent that was killed has left it.
    (folder / "masquerade.new").write_bytes(b"half")
    launchers.install(str(folder))
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert set(before) == set(NAMES)
    launchers.install(str(folder))
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before
    assert (folder / "masquerade").read_bytes() == LAUNCHER


def test_one_that_runs_is_replaced(folder: Path) -> None:
    (folder / "masquerade").write_bytes(b"older" + LAUNCHER)
    with (folder / "masquerade").open("rb") as running:
        launchers.install(str(folder))
        assert running.read() == b"older" + LAUNCHER


def test_another_programs_file_stays_and_is_named(folder: Path) -> None:
    (folder / "cnv-bridge").write_bytes(b"\x7fELF CNAO")
    (folder / "static-ip").symlink_to("/nowhere")
    assert set(launchers.install(str(folder))) == {
        f"{folder}/cnv-bridge is another program's and left alone; the type cnvnet-bridge is ours",
        f"{folder}/static-ip is another program's and left alone",
    }
    assert (folder / "cnv-bridge").read_bytes() == b"\x7fELF CNAO"
    assert (folder / "static-ip").is_symlink()
    assert (folder / "cnvnet-bridge").read_bytes() == LAUNCHER


def test_a_link_in_the_place_of_the_new_file_leads_nowhere(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (folder / "masquerade.new").symlink_to(victim)
    launchers.install(str(folder))
    assert victim.read_text() == "kept"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"/nowhere/.*: No such file or directory"):
        launchers.install("/nowhere")
    (tmp_path / "prefix/libexec/cnv-launch").unlink()
    with pytest.raises(Unusable, match=r"cnv-launch: No such file.*scripts/install-cni installs launchers"):
        launchers.install(str(tmp_path))
