"""Processes that do one thing with a store and are killed at it: each is forked from one that imports all.

It reads lines from its standard input: a scenario of tests.unit.ipam.store.interruptions, or none to end.
For each it forks a process, writes its id, lets it begin at the next line and writes how it has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from cnvnet.ipam.store.holds import Holds
from cnvnet.ipam.store.kubernetes import KubernetesStore
from cnvnet.kube.client import Client
from cnvnet.kube.credentials import from_kubeconfig
from tests.unit.ipam.store.conformance import Desk
from tests.unit.ipam.store.interruptions import SCENARIOS
from tests.unit.ipam.store.nodes import Node

_STDIN: Final = 0


class AgentNode(Node):
    """A node of a real cluster, behind the token of its agent."""

    def __init__(self, kubeconfig: Path, folder: Path, name: str, others: dict[str, Path]) -> None:
        """`others` are the kubeconfigs of other nodes."""
        self.holds = Holds(str(folder / name))
        self.name, self.folder, self.kubeconfig, self.others = name, folder, kubeconfig, others
        self.options: dict[str, Any] = {"clock": lambda: 1000}
        self.connect(kubeconfig)

    def connect(self, kubeconfig: Path) -> None:
        """What it asks from now on, by a new store."""
        self.client = Client(from_kubeconfig(str(kubeconfig)))
        Desk.__init__(self, _closable(KubernetesStore(self.client, self.holds, self.name, **self.options)))

    def neighbour(self, name: str) -> Node:
        return AgentNode(self.others[name], self.folder, name, self.others)


def _closable(store: Any) -> Any:
    return store


class Forked:
    """A process that waits for `go`, and then runs its scenario."""

    def __init__(self, server: subprocess.Popen[str], pid: int) -> None:
        self.pid = pid
        self._server = server

    def go(self) -> str:
        """Returns when it has ended: "", "killed", or what it has raised."""
        _write(self._server.stdin, "go")
        return str(_read(self._server)["ended"])


class StoreProcesses:
    """What forks them."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def fork(self, scenario: str, kubeconfig: Path, folder: Path, name: str) -> Forked:
        """A process of a node, with the hold files in the folder."""
        line = {"scenario": scenario, "kubeconfig": str(kubeconfig), "folder": str(folder), "name": name}
        _write(self._server.stdin, json.dumps(line))
        return Forked(self._server, int(_read(self._server)["pid"]))


@contextmanager
def store_processes() -> Generator[StoreProcesses]:
    command = [sys.executable, "-m", __name__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield StoreProcesses(server)
        assert server.stdin is not None
        server.stdin.close()


def _write(stream: IO[str] | None, line: str) -> None:
    assert stream is not None
    stream.write(f"{line}\n")
    stream.flush()


def _read(server: subprocess.Popen[str]) -> dict[str, Any]:
    assert server.stdout is not None
    answer: dict[str, Any] = json.loads(server.stdout.readline())
    return answer


def _next_line() -> str:
    """Without a buffer, which would be copied to the next process."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(_STDIN, 1)):
        line += byte
    return line.decode()


def _serve() -> None:
    scenarios = {each.__name__: each for each in SCENARIOS}
    while line := _next_line():
        asked = json.loads(line)
        trouble = Path(asked["folder"]) / "trouble"
        pid = os.fork()
        if not pid:
            try:
                _next_line()
                folder = Path(asked["folder"])
                scenarios[asked["scenario"]](AgentNode(Path(asked["kubeconfig"]), folder, asked["name"], {}))
                os._exit(0)
            except BaseException:  # noqa: BLE001 -- the process that it is copied from must not go on twice
                trouble.write_text(traceback.format_exc())
                os._exit(1)
        _write(sys.stdout, json.dumps({"pid": pid}))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        ended = "" if not status else "killed" if status < 0 else trouble.read_text()
        _write(sys.stdout, json.dumps({"ended": ended}))


if __name__ == "__main__":
    _serve()
