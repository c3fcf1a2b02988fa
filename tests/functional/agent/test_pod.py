"""What an agent does at its start that runs in a pod, tried without one: test_daemonset.py has the pods."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.functional.agent.launcher_calls import Ipam, cni
from tests.functional.agent.own_agent import (
    RunningAgent,
    capabilities_of_the_unit,
    children,
    eventually,
    running_agent,
    within_capabilities,
)
from tests.functional.agent.test_container import chrooted
from tests.functional.agent.test_dns import POD, container
from tests.functional.agent.udhcpc import lease
from tests.functional.masquerade.masquerade_pod import Lab
from tests.harness import Node, Sandbox, executable

pytestmark = pytest.mark.alone

# As a container has it that is not privileged; becomes its arguments.
READ_ONLY = (
    *("unshare", "--mount", "sh", "-euc"),
    'mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec "$@"',
    "sh",
)
CONFIG = {"type": "masquerade", "name": "masq"}
DAEMON_SET = Path(__file__).parents[3] / "conf/kustomize/base/system/daemonset.yaml"


def messages(agent: RunningAgent) -> list[str]:
    return [event["msg"] for event in agent.events()]


def test_sysctls_of_a_container_become_writable(lab: Lab) -> None:
    pod = lab.pod()
    with running_agent(lab.node, within=READ_ONLY) as agent:
        assert "/proc/sys was read-only and is mounted writable" in messages(agent)
        cni(lab.node, "ADD", pod, config=CONFIG, ifname="net1").ok()
        cni(lab.node, "DEL", pod, config=CONFIG, ifname="net1").ok()


def test_on_a_node_nothing_is_mounted(node: Node) -> None:
    with running_agent(node) as agent:
        assert not any("/proc/sys" in message for message in messages(agent))


def test_without_the_capability_it_is_said(lab: Lab) -> None:
    """The agent runs, for other calls need no sysctl."""
    within = (*READ_ONLY, "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    with running_agent(lab.node, within=within) as agent:
        (said,) = (message for message in messages(agent) if "/proc/sys" in message)
        assert said.startswith("/proc/sys is read-only: vm-bridge and masquerade cannot set sysctls (")


def test_one_that_waits_for_another_ends_when_asked(node: Node) -> None:
    with running_agent(node):
        command = [executable("cnvnet-agent"), "--rundir", str(node.rundir), "--metrics-address", "off"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
            assert waiting.stderr is not None
            assert not eventually(lambda: waiting.poll() is not None, seconds=1.5)
            waiting.send_signal(signal.SIGTERM)
            assert waiting.wait(10) == 0


# ---- what each capability of the DaemonSet is for: what fails without it ----


def capabilities() -> list[str]:
    (container,) = yaml.safe_load(DAEMON_SET.read_text())["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container["securityContext"]["capabilities"]
    assert found["drop"] == ["ALL"]
    return [name.lower() for name in found["add"]]


def without(name: str) -> tuple[str, ...]:
    """A command that runs the agent with the DaemonSet's capabilities but this one."""
    left = capabilities()
    left.remove(name)
    return within_capabilities(left)


def test_they_are_those_of_the_systemd_unit() -> None:
    """With which test_unit.py shows that nothing is in the way of any call."""
    assert set(capabilities()) == set(capabilities_of_the_unit())


def test_without_net_admin_there_are_no_guards(node: Node) -> None:
    pod = node.pod()
    with running_agent(node, within=without("net_admin")):
        error = cni(node, "ADD", pod, config={"macspoofchk": True}).error()
    assert (error["code"], "not permitted" in error["msg"]) == (5, True), error


def test_without_sys_admin_no_pods_namespace_is_entered(lab: Lab) -> None:
    pod = lab.pod()
    with running_agent(lab.node, within=without("sys_admin")):
        error = cni(lab.node, "ADD", pod, config=CONFIG, ifname="net1").error()
    assert (error["code"], "setns: operation not permitted" in error["msg"]) == (5, True), error


def test_without_net_raw_no_guest_is_served(lab: Lab) -> None:
    pod = lab.pod()
    with running_agent(lab.node, within=without("net_raw")):
        error = cni(lab.node, "ADD", pod, config={**CONFIG, "guestServices": {}}, ifname="net1").error()
    assert (error["code"], "not permitted" in error["msg"].lower()) == (50, True), error


def test_without_sys_chroot_no_address_manager_is_run_below_multus_root(node: Node, tmp_path: Path) -> None:
    pod, ipam = node.pod(), Ipam(tmp_path)
    within = chrooted(node, ipam.folder)
    with running_agent(node, within=without("sys_chroot")):
        error = cni(node, "ADD", pod, config=ipam.keys, cni_path="/mnt", within=within).error()
    assert "not permitted" in error["msg"].lower(), error
    assert ipam.calls() == []


@contextmanager
def named(pod: Sandbox, folder: Path) -> Generator[str]:
    """The path of a namespace that leads through no process, as runtimes have it."""
    path = folder / "netns"
    path.touch()
    subprocess.run(["mount", "--bind", pod.netns, path], check=True)
    try:
        yield str(path)
    finally:
        subprocess.run(["umount", path], check=True)


@contextmanager
def agent_within(node: Node, *within: str) -> Generator[RunningAgent]:
    """An agent that a command runs as its child, as unshare does with a namespace of processes."""
    agent = RunningAgent(node, within=within)
    try:
        agent.start()
        yield agent
    finally:
        # unshare is deaf to SIGTERM as long as its child lives.
        for child in children(agent.pid):
            os.kill(child, signal.SIGTERM)
        agent.end()


# As a pod has it that does not ask for the node's processes.
WITHOUT_HOST_PID = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.mark.parametrize("name", ["", "sys_ptrace", "dac_read_search", "hostPID"])
def test_a_pods_resolv_conf_is_read_with_two_of_them(lab: Lab, tmp_path: Path, name: str) -> None:
    if name == "hostPID":
        within = (*WITHOUT_HOST_PID, *within_capabilities(capabilities()))
    else:
        within = without(name) if name else within_capabilities(capabilities())
    pod = lab.pod()
    with named(pod, tmp_path) as netns, agent_within(lab.node, *within):
        cni(lab.node, "ADD", netns, config={**CONFIG, "guestServices": {}}, ifname="net1").ok()
        lab.plug(pod)
        with container(pod, POD, tmp_path):
            # The file of a pod that does not run as root, and keeps it to itself.
            os.chown(tmp_path / "resolv.conf", 107, 107)
            os.chmod(tmp_path / "resolv.conf", 0o600)
            seconds = 3 if name else 30
            given = eventually(lambda: "dns" in lease(lab.guest, tmp_path), seconds=seconds)
        cni(lab.node, "DEL", netns, config=CONFIG, ifname="net1").ok()
    assert given == (not name)
