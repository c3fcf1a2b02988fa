"""What an agent says, and that nothing depends on it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cnvnet.attachment.record import Key, file_name
from cnvnet.cli import agent
from cnvnet.cli.agent import AgentStatus, GuestProbe
from cnvnet.launch import guest_client

KEY = Key("vm-bridge", "net1", "cid-1", "eth0")


@contextmanager
def answering(rundir: Path, *answers: dict[str, Any]) -> Generator[list[dict[str, Any]]]:
    """An agent that gives these answers, one per connection; yields what it is asked."""
    asked: list[dict[str, Any]] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(rundir / "agent.sock"))
        listener.listen()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    size = int.from_bytes(connection.recv(4, socket.MSG_WAITALL))
                    asked.append(json.loads(connection.recv(size, socket.MSG_WAITALL)))
                    content = json.dumps(answer).encode()
                    connection.sendall(len(content).to_bytes(4) + content)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield asked
        thread.join(10)
        assert not thread.is_alive()


def env_of(rundir: Path) -> dict[str, str]:
    return agent.environment({"CNVNET_AGENT": "off"}, str(rundir))


def test_an_agent_tells_about_itself(tmp_path: Path) -> None:
    answer = {"v": 1, "ok": True, "version": "9.9", "served": 4, "waiting": 1, "loop": False}
    with answering(tmp_path, answer) as asked:
        assert agent.ask(env_of(tmp_path)) == AgentStatus("", "9.9", 4, 1, False)
    assert asked == [{"v": 1, "about": True}]


def test_an_older_agent_is_there_without_a_version(tmp_path: Path) -> None:
    with answering(tmp_path, {"v": 1, "unsupported": True}):
        assert agent.ask(env_of(tmp_path)) == AgentStatus()


def test_without_an_agent_the_reason_is_said(tmp_path: Path) -> None:
    assert agent.ask(env_of(tmp_path)).absent == f"{tmp_path}/agent.sock: no such file or directory"
    with answering(tmp_path):
        pass
    assert agent.ask(env_of(tmp_path)).absent == f"{tmp_path}/agent.sock: connection refused"


def test_what_has_the_socket_and_does_not_answer_is_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_client, "_BRIEF", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()
        assert agent.ask(env_of(tmp_path)) == AgentStatus(f"{tmp_path}/agent.sock: timed out", stuck=True)


def test_a_guest_is_served_or_waits_for_a_reason(tmp_path: Path) -> None:
    name = file_name(KEY)
    error = {"code": 50, "msg": f"{name}: the guest is not served: the tap is gone"}
    with answering(tmp_path, {"v": 1, "ok": True}, {"v": 1, "error": error}) as asked:
        guests = GuestProbe(env_of(tmp_path), AgentStatus())
        assert guests.problem(KEY) == ""
        assert guests.problem(KEY) == "the guest is not served: the tap is gone"
    assert asked == [{"v": 1, "guest": "check", "record": name}] * 2


def test_an_agent_that_is_gone_is_asked_once(tmp_path: Path) -> None:
    guests = GuestProbe(env_of(tmp_path), AgentStatus())
    assert guests.problem(KEY) is None
    with answering(tmp_path) as asked:
        assert guests.problem(KEY) is None
    assert asked == []
    assert GuestProbe(env_of(tmp_path), AgentStatus(absent="gone")).problem(KEY) is None
