"""sd_notify(3): one datagram, and no word where there is no service manager."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cnvnet.agent import systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_the_state_arrives_as_one_datagram(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool
) -> None:
    name = f"@{tmp_path}/notify" if abstract else f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        systemd.notify("READY=1\nSTATUS=serving")
        manager.setblocking(False)
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"


@pytest.mark.parametrize("name", ["", "relative", "/nowhere/notify", "@nowhere/cnvnet"])
def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    systemd.notify(systemd.READY)


def test_one_that_does_not_read_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{tmp_path}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
        for _ in range(10_000):
            systemd.notify(systemd.ALIVE)
