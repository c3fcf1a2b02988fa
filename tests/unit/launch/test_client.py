"""The way to the agent, which calls and guests share; real ones in tests/functional/launcher and agent."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from cnvnet.launch import client
from cnvnet.launch.protocol import MalformedMessage

LIMIT = 1000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    ("env", "path"),
    [
        ({}, "/run/cnvnet/agent.sock"),
        ({"CNVNET_AGENT": "auto", "CNVNET_RUNDIR": ""}, "/run/cnvnet/agent.sock"),
        ({"CNVNET_RUNDIR": "/r"}, "/r/agent.sock"),
        ({"CNVNET_AGENT": "/a.sock", "CNVNET_RUNDIR": "/r"}, "/a.sock"),
        ({"CNVNET_AGENT": "./a.sock"}, "./a.sock"),
        ({"CNVNET_AGENT": "off", "CNVNET_RUNDIR": "/r"}, "/r/agent.sock"),
    ],
    ids=str,
)
def test_the_environment_says_which_agent(env: dict[str, str], path: str) -> None:
    assert client.socket_path(env) == path


def test_a_message_comes_back_whole_however_it_is_cut(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    def answer() -> None:
        assert theirs.recv(100) == b"\0\0\0\3one"
        for byte in b"\0\0\0\3two":
            theirs.sendall(bytes((byte,)))

    thread = threading.Thread(target=answer)
    thread.start()
    assert client.exchange(ours, b"one", time.monotonic() + 10, limit=LIMIT) == b"two"
    thread.join()


def test_descriptors_come_with_the_first_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(b"\0\0\0\1x")
    client.exchange(ours, b"one", time.monotonic() + 10, limit=LIMIT, descriptors=[ours.fileno()])
    content, (received,), _, _ = socket.recv_fds(theirs, 1, 4)
    try:
        assert content == b"\0"
        assert os.path.samestat(os.fstat(received), os.fstat(ours.fileno()))
    finally:
        os.close(received)
    assert theirs.recv(100) == b"\0\0\3one"


@pytest.mark.parametrize(
    "length", [b"\0\0\0\0", b"\0\0\3\xe9", b"\xff\xff\xff\xff"], ids=["0", "1001", "4 GiB"]
)
def test_an_impossible_length_is_no_message(
    pair: tuple[socket.socket, socket.socket], length: bytes
) -> None:
    ours, theirs = pair
    theirs.sendall(length)
    with pytest.raises(MalformedMessage):
        client.exchange(ours, b"one", time.monotonic() + 10, limit=LIMIT)


@pytest.mark.parametrize("answer", [b"", b"\0", b"\0\0\0\4two"])
def test_an_agent_that_hangs_up_has_not_answered(
    pair: tuple[socket.socket, socket.socket], answer: bytes
) -> None:
    ours, theirs = pair
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError, match="it has hung up"):
        client.exchange(ours, b"one", time.monotonic() + 10, limit=LIMIT)


def test_an_agent_that_sends_byte_after_byte_is_not_waited_for_without_end(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    ends = threading.Event()

    def dribble() -> None:
        theirs.sendall(b"\0\0\3\0")
        while not ends.wait(0.01):
            theirs.sendall(b"x")

    thread = threading.Thread(target=dribble)
    thread.start()
    try:
        with pytest.raises(TimeoutError):
            client.exchange(ours, b"one", time.monotonic() + 0.3, limit=LIMIT)
    finally:
        ends.set()
        thread.join()
