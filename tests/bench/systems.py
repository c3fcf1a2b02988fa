"""The systems: where their programs and folders are, what they are asked, and calls timed."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from cnvnet.kernel import netns

CHECKOUT = Path(__file__).resolve().parents[2]
NETWORK = "bench"
IFNAME = "eth0"
SUBNET = "10.0.0.0/9"
# Where a call's configuration and output are kept: in memory, so that no disk is timed with them.
SCRATCH = Path("/run/bench")

# The reference plugins, and ours three ways; ITSELF is the agent where there is nothing to slow it down,
# OTHER the agent and the C launcher of another checkout. In a cluster whereabouts is the reference.
REFERENCE, AGENT, PYTHON, ALONE, ITSELF, OTHER = "reference", "agent", "python", "alone", "itself", "other"
WHEREABOUTS = "whereabouts"

_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
# What an agent has deleted is gone a moment later.
_PATIENCE: Final = 10.0


class System(NamedTuple):
    """One of them on one node: a network namespace with a pod, and folders for its state."""

    name: str
    node: str
    pod: str
    bridge: str
    ipam: str
    bin: Path
    folder: Path
    # CNVNET_AGENT of its calls.
    agent: str

    def config(self, kind: str) -> dict[str, Any]:
        """The network configuration of a kind: l2, macspoofchk, guards (all of them), l3, ipmasq, ipam.

        Behind ipmasq stands the name of one of the reference's backends; ipam is the address manager alone.
        """
        base: dict[str, Any] = {"cniVersion": "1.0.0", "name": NETWORK, "type": self.bridge, "bridge": "br0"}
        ipam = {"type": self.ipam, "subnet": SUBNET, "dataDir": str(self.folder)}
        match kind.split():
            case ["l2"]:
                return base
            case ["macspoofchk"]:
                return {**base, "macspoofchk": True}
            case ["guards"]:
                return {**base, "macspoofchk": True, "ipspoofchk": True, "ipam": ipam}
            case ["l3"]:
                return {**base, "isGateway": True, "ipam": ipam}
            case ["ipmasq", backend]:
                return {**base, "isGateway": True, "ipMasq": True, "ipMasqBackend": backend, "ipam": ipam}
            case _:
                return {**base, "ipam": ipam}

    def program(self, kind: str) -> str:
        return str(self.bin / (self.ipam if kind == "ipam" else self.bridge))

    def environment(self, command: str, container_id: str, pod: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container_id,
            "CNI_NETNS": f"/run/netns/{pod}",
            "CNI_IFNAME": IFNAME,
            "CNI_PATH": str(self.bin),
            "CNVNET_AGENT": self.agent,
            "CNVNET_RUNDIR": f"/run/{self.node}",
            "CNVNET_STATEDIR": str(self.folder),
        }


class Failed(Exception):
    """A call ended with an error; the text says which and what it printed."""


class PluginCall(NamedTuple):
    """One call of a plugin in a node's namespace. `what` says in an error which has failed."""

    what: str
    node: str
    program: str
    environment: Mapping[str, str]
    config: Mapping[str, Any]


def call(
    system: System, command: str, kind: str, container_id: str, *, pod: str = ""
) -> tuple[float, dict[str, Any]]:
    """One call on the system's node: its milliseconds from posix_spawn to wait, and the printed document."""
    return timed(_plugin_call(system, command, kind, container_id, pod or system.pod))


def timed(plugin_call: PluginCall) -> tuple[float, dict[str, Any]]:
    """One call: its milliseconds from posix_spawn to wait, and the printed document. Failed."""
    config, output, errors = (SCRATCH / name for name in ("stdin", "stdout", "stderr"))
    config.write_text(json.dumps(plugin_call.config))
    with netns.opened(f"/run/netns/{plugin_call.node}") as there, netns.entered(there):
        begun = time.perf_counter_ns()
        pid = _spawn(plugin_call.program, plugin_call.environment, config, output, errors)
        _, status = os.waitpid(pid, 0)
        spent = (time.perf_counter_ns() - begun) / 1e6
    if status:
        raise Failed(f"{plugin_call.what}: {output.read_text()}{errors.read_text()}")
    text = output.read_text()
    return spent, json.loads(text) if text.strip() else {}


def burst(system: System, command: str, kind: str, pods: Sequence[str], parallel: int) -> float:
    """One call for each of the pods, so many at a time, in milliseconds.

    They count from the first call until all have ended and, after DEL, until their links are gone.
    """
    calls = [_plugin_call(system, command, kind, pod, pod) for pod in pods]
    with netns.opened(f"/run/netns/{system.node}") as node:
        with netns.entered(node):
            links = len(socket.if_nameindex())
        begun = time.perf_counter_ns()
        crowd(calls, parallel)
        if command == "DEL":
            with netns.entered(node):
                _await_links(links - len(pods))
        return (time.perf_counter_ns() - begun) / 1e6


def crowd(calls: Sequence[PluginCall], parallel: int) -> list[float]:
    """So many calls at a time: milliseconds of each. All have the first one's configuration. Failed."""
    config = SCRATCH / "stdin"
    config.write_text(json.dumps(calls[0].config))
    running: dict[int, tuple[int, PluginCall]] = {}
    spent: list[float] = []
    failed: list[str] = []
    with ExitStack() as opened:
        nodes = {each.node: opened.enter_context(netns.opened(f"/run/netns/{each.node}")) for each in calls}
        for each in calls:
            if len(running) == parallel:
                _reap(running, spent, failed)
            if failed:
                break
            output = _output(each)
            with netns.entered(nodes[each.node]):
                begun = time.perf_counter_ns()
                running[_spawn(each.program, each.environment, config, output, output)] = (begun, each)
        while running:
            _reap(running, spent, failed)
    if failed:
        raise Failed(failed[0])
    return spent


def _plugin_call(system: System, command: str, kind: str, container_id: str, pod: str) -> PluginCall:
    environment = system.environment(command, container_id, pod)
    what = f"{system.name}: {command} {kind}"
    return PluginCall(what, system.node, system.program(kind), environment, system.config(kind))


def _output(plugin_call: PluginCall) -> Path:
    return SCRATCH / f"{plugin_call.environment['CNI_CONTAINERID']}.out"


def await_quiet(system: System) -> None:
    """What the agent still deletes would be timed with the next system's call."""
    with netns.opened(f"/run/netns/{system.pod}") as pod, netns.entered(pod):
        _await_links(1)


def _spawn(program: str, environment: Mapping[str, str], config: Path, output: Path, errors: Path) -> int:
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, str(config), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(output), _WRITE, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, str(errors), _WRITE, 0o600),
    ]
    return os.posix_spawn(program, [program], environment, file_actions=actions)


def _reap(running: dict[int, tuple[int, PluginCall]], spent: list[float], failed: list[str]) -> None:
    pid, status = os.waitpid(-1, 0)
    ended = time.perf_counter_ns()
    if pid not in running:
        return  # an orphan
    begun, ended_call = running.pop(pid)
    if status:
        failed.append(f"{ended_call.what}: {_output(ended_call).read_text()}")
    spent.append((ended - begun) / 1e6)


def _await_links(at_most: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while len(socket.if_nameindex()) > at_most:
        if time.monotonic() > deadline:
            raise Failed(f"links that were deleted are still there: {socket.if_nameindex()}")
        time.sleep(0.001)
