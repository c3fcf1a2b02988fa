"""An agent that an ADD starts: only where it can stay, once, and without the runtime noticing."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.functional.agent.own_agent import eventually, is_there, process_of, running_agent
from tests.functional.agent.udhcpc import lease
from tests.functional.bridge.test_cnitool import Cnitool
from tests.functional.masquerade.masquerade_pod import V4, Lab, Pod
from tests.harness import Node, Outcome

pytestmark = pytest.mark.alone

CONFIG: dict[str, Any] = {"cniVersion": "1.1.0", "name": "masq", "type": "masquerade"}
REQUIRED: dict[str, Any] = {"guestServices": {}}

# A root folder that is another one than that of process 1, with everything in it.
CHROOT = """
mount --make-rprivate /
mount -t tmpfs root "$1"
set -- "$1/root" "$2"
mkdir "$1"
for each in /*; do
    case $each in
    /lost+found) continue ;;
    esac
    if [ -L "$each" ]; then cp -a "$each" "$1$each"; continue; fi
    [ -d "$each" ] || continue
    mkdir "$1$each"
    mount --rbind "$each" "$1$each"
done
exec chroot "$1" "$2"
"""

# The same by a bind mount of the node's root, as Multus' daemon has it: every inode is the node's.
BOUND = """
mount --make-rprivate /
mount --rbind / "$1"
exec chroot "$1" "$2"
"""


@contextmanager
def ended_agent(node: Node) -> Generator[None]:
    """Whatever agent there is on this node at the end has ended afterwards."""
    try:
        yield
    finally:
        try:
            pid = process_of(node.rundir / "agent.sock")
        except OSError:
            pid = 0
        if pid:
            os.kill(pid, signal.SIGTERM)
            assert eventually(lambda: not is_there(pid))


@pytest.fixture(autouse=True)
def _ends(lab: Lab) -> Iterator[None]:
    with ended_agent(lab.node):
        yield


def call(lab: Lab, pod: Pod, command: str = "ADD", **options: Any) -> Outcome:
    config = {**CONFIG, **REQUIRED}
    return lab.node.cni("masquerade", command, config, pod, ifname="net1", container_id=pod.pid, **options)


def agent_of(lab: Lab) -> int:
    return process_of(lab.node.rundir / "agent.sock")


def files_of(pid: int) -> set[str]:
    """What a process has open that has a path."""
    found: set[str] = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(entry))
    return {name for name in found if not name.startswith(("socket:", "anon_inode:", "pipe:"))}


def test_an_add_starts_one_and_cnitool_is_not_kept_waiting(lab: Lab, tmp_path: Path) -> None:
    pod = lab.pod()
    tool = Cnitool(lab.node, "masq", {"type": "masquerade", **REQUIRED})
    # cnitool ends when the plugin has and its pipes are closed; the test's own are what it inherits.
    tool.run("add", pod, CNI_IFNAME="net1").ok()
    pid = agent_of(lab)
    assert is_there(pid)
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    log = lab.node.rundir / "agent.log"
    assert log.stat().st_mode & 0o777 == 0o600
    assert '"msg": "guest served"' in log.read_text()
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert command[command.index("--idle-exit") + 1] == "60"
    lab.plug(pod)
    assert lease(lab.guest, tmp_path)["ip"] == V4.guest
    tool.run("check", pod, CNI_IFNAME="net1").ok()
    tool.run("del", pod, CNI_IFNAME="net1").ok()


def test_nothing_of_the_callers_stays_open(lab: Lab) -> None:
    script = 'exec 9</etc/hostname; exec "$0"'
    call(lab, lab.pod(), within=("sh", "-c", script)).ok()
    pid = agent_of(lab)
    log = str(lab.node.rundir / "agent.log")
    assert [os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)] == ["/dev/null", log, log]
    # What it opens for a moment, a record for example, is closed again.
    expected = {"/dev/null", log, str(lab.node.rundir / "agent.lock")}
    assert eventually(lambda: files_of(pid) == expected), files_of(pid)


def test_many_at_once_start_one(lab: Lab) -> None:
    pods = [lab.pod(up=False) for _ in range(4)]
    outcomes: list[Outcome] = []

    def add(pod: Pod) -> None:
        outcomes.append(call(lab, pod))

    threads = [threading.Thread(target=add, args=(pod,)) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.code for outcome in outcomes] == [0] * 4, outcomes
    assert (lab.node.rundir / "agent.log").read_text().count('"agent ready"') == 1


def test_one_that_was_killed_is_started_again(lab: Lab) -> None:
    first, second = lab.pod(), lab.pod(up=False)
    call(lab, first).ok()
    killed = agent_of(lab)
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: not is_there(killed))
    call(lab, second).ok()
    assert agent_of(lab) != killed
    call(lab, first, "CHECK").ok()


@contextmanager
def leaving_agent(node: Node) -> Generator[None]:
    """One that says that it is there, and is gone."""
    path = node.rundir / "agent.sock"
    node.rundir.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                path.unlink()
                content = b'{"v": 1, "ok": true}'
                connection.sendall(len(content).to_bytes(4, "big") + content)

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join()


def test_one_that_ends_while_an_add_relies_on_it_is_replaced(lab: Lab) -> None:
    pod = lab.pod()
    with leaving_agent(lab.node):
        call(lab, pod).ok()
    call(lab, pod, "CHECK").ok()
    assert is_there(agent_of(lab))


def test_one_that_ends_is_not_replaced_where_none_may_be_started(lab: Lab) -> None:
    pod = lab.pod()
    config = {**CONFIG, "guestServices": {"autostart": False}}
    with leaving_agent(lab.node):
        error = lab.node.cni("masquerade", "ADD", config, pod, ifname="net1").error()
    assert (error["code"], "autostart is false" in error["msg"]) == (50, True)
    assert list(pod.links()) == ["lo", "eth0"]


def test_status_and_check_start_none(lab: Lab) -> None:
    pod = lab.pod()
    call(lab, pod, "STATUS").ok()  # an ADD would start one
    pod.cni("ADD").ok()
    assert call(lab, pod, "CHECK").error()["code"] == 50
    assert not (lab.node.rundir / "agent.sock").exists()
    assert not (lab.node.rundir / "agent.log").exists()


@pytest.mark.parametrize("script", [CHROOT, BOUND], ids=["tmpfs", "bind"])
def test_none_is_started_inside_a_chroot(lab: Lab, tmp_path: Path, script: str) -> None:
    pod = lab.pod()
    root = tmp_path / "root"
    root.mkdir()
    within = ("unshare", "--mount", "sh", "-ec", script, "sh", str(root))
    for command in ("ADD", "STATUS"):
        error = call(lab, pod, command, within=within).error()
        assert error["code"] == 50
        assert "none is started from inside a chroot): start cnvnet-agent on this node" in error["msg"]
    assert list(pod.links()) == ["lo", "eth0"]
    # One that is there already is as good from inside.
    with running_agent(lab.node):
        call(lab, pod, within=within).ok()


def test_a_mount_namespace_of_its_own_is_no_chroot(lab: Lab) -> None:
    """That of a runtime, which systemd may give one."""
    call(lab, lab.pod(), within=("unshare", "--mount", "--propagation", "slave")).ok()
    assert is_there(agent_of(lab))


@pytest.mark.parametrize(
    ("env", "keys", "reason"),
    [
        ({}, {"autostart": False}, "autostart is false"),
        ({"CNVNET_AGENT": "/nowhere/agent.sock"}, {}, "CNVNET_AGENT names another's"),
    ],
    ids=["autostart", "CNVNET_AGENT"],
)
def test_none_is_started_where_it_is_not_wanted(
    lab: Lab, env: dict[str, str], keys: dict[str, Any], reason: str
) -> None:
    pod = lab.pod()
    config = {**CONFIG, "guestServices": keys}
    error = lab.node.cni("masquerade", "ADD", config, pod, ifname="net1", env=env).error()
    assert error["code"] == 50
    assert reason in error["msg"]


def test_one_that_cannot_start_is_an_error_that_says_where_to_look(lab: Lab) -> None:
    pod = lab.pod()
    lab.node.rundir.mkdir()
    (lab.node.rundir / "agent.sock.new").mkdir()  # where it wants to make its socket
    error = call(lab, pod).error()
    assert error["code"] == 50
    assert "one was started and ended" in error["msg"]
    assert str(lab.node.rundir / "agent.log") in error["msg"]
    assert "agent.sock" in (lab.node.rundir / "agent.log").read_text()
    assert list(pod.links()) == ["lo", "eth0"]


def test_a_fifo_in_the_place_of_its_log_keeps_no_add_waiting(lab: Lab) -> None:
    pod = lab.pod()
    lab.node.rundir.mkdir()
    os.mkfifo(lab.node.rundir / "agent.log")
    error = call(lab, pod).error()
    assert error["code"] == 50
    assert "cannot be started" in error["msg"]
    assert list(pod.links()) == ["lo", "eth0"]


def test_an_idle_one_ends_and_one_with_a_guest_does_not(lab: Lab) -> None:
    with ExitStack() as stack:
        agent = stack.enter_context(running_agent(lab.node, "--idle-exit", "2"))
        pod = lab.pod()
        call(lab, pod).ok()
        # Longer than it would wait. What is waited for is that nothing happens.
        assert not eventually(lambda: agent.process.poll() is not None, seconds=5)
        call(lab, pod, "DEL").ok()
        assert eventually(lambda: agent.process.poll() == 0)
        assert not agent.socket.exists()


def test_the_nodes_own_takes_over_from_one_on_demand(lab: Lab, tmp_path: Path) -> None:
    pod = lab.pod()
    call(lab, pod).ok()
    on_demand = agent_of(lab)
    with running_agent(lab.node) as agent:
        assert agent_of(lab) == agent.pid
        assert not is_there(on_demand)
        assert "the node's own agent takes over" in (lab.node.rundir / "agent.log").read_text()
        (waited,) = (each for each in agent.events() if each["msg"] == "waiting for another agent to end")
        assert waited["answer"] == "it ends"
        assert agent.serves() == 1
        lab.plug(pod)
        assert lease(lab.guest, tmp_path)["ip"] == V4.guest


def test_an_add_waits_for_an_agent_that_is_being_restarted(lab: Lab) -> None:
    pod = lab.pod()
    config = {**CONFIG, "guestServices": {"autostart": False}}
    with running_agent(lab.node) as agent:
        agent.kill()
        back = threading.Timer(2, agent.start)
        back.start()
        lab.node.cni("masquerade", "ADD", config, pod, ifname="net1", container_id=pod.pid).ok()
        back.join()
        assert agent.serves() == 1
