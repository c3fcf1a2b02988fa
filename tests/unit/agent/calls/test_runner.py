"""Calls that do not end, and calls of others that the agent must not run."""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest

from cnvnet.agent.calls import run_lock
from cnvnet.agent.calls import runner as module
from cnvnet.agent.calls.runner import CallRunner
from cnvnet.agent.connection import CallerConnection
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.kube.api import ApiError, deadline
from cnvnet.kube.client import Client
from cnvnet.kube.resources import NODES
from cnvnet.launch.protocol import DESCRIPTORS, ForwardedCall, encode_call
from tests.fakes.api_server import black_hole, running_api_server


class Hanging:
    """A plugin whose STATUS ends when the test says so."""

    name = "cnv-bridge"

    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()

    def status(self, request: Request) -> None:
        self.begun.set()
        assert self.end.wait(30)

    def add(self, request: Request) -> Result:
        raise NotImplementedError

    def delete(self, request: Request) -> None: ...
    def check(self, request: Request) -> None: ...
    def gc(self, request: Request) -> None: ...

    def shared_folders(self, request: Request) -> tuple[str, ...]:
        return (request.fields.text("keeps"),) if request.fields.has("keeps") else ()


def connection(root: str = "/") -> CallerConnection:
    ours, theirs = socket.socketpair()
    made = CallerConnection(ours)
    theirs.close()
    made.descriptors += [
        os.open("/proc/self/ns/net", os.O_RDONLY),
        os.open("/proc/self/ns/mnt", os.O_RDONLY),
        os.open(root, os.O_PATH),
    ]
    return made


def test_a_call_that_runs_for_longer_than_its_launcher_waits_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = Hanging()
    calls = CallRunner(str(tmp_path), {"cnv-bridge": lambda _: plugin}, lambda _: None, lambda _: None)
    env = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/bin", "CNVNET_RUNDIR": str(tmp_path)}
    stdin = json.dumps({"cniVersion": "1.1.0", "name": "net1", "type": "cnv-bridge"}).encode()
    document = json.loads(encode_call(ForwardedCall("cnv-bridge", env, stdin, DESCRIPTORS[1:])))
    worker = threading.Thread(target=calls.take, args=(document, connection()))
    worker.start()
    assert plugin.begun.wait(30)
    assert calls.stuck() == []
    monkeypatch.setattr(module, "_STUCK", 0.0)
    (text,) = calls.stuck()
    assert text.startswith("STATUS of cnv-bridge for")
    assert "network net1 has run for 0 s" in text
    plugin.end.set()
    worker.join(30)
    assert calls.stuck() == []


@pytest.mark.parametrize(("keeps", "is_taken"), [(None, True), ("shared", True), ("hidden", False)])
def test_a_call_is_run_if_what_it_keeps_is_the_same_for_its_caller(
    tmp_path: Path, keeps: str | None, is_taken: bool
) -> None:
    plugin, rundir = Hanging(), tmp_path / "root/run"
    rundir.mkdir(parents=True)
    # The caller's `/` is `root`. A mount needs rights: here two paths lead to one file by a link.
    for name in ("shared", "hidden"):
        (tmp_path / name).touch()
    inside = tmp_path / "root" / str(tmp_path)[1:]
    inside.mkdir(parents=True)
    (inside / "shared").hardlink_to(tmp_path / "shared")
    plugin.end.set()
    calls = CallRunner(str(rundir), {"cnv-bridge": lambda _: plugin}, lambda _: None, lambda _: None)
    config = {"cniVersion": "1.1.0", "name": "net1", "type": "cnv-bridge"}
    if keeps is not None:
        config["keeps"] = str(tmp_path / keeps)
    env = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/bin", "CNVNET_RUNDIR": "/run"}
    call = ForwardedCall("cnv-bridge", env, json.dumps(config).encode(), DESCRIPTORS[1:])
    with closing(connection(str(tmp_path / "root"))) as caller:
        assert calls.take(json.loads(encode_call(call)), caller) is is_taken
    assert plugin.begun.is_set() is is_taken


class Asking(Hanging):
    """A plugin whose DEL of container `asks` asks a Kubernetes API."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client
        self.errors: list[ApiError] = []
        self.done: list[str] = []

    def delete(self, request: Request) -> None:
        if request.container_id == "asks":
            self.begun.set()
            try:
                with deadline(1):
                    self.client.get(NODES, "n")
            except ApiError as e:
                self.errors.append(e)
        self.done.append(request.container_id)


def deletion(container_id: str, rundir: Path) -> dict[str, object]:
    env = {
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": container_id,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/bin",
        "CNVNET_RUNDIR": str(rundir),
    }
    stdin = json.dumps({"cniVersion": "1.1.0", "name": "net1", "type": "cnv-bridge"}).encode()
    document: dict[str, object] = json.loads(
        encode_call(ForwardedCall("cnv-bridge", env, stdin, DESCRIPTORS[1:]))
    )
    return document


def test_while_a_call_waits_for_an_api_server_that_says_nothing_others_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A call that would have to overtake comes too late.
    monkeypatch.setattr(run_lock, "_PATIENCE", 60.0)
    with running_api_server() as server:
        server.inject(black_hole, times=2)
        plugin = Asking(server.client())
        calls = CallRunner(str(tmp_path), {"cnv-bridge": lambda _: plugin}, lambda _: None, lambda _: None)
        worker = threading.Thread(target=calls.take, args=(deletion("asks", tmp_path), connection()))
        worker.start()
        assert plugin.begun.wait(30)
        for number in range(5):
            assert calls.take(deletion(f"c{number}", tmp_path), connection())
        assert plugin.done == ["c0", "c1", "c2", "c3", "c4"]
        worker.join(30)
        assert (plugin.done[-1], len(plugin.errors)) == ("asks", 1)
        # The lock is there again.
        assert calls.take(deletion("c5", tmp_path), connection())
