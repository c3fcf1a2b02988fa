"""Which checkouts scripts/bench can measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import programs

INSTALLED = ".tools/installed/lib/python3.11/site-packages"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One that is set up, with a module of each package; cnvnet/plugins is a symlink as in the real one."""
    for path in ("cnvnet/a.py", "plugins/b.py", "ipam/deep/c.py", "launcher/Makefile"):
        write(tmp_path / path, path)
    (tmp_path / "cnvnet/plugins").symlink_to("../plugins")
    for path, source in (("a.py", "cnvnet/a.py"), ("plugins/b.py", "plugins/b.py")):
        write(tmp_path / INSTALLED / "cnvnet" / path, source)
    write(tmp_path / INSTALLED / "cnvnet/ipam/deep/c.py", "ipam/deep/c.py")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_checkout_that_is_set_up_can_be_measured(checkout: Path) -> None:
    assert programs.unusable(checkout) == ""


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    assert programs.unusable(tmp_path / "missing").startswith("is no checkout of this project")


def test_a_checkout_that_is_not_set_up_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write(tmp_path / "launcher/Makefile", "")
    assert programs.unusable(tmp_path) == "has no .tools/installed (there: scripts/setup bench)"


@pytest.mark.parametrize("path", ["cnvnet/a.py", "plugins/b.py", "ipam/deep/c.py", "ipam/deep/new.py"])
def test_a_module_that_is_not_as_installed_is_named(checkout: Path, path: str) -> None:
    write(checkout / path, "changed")
    assert programs.unusable(checkout).startswith(f"{path} is not what .tools/installed has (there:")


def test_a_folder_without_git_is_named_by_its_path(tmp_path: Path) -> None:
    assert programs.commit(tmp_path) == str(tmp_path)
