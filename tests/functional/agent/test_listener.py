"""The agent's socket: all callers reach the one agent there is, whatever happens to the socket."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.functional.agent.own_agent import PATIENCE, ask, eventually, running_agent
from tests.functional.agent.udhcpc import lease
from tests.functional.masquerade.masquerade_pod import V4, Lab
from tests.harness import Node, executable

pytestmark = pytest.mark.alone


def test_it_ends_when_its_folder_is_removed_and_the_next_one_works(lab: Lab, tmp_path: Path) -> None:
    with running_agent(lab.node) as agent:
        shutil.rmtree(lab.node.rundir)
        assert eventually(lambda: agent.process.poll() == 0)
        (error,) = [event for event in agent.events() if event["level"] == "error"]
        assert error["socket"] == str(agent.socket)
        agent.start()
        pod = lab.pod()
        pod.cni("ADD", guestServices={}).ok()
        lab.plug(pod)
        assert lease(lab.guest, tmp_path)["ip"] == V4.guest
        pod.cni("DEL", guestServices={}).ok()


# What systemd does for a socket unit (sd_listen_fds(3)): the path's file is replaced if there is one. Says
# that it listens, and becomes the agent on a signal.
SOCKET_UNIT = """
import os, socket, sys
path, gone = sys.argv[1], sys.argv[2] == "gone"
before = path + ".before"
if os.path.exists(path):
    os.rename(path, before)
made = socket.socket(socket.AF_UNIX)
made.bind(path)
made.listen()
if gone:
    os.unlink(path)
if os.path.exists(before):
    os.rename(before, path) if gone else os.unlink(before)
os.dup2(made.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[3], sys.argv[3:])
"""


def activated(node: Node, log: Path, *, gone: bool = False) -> subprocess.Popen[str]:
    """An agent with a socket of systemd's, where the node's plugins look for it."""
    state = "gone" if gone else "there"
    command = [sys.executable, "-c", SOCKET_UNIT, str(node.rundir / "agent.sock"), state]
    options = ["--rundir", str(node.rundir), "--metrics-address", ""]
    with log.open("w") as stderr:
        return node.popen(*command, executable("cnvnet-agent"), *options, stderr=stderr)


def test_one_that_was_there_before_gives_way_to_systemds(lab: Lab, tmp_path: Path) -> None:
    """One that an ADD has started, before the unit was enabled."""
    with running_agent(lab.node, "--idle-exit", "60", "--metrics-address", "") as before:
        pod = lab.pod()
        pod.cni("ADD", guestServices={}).ok()
        lab.plug(pod)
        after = activated(lab.node, tmp_path / "log")
        try:
            assert eventually(lambda: before.process.poll() == 0)
            assert ask(before.socket, {"v": 1, "status": True}) == {"v": 1, "ok": True}
            pod.cni("CHECK", guestServices={}).ok()
            assert lease(lab.guest, tmp_path)["ip"] == V4.guest
        finally:
            after.terminate()
            assert after.wait(PATIENCE) == 0


def test_a_socket_of_systemds_that_was_removed_is_replaced(node: Node, tmp_path: Path) -> None:
    node.rundir.mkdir()
    path = node.rundir / "agent.sock"
    for _ in range(2):
        agent = activated(node, tmp_path / "log", gone=True)
        try:
            assert eventually(lambda: is_answered(path)), (tmp_path / "log").read_text()
        finally:
            agent.kill()
            agent.wait()
        assert path.exists()  # a dead agent's, which the next one does not take for systemd's


def is_answered(path: Path) -> bool:
    try:
        return bool(ask(path, {"v": 1, "status": True}) == {"v": 1, "ok": True})
    except (ConnectionRefusedError, FileNotFoundError):
        return False


def test_an_agent_that_ends_leaves_anothers_socket_alone(node: Node) -> None:
    with running_agent(node, "--metrics-address", "") as agent, socket.socket(socket.AF_UNIX) as other:
        agent.socket.unlink()
        other.bind(str(agent.socket))
        agent.terminate()
        assert agent.socket.exists()
        agent.socket.unlink()
