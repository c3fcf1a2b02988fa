"""Paths below another's root: what is outside of it is not reached, whatever leads there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnvnet.kernel.paths import open_in


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """A root with a file `/run/file`, and links to it."""
    folder = tmp_path / "root"
    (folder / "run").mkdir(parents=True)
    (folder / "run/file").write_text("inside")
    (folder / "var").mkdir()
    (folder / "var/run").symlink_to("/run")
    (folder / "file").symlink_to("/run/file")
    (folder / "up").symlink_to("../../../run/file")
    (folder / "circle").symlink_to("circle")
    (folder / "proc").symlink_to("/nowhere")
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    "path", ["/run/file", "/var/run/file", "/file", "/up", "/../../run/file", "run/file"]
)
def test_links_and_dots_end_at_the_root(root: int, path: str) -> None:
    with os.fdopen(open_in(root, path, os.O_RDONLY)) as file:
        assert file.read() == "inside"
        assert not os.get_inheritable(file.fileno())


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/nothing", errno.ENOENT),
        ("/run/file/more", errno.ENOTDIR),
        ("/proc/self/ns/net", errno.ENOENT),
        ("/circle", errno.ELOOP),
        ("", errno.ENOENT),
    ],
)
def test_what_is_not_there_is_said_as_open_says_it(root: int, path: str, number: int) -> None:
    with pytest.raises(OSError, match=r".") as refusal:
        open_in(root, path, os.O_RDONLY)
    assert (refusal.value.errno, refusal.value.filename) == (number, path)


def test_a_namespace_of_a_process_is_found() -> None:
    fd = os.open("/", os.O_PATH)
    try:
        found = open_in(fd, f"/proc/{os.getpid()}/ns/net", os.O_RDONLY)
        assert os.path.samestat(os.fstat(found), os.stat("/proc/self/ns/net"))
        os.close(found)
    finally:
        os.close(fd)
