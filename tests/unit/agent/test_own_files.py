"""The agent notices that what it runs is no longer what is installed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import cnvnet
from cnvnet.agent.own_files import OwnFiles


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "module.py"
    path.write_text("ONE = 1\n")
    return path


def remembered(*paths: Path) -> OwnFiles:
    files = OwnFiles()
    files.remember(map(str, paths))
    return files


def test_untouched_files_are_those_from_before(module: Path) -> None:
    assert not OwnFiles().replaced()
    files = remembered(module, module.parent / "was-never-there.py")
    module.read_text()
    assert not files.replaced()


def test_another_file_of_the_same_content_is_another(module: Path) -> None:
    files = remembered(module)
    (module.parent / "new").write_text(module.read_text())
    (module.parent / "new").rename(module)
    assert files.replaced()


def test_a_file_that_has_gone_is_not_the_one_from_before(module: Path) -> None:
    files = remembered(module)
    module.unlink()
    assert files.replaced()


def test_it_is_said_once_with_the_version_that_runs(module: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = remembered(module)
    files.check()
    assert caplog.records == []
    module.unlink()
    for _ in range(2):
        files.check()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    fields = vars(record)["fields"]
    assert fields == {"version": cnvnet.VERSION, "remedy": "systemctl restart cnvnet-agent"}


def test_by_default_it_knows_the_modules_of_the_project(
    monkeypatch: pytest.MonkeyPatch, module: Path
) -> None:
    files = OwnFiles()
    monkeypatch.setattr(cnvnet, "__file__", str(module))
    files.remember()
    assert not files.replaced()
    module.unlink()
    assert files.replaced()
