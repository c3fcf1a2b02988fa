"""The server with kinds of its own: what it does when they fail."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cnvnet.agent import listener
from cnvnet.agent.connection import Document
from cnvnet.agent.server import Handler, Server
from cnvnet.agent.supervisor import Supervisor
from cnvnet.cni.errors import CNIError

Observed = list[tuple[str, int]]


def echo(document: Document) -> Document:
    return {"ok": True, "said": document["say"]}


def refuse(_: Document) -> Document:
    raise CNIError(50, "not today")


def crash(_: Document) -> Document:
    raise ZeroDivisionError("as the test says")


KINDS = {
    "echo": Handler("echo", echo),
    "refuse": Handler("refuse", refuse),
    "crash": Handler("crash", crash),
}


def route(document: Document) -> Handler | None:
    return KINDS.get(str(document.get("do")))


@pytest.fixture
def observed() -> Observed:
    return []


@pytest.fixture
def path(tmp_path: Path, observed: Observed) -> Iterator[Path]:
    own = listener.bound(str(tmp_path / "agent.sock"))
    server = Server(own.socket, route, lambda kind, code: observed.append((kind, code)), Supervisor())
    server.start()
    try:
        yield tmp_path / "agent.sock"
        assert server.is_alive()
    finally:
        own.hide()
        server.stop()
        own.socket.close()
    assert not server.is_alive()


def test_a_silent_caller_does_not_keep_the_server_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnvnet.agent.connection.SECONDS", 1000.0)
    own = listener.bound(str(tmp_path / "agent.sock"))
    server = Server(own.socket, route, lambda _kind, _code: None, Supervisor())
    with ExitStack() as opened:
        callers = [opened.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(4)]
        for each in callers:
            each.connect(str(tmp_path / "agent.sock"))
        callers[1].sendall(b"\0")
        content = json.dumps({"v": 1, "do": "echo", "say": "late"}).encode()
        callers[2].sendall(len(content).to_bytes(4, "big") + content)
        own.hide()
        server.stop()
        assert [b"late" in each.recv(1000) for each in callers] == [False, False, True, False]
    own.socket.close()


def ask(path: Path, document: Document) -> Document:
    content = json.dumps(document).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        # As slowly as may be.
        for byte in len(content).to_bytes(4, "big") + content:
            connection.sendall(bytes((byte,)))
        answer: Document = json.loads(b"".join(iter(lambda: connection.recv(100), b""))[4:])
    return answer


def test_each_kind_is_answered_and_counted(path: Path, observed: Observed) -> None:
    for _ in range(3):
        assert ask(path, {"v": 1, "do": "echo", "say": "ä"}) == {"v": 1, "ok": True, "said": "ä"}
        assert ask(path, {"v": 1, "do": "refuse"}) == {"v": 1, "error": {"code": 50, "msg": "not today"}}
        error = ask(path, {"v": 1, "do": "crash"})["error"]
        assert error == {
            "code": 999,
            "msg": "internal error of the agent: ZeroDivisionError: as the test says",
        }
        assert ask(path, {"v": 1, "do": "sing"}) == {"v": 1, "unsupported": True}
    assert observed == [("echo", 0), ("refuse", 50), ("crash", 999), ("unknown", 501)] * 3
