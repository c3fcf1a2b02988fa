"""Requests at the agent's socket that are nearly right, with descriptors that have no business there."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import TIMES
from tests.faults.mutations import documents
from tests.functional.agent.own_agent import RunningAgent, running_agent
from tests.functional.agent.test_load import resident_kilobytes
from tests.harness import Node

pytestmark = [pytest.mark.alone, pytest.mark.timeout(120 + 60 * TIMES)]

COUNT = 600 * TIMES
SOUND: list[dict[str, Any]] = [
    {"v": 1, "status": True},
    {"v": 1, "guest": "serve", "record": "masquerade-00000000000000000000000000000000.json"},
    {"v": 1, "guest": "check", "record": "../../etc/passwd"},
    {
        "v": 1,
        "argv0": "cnv-bridge",
        "fds": ["netns", "self", "mnt", "root"],
        "env": {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_PATH": "/nowhere"},
        "stdin": "e30=",
    },
]


def test_no_request_upsets_the_agent(node: Node, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with running_agent(node) as agent:
        before = len(os.listdir(f"/proc/{agent.pid}/fd"))
        chance = random.Random(3)
        for request in islice(documents(4, SOUND), COUNT):
            send(agent, chance, request, tmp_path / "fifo")
        assert agent.answers()
        assert agent.http("/healthz") == (200, "ok\n")
        # As many as its workers may keep, none for each request.
        assert len(os.listdir(f"/proc/{agent.pid}/fd")) < before + 20
        assert resident_kilobytes(agent) < 150_000
        assert not [event for event in agent.events() if event["level"] == "error"]
        assert "Traceback" not in agent.log()


def send(agent: RunningAgent, chance: random.Random, request: bytes, fifo: Path) -> None:
    """The request with a length that is mostly its own, and half of the time with descriptors."""
    size = chance.choice([len(request)] * 8 + [0, len(request) + 1])
    message = size.to_bytes(4, "big") + request
    paths = chance.choices(
        ["/proc/self/ns/net", "/proc/self/ns/mnt", "/", "/dev/zero", str(fifo)], k=chance.randrange(6)
    )
    opened = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in paths if chance.random() < 0.5]
    try:
        with socket.socket(socket.AF_UNIX) as connection, suppress(ConnectionError):
            connection.settimeout(30)
            connection.connect(str(agent.socket))
            socket.send_fds(connection, [message[:1]], opened)
            connection.sendall(message[1:])
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    finally:
        for descriptor in opened:
            os.close(descriptor)
