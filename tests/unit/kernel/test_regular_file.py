"""Files that others have put there: read at once, or refused at once."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from cnvnet.kernel import regular_file

# What a machine may have; /dev/zero stands on each, and a container may lack the kernel's log.
DEVICES = ("/dev/zero", "/dev/kmsg", "/dev/random", "/dev/tty", "/proc/kmsg")


def test_a_regular_file_is_read_to_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * regular_file.LIMIT)
    (tmp_path / "link").symlink_to("file")
    assert (
        regular_file.read_file(str(path))
        == regular_file.read_file(str(tmp_path / "link"))
        == path.read_bytes()
    )
    path.write_bytes(b"")
    assert regular_file.read_file(str(path)) == b""


def make_odd(folder: Path) -> dict[str, str]:
    """Paths of everything that must not be read, and the reasons."""
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "to-zero").symlink_to("/dev/zero")
    (folder / "big").write_bytes(bytes(regular_file.LIMIT + 1))
    with (folder / "sparse").open("wb") as file:
        file.truncate(30_000_000)
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(os.path.relpath(folder / "socket"))
    odd = "not a regular file"
    large = f"larger than {regular_file.LIMIT} bytes"
    reasons = {str(folder / name): odd for name in ("fifo", "folder", "to-zero", "socket")}
    reasons |= dict.fromkeys(filter(os.path.exists, DEVICES), odd)
    reasons |= {str(folder / name): large for name in ("big", "sparse")}
    return reasons | {str(folder / "loop"): "too many levels of symbolic links"}


@pytest.mark.timeout(10)
def test_anything_else_is_refused_at_once(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    odd = make_odd(tmp_path)
    assert odd.keys() & set(DEVICES)
    for path, reason in odd.items():
        with pytest.raises(OSError, match=f"(?i){reason}"):
            regular_file.read_file(path)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_terminal_does_not_become_ours(tmp_path: Path) -> None:
    main, other = os.openpty()
    try:
        with pytest.raises(OSError, match="not a regular file"):
            regular_file.read_file(os.ttyname(other))
    finally:
        os.close(main)
        os.close(other)
