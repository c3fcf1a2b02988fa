"""What counts as a network namespace; being inside another one is tried in tests/functional/kernel."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cnvnet.kernel import netns
from cnvnet.kernel.netns import NotANamespace


def test_the_own_namespace_opens_and_is_recognised() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with netns.opened("/proc/self/ns/net") as own:
        assert own.path == "/proc/self/ns/net"
        assert own.inode == netns.own_inode()
        assert not os.get_inheritable(own.fd)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("path", ["/nowhere/at/all", "/proc/self/ns/none", "/etc/passwd/net"])
def test_nothing_there_is_file_not_found(path: str) -> None:
    with pytest.raises(FileNotFoundError), netns.opened(path):
        pass


def test_anything_else_is_not_a_namespace(tmp_path: Path) -> None:
    file, fifo, unix = tmp_path / "file", tmp_path / "fifo", tmp_path / "socket"
    file.touch()
    os.mkfifo(fifo)  # opening one without a writer would block
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(unix))
        for path in (file, fifo, unix, tmp_path, Path("/dev/null"), Path("/proc/self/status")):
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(NotANamespace, match=str(path)), netns.opened(str(path)):
                pass
            assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["mnt", "uts", "pid"])
def test_a_namespace_of_another_kind_is_not_one_of_the_network(kind: str) -> None:
    with (
        pytest.raises(NotANamespace, match="of another kind than network"),
        netns.opened(f"/proc/self/ns/{kind}"),
    ):
        pass
