"""The Kubernetes API is away for long: that is no fault of the node, and nothing on it ends or is restarted.

CNV_API_AWAY=600 keeps it away for ten minutes; else it is ten seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.functional.agent.cluster_node import IPAM, NETWORK, ClusterNode, cluster_node
from tests.functional.agent.launcher_calls import cni
from tests.functional.agent.own_agent import RunningAgent, eventually
from tests.functional.masquerade.masquerade_pod import Lab
from tests.harness import Node, Sandbox, installed

pytestmark = pytest.mark.alone

AWAY = float(os.environ.get("CNV_API_AWAY", "10"))
WELL = 200, "ok\n"
GUEST: dict[str, Any] = {"guestServices": {"hostname": "vm1", "nameservers": ["10.96.0.10"]}}
# Says which event of its lease it was, and changes nothing: the guest's addresses belong to the lab.
SCRIPT = '#!/bin/sh\necho "$1"\n'


class DhcpClient:
    """A client that keeps its lease, and renews it at `renew`."""

    def __init__(self, process: subprocess.Popen[str], output: Path) -> None:
        self._process = process
        self._output = output

    def count(self, event: str) -> int:
        return self._output.read_text().splitlines().count(event)

    def renew(self) -> None:
        before = self.count("renew")
        self._process.send_signal(signal.SIGUSR1)
        assert eventually(lambda: self.count("renew") > before), self._output.read_text()


@contextmanager
def dhcp_client(guest: Sandbox, folder: Path) -> Generator[DhcpClient]:
    script, output = folder / "udhcpc-script", folder / "udhcpc-output"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    command = ["busybox", "udhcpc", "-f", "-T", "1", "-t", "60", "-i", "eth0", "-s", str(script)]
    with output.open("w") as file:
        process = guest.popen(*command, stdout=file, stderr=subprocess.STDOUT)
    client = DhcpClient(process, output)
    try:
        assert eventually(lambda: client.count("bound")), output.read_text()
        yield client
    finally:
        process.kill()
        process.wait()


@contextmanager
def running_controller(cluster: ClusterNode, log: Path) -> Generator[subprocess.Popen[str]]:
    command = [installed("cnvnet-controller"), "--kubeconfig", str(cluster.kubeconfig)]
    with log.open("w") as file:
        process = cluster.node.popen(*command, "--listen", "127.0.0.1:9441", stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def status(node: Node, config: dict[str, Any]) -> None:
    """STATUS, as containerd asks it every five seconds."""
    begun = time.monotonic()
    cni(node, "STATUS", "", config=config).ok()
    assert time.monotonic() - begun < 5


def ready(agent: RunningAgent, port: int) -> bool:
    return agent.http("/readyz", port) == WELL


def test_an_absent_api_is_no_fault_of_the_node(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    with (
        cluster_node(lab.node, tmp_path / "cluster") as cluster,
        cluster.running_agent() as agent,
        running_controller(cluster, tmp_path / "controller.log") as controller,
    ):
        pod = lab.pod()
        pod.cni("ADD", **GUEST).ok()
        lab.plug(pod)
        attached = cluster.attach(cluster.launchers.start("vm-a"))
        assert eventually(lambda: ready(agent, 9440) and ready(agent, 9441))
        created = 'code="201",resource="ipreservations",verb="create"'
        assert agent.metrics()[f"cnvnet_kubernetes_api_requests_total{{{created}}}"] >= 1
        with dhcp_client(lab.guest, tmp_path) as client:
            cluster.server.stop()
            for port in (9440, 9441):
                assert eventually(lambda: "connection refused" in agent.http("/readyz", port)[1])  # noqa: B023
                assert agent.http("/readyz", port)[0] == 503
            end = time.monotonic() + AWAY
            while time.monotonic() < end:
                status(lab.node, {**NETWORK, "ipam": IPAM})
                status(lab.node, {"cniVersion": "1.1.0", "type": "masquerade", "name": "masq", **GUEST})
                client.renew()
                assert [agent.http("/healthz", port) for port in (9440, 9441)] == [WELL, WELL]
                time.sleep(1)
            cluster.start_server()
            assert eventually(lambda: ready(agent, 9440) and ready(agent, 9441), seconds=90)
            client.renew()
        assert (agent.process.poll(), controller.poll()) == (None, None)
        cluster.call("DEL", attached).ok()
        pod.cni("DEL", **GUEST).ok()
        assert cluster.holds() == {}


def test_status_is_about_what_the_node_lacks(node: Node, tmp_path: Path) -> None:
    config = {**NETWORK, "ipam": IPAM}
    # The harness starts no agent here: the executable itself, without credentials.
    missing = cni(node, "STATUS", "", config=config, env={"CNVNET_AGENT": "off"}).error()
    assert (missing["code"], "no credentials for the Kubernetes API" in missing["msg"]) == (50, True)
    with cluster_node(node, tmp_path) as cluster, cluster.running_agent():
        cluster.server.stop()
        status(node, config)
        node.statedir.mkdir(exist_ok=True)
        (node.statedir / "kubernetes").write_text("a file where a folder has to be")
        unwritable = cni(node, "STATUS", "", config=config).error()
        assert (unwritable["code"], str(node.statedir) in unwritable["msg"]) == (50, True)
        assert "cannot be written" in unwritable["msg"]
