"""When a call goes to the agent and when it does not; processes do so in tests/functional/launcher."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cnvnet.cni.document import LIMIT
from cnvnet.cni.skel import Response
from cnvnet.launch import forward
from cnvnet.launch.protocol import encode_response, framed
from tests.unit.cni.test_environment import COMPLETE

GOOD = Response(0, b"{}", b"said\n")


def config() -> bytes:
    return b'{"cniVersion": "1.1.0", "name": "net"}'


def unread() -> bytes:
    raise AssertionError("stdin was read")


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "agent.sock"))
        made.listen(0)
        yield made


def environment(folder: Path, **more: str) -> Mapping[str, str]:
    return {**COMPLETE, "CNVNET_RUNDIR": str(folder), **more}


def test_without_a_socket_nothing_is_read(tmp_path: Path) -> None:
    assert forward.forward("test", environment(tmp_path), unread) is None


@pytest.mark.usefixtures("listening")
def test_a_caller_that_wants_no_agent_asks_none(tmp_path: Path) -> None:
    assert forward.forward("test", environment(tmp_path, CNVNET_AGENT="off"), unread) is None


@pytest.mark.usefixtures("listening")
def test_a_call_that_is_refused_anyway_is_not_sent(tmp_path: Path) -> None:
    assert forward.forward("test", environment(tmp_path, CNI_IFNAME="a/b"), unread) is None
    assert forward.forward("test", environment(tmp_path), lambda: b" " * (LIMIT + 1)) is None

    def unreadable() -> bytes:
        raise OSError(5, "Input/output error")

    assert forward.forward("test", environment(tmp_path), unreadable) is None


def test_no_descriptor_is_left_open(tmp_path: Path, listening: socket.socket) -> None:
    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            # One read does not go on behind the byte that descriptors came with.
            length = connection.recv(1) + connection.recv(3, socket.MSG_WAITALL)
            size = int.from_bytes(length, "big")
            connection.recv(size, socket.MSG_WAITALL)
            connection.sendall(framed(encode_response(GOOD)))

    thread = threading.Thread(target=answer)
    before = os.listdir("/proc/self/fd")
    thread.start()
    assert forward.forward("test", environment(tmp_path), config) == GOOD
    thread.join()
    assert os.listdir("/proc/self/fd") == before


def failure(response: Response | None) -> str:
    assert response is not None
    assert (response.exit, response.stderr) == (1, b"")
    document = json.loads(response.stdout)
    assert (document["cniVersion"], document["code"]) == ("1.1.0", 11)
    message: str = document["msg"]
    return message


def test_a_full_backlog_is_not_waited_for_without_end(
    tmp_path: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "CONNECT_SECONDS", 1)
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(listening.getsockname())
        message = failure(forward.forward("test", environment(tmp_path), config))
    assert message == f"the agent at {tmp_path}/agent.sock is too busy to take the call"


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("size", [10, 10_000_000], ids=["no answer", "not read"])
def test_an_agent_that_does_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(forward, "CALL_SECONDS", 0.2)
    raw = config() + b" " * size
    message = failure(forward.forward("test", environment(tmp_path), lambda: raw))
    assert message == f"the agent at {tmp_path}/agent.sock was lost before its answer (timed out)"
