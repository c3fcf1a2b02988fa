"""The lock and the sockets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cnvnet.agent import listener
from cnvnet.agent.listener import Locked, Unusable


def test_a_socket_of_a_dead_agent_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    made = listener.bound(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
    assert [each.name for each in tmp_path.iterdir()] == ["agent.sock"]
    made.hide()
    made.hide()
    made.socket.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/agent.sock", "x" * 120], ids=["folder", "length"])
def test_a_path_that_cannot_be_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unusable, match=name):
        listener.bound(str(tmp_path / name))


def test_the_lock_is_free_when_its_holder_has_gone(tmp_path: Path) -> None:
    folder = str(tmp_path / "made")
    os.close(listener.lock(folder))
    os.close(listener.lock(folder))
    assert os.stat(f"{folder}/agent.lock").st_mode & 0o777 == 0o600
    held = listener.lock(folder)
    with pytest.raises(Locked, match=f"another agent serves {folder}"):
        listener.lock(folder)
    os.close(held)
    (tmp_path / "file").touch()
    with pytest.raises(Unusable, match=r"agent\.lock"):
        listener.lock(str(tmp_path / "file"))


def test_what_systemd_passed_to_another_process_is_not_ours() -> None:
    assert listener.activated({}) is None
    assert listener.activated({"LISTEN_FDS": "1", "LISTEN_PID": "1"}) is None
    environ = {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "a:b"}
    with pytest.raises(Unusable, match="should have one ListenStream"):
        listener.activated(environ)
    assert environ == {}  # for none of our children
