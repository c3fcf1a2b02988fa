"""Launchers and agents of different versions of the protocol: the call is run once, by the executable."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cnvnet.launch import protocol
from tests.functional.agent.launcher_calls import AUTO, CONFIG, launcher
from tests.functional.agent.own_agent import RunningAgent, running_agent
from tests.functional.agent.test_calls import ran
from tests.harness import Node, Outcome, Sandbox, installed

pytestmark = pytest.mark.alone

LAUNCHER = Path(__file__).parents[3] / "launcher"
OTHERS = (protocol.VERSION - 1, protocol.VERSION + 1)
# `within` of a program of ours: the same one, of another version.
CHANGED = """
import runpy, sys
from cnvnet.launch import protocol
protocol.VERSION = {version}
if {is_agent}:
    from cnvnet.agent import server
    server.VERSION = {version}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
IPAM: dict[str, Any] = {"type": "static-ip", "subnet": "10.1.0.0/16"}


def changed(version: int, *, is_agent: bool) -> tuple[str, ...]:
    python = Path(installed("cnv-bridge")).parent / Path(sys.executable).name
    return str(python), "-c", CHANGED.format(version=version, is_agent=is_agent)


class OtherAgent(RunningAgent):
    """It is asked in its own version by a caller that knows that version."""

    version = protocol.VERSION

    def ask(self, **request: Any) -> Any:
        return super().ask(**{"v": self.version, **request})


@contextmanager
def agent_of(version: int, node: Node) -> Generator[OtherAgent]:
    agent = OtherAgent(node, within=changed(version, is_agent=True))
    agent.version = version
    try:
        agent.start()
        yield agent
    finally:
        agent.end()


def turned_away(agent: RunningAgent) -> float:
    """How many calls it has left to their launchers, which answer VERSION themselves in any case."""
    return agent.metrics()['cnvnet_agent_requests_total{code="501",kind="unknown"}']


class Launcher:
    """The executables of a node by one kind of launcher, of this or another version."""

    def __init__(self, folder: Path, kind: str, version: int) -> None:
        self._within: tuple[str, ...] = ()
        if version == protocol.VERSION:
            self._programs = Path(launcher(kind)).parent
        elif kind == "c":
            self._programs = folder / "bin"
            (self._programs / "cnvnet").mkdir(parents=True)
            (self._programs / "cnvnet/bin").symlink_to(Path(installed("cnv-bridge")).parent)
            made = self._programs / "cnv-bridge"
            define = f"DEFINES=-DVERSION='\"{version}\"'"
            subprocess.run(["make", "-s", "-C", LAUNCHER, f"OUT={made}", define, str(made)], check=True)
            (self._programs / "static-ip").hardlink_to(made)
        else:
            self._programs = Path(installed("cnv-bridge")).parent
            self._within = changed(version, is_agent=False)

    def call(self, node: Node, name: str, command: str, pod: Sandbox, **keys: Any) -> Outcome:
        return calls(node, str(self._programs / name), command, pod, keys, AUTO, self._within)


def calls(
    node: Node,
    path: str,
    command: str,
    pod: Sandbox,
    keys: Mapping[str, Any],
    env: Mapping[str, str],
    within: tuple[str, ...] = (),
) -> Outcome:
    config = {**CONFIG, **keys}
    return node.cni(path, command, config, pod, cni_path="/nowhere", env=env, within=within)


def assert_it_runs_alone(node: Node, of: Launcher, folder: Path) -> None:
    """Byte for byte as without an agent, where nothing is left to chance; and a port comes and goes."""
    pod = node.pod()
    for name, command, keys in (
        ("cnv-bridge", "VERSION", {}),
        ("cnv-bridge", "ADD", {"vlan": 5000}),
        ("cnv-bridge", "STATUS", {"cniVersion": "1.1.0"}),
        ("static-ip", "ADD", {"ipam": IPAM}),
        ("static-ip", "CHECK", {"ipam": IPAM}),
        ("static-ip", "DEL", {"ipam": IPAM}),
    ):
        theirs, ours = (
            {**keys, "ipam": {**IPAM, "dataDir": str(folder / place)}} if "ipam" in keys else keys
            for place in ("through", "alone")
        )
        through = of.call(node, name, command, pod, **theirs)
        assert through == calls(node, installed(name), command, pod, ours, {"CNVNET_AGENT": "off"})
    result = of.call(node, "cnv-bridge", "ADD", pod, ipam=IPAM).ok()
    assert pod.addresses("eth0") == [result["ips"][0]["address"]]
    of.call(node, "cnv-bridge", "DEL", pod, ipam=IPAM).ok()
    assert set(pod.links()) == {"lo"}


@pytest.mark.parametrize("version", OTHERS, ids=["older", "newer"])
@pytest.mark.parametrize("kind", ["c", "python"])
def test_a_launcher_of_another_version_runs_its_calls_itself(
    node: Node, tmp_path: Path, kind: str, version: int
) -> None:
    with running_agent(node) as agent:
        assert_it_runs_alone(node, Launcher(tmp_path, kind, version), tmp_path)
        assert ran(agent) == 0
        assert turned_away(agent) == 7


@pytest.mark.parametrize("version", OTHERS, ids=["older", "newer"])
@pytest.mark.parametrize("kind", ["c", "python"])
def test_an_agent_of_another_version_leaves_calls_to_their_launchers(
    node: Node, tmp_path: Path, kind: str, version: int
) -> None:
    with agent_of(version, node) as agent:
        assert_it_runs_alone(node, Launcher(tmp_path, kind, protocol.VERSION), tmp_path)
        assert ran(agent) == 0
        assert turned_away(agent) == 7
        # Among themselves they understand each other.
        again = Launcher(tmp_path, kind, version)
        again.call(node, "cnv-bridge", "STATUS", node.pod(), cniVersion="1.1.0").ok()
        assert ran(agent) == 1
