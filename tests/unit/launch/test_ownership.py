"""A file in the runtime's folder is ours by what it has inside, under whatever name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cnvnet.launch.ownership import is_foreign, is_ours

LAUNCHER = b"\x7fELF\0\0called as \0: this file must be called cnv-bridge, masquerade"


@pytest.mark.parametrize(
    ("content", "ours"),
    [
        (LAUNCHER, True),
        (b"#!/opt/cnvnet/bin/python -IS\nfrom cnvnet.executables import cnv_bridge\n", True),
        (b"#!/opt/cnvnet/bin/python\nfrom cnvnet.plugins.cnv_bridge.plugin import main\n", True),
        (b"\x7fELF\0CNI bridge plugin v1.9.1\0", False),
        (b"#!/bin/sh\n# not from cnvnet.executables import\n", False),
        (b"", False),
    ],
)
def test_the_content_tells(tmp_path: Path, content: bytes, *, ours: bool) -> None:
    path = tmp_path / "cnv-bridge"
    path.write_bytes(content)
    assert (is_ours(str(path)), is_foreign(str(path))) == (ours, not ours)
    link = tmp_path / "bridge"
    link.symlink_to("cnv-bridge")
    assert is_ours(str(link)) == ours


def test_what_is_not_there_is_no_other_programs(tmp_path: Path) -> None:
    assert not is_foreign(str(tmp_path / "cnv-bridge"))
    assert not is_foreign("/etc/passwd/cnv-bridge")


def test_a_folder_a_fifo_and_a_link_to_nowhere_are(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "folder")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/nowhere/cnv-bridge")
    for name in ("folder", "fifo", "link"):
        assert is_foreign(str(tmp_path / name)), name
