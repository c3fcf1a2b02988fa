"""The plugin in a process that stays: the same calls, in threads, with what is kept between them."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cnvnet.kernel.links import RETIRED_GROUP
from tests.functional.bridge.bridge_network import ruleset
from tests.harness import Node, Sandbox

pytestmark = pytest.mark.alone

CHECKOUT = Path(__file__).parents[3]
THREADS = 16


def resident(
    node: Node, pods: Sequence[Sandbox], *, rounds: int = 1, killed: bool = False, **keys: Any
) -> list[str]:
    """One process, which attaches every pod in every round; the addresses that were given."""
    config = {"cniVersion": "1.1.0", "name": "testConfig", "type": "cnv-bridge", "bridge": "bridge0", **keys}
    calls = [
        {
            "config": config,
            "env": node.environment(
                CNI_CONTAINERID=f"vm-{number}", CNI_NETNS=pod.netns, CNI_IFNAME="eth0", CNI_PATH="/nowhere"
            ),
        }
        for number, pod in enumerate(pods)
    ]
    asked = {"threads": THREADS, "rounds": rounds, "killed": killed, "calls": calls}
    command = [sys.executable, "-m", "tests.functional.bridge.resident_calls"]
    done = subprocess.run(
        ["nsenter", f"--net={node.netns}", *command],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        cwd=CHECKOUT,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL if killed else 0, "")
    report = json.loads(done.stdout)
    assert report["problems"] == []
    addresses: list[str] = report["addresses"]
    return addresses


def links(node: Sandbox) -> list[str]:
    return sorted(node.links())


@pytest.fixture
def pods(node: Node) -> list[Sandbox]:
    return [node.pod() for _ in range(THREADS)]


def test_sixteen_threads_leave_nothing_and_never_meet(node: Node, pods: list[Sandbox]) -> None:
    ipam = {"type": "static-ip", "subnet": "10.1.0.0/16"}
    keys: dict[str, Any] = {"isGateway": True, "macspoofchk": True, "ipMasq": True, "ipam": ipam}
    addresses = resident(node, pods, rounds=4, **keys)
    assert len(addresses) == 4 * THREADS
    assert links(node) == ["bridge0", "lo"]
    assert [links(pod) for pod in pods] == [["lo"]] * THREADS
    assert list((node.rundir / "attachments").iterdir()) == []
    assert "veth" not in ruleset(node)
    with sqlite3.connect(node.statedir / "leases.db") as database:
        assert database.execute("SELECT count(*) FROM holders").fetchone() == (0,)


def test_one_name_again_and_again(node: Node, pods: list[Sandbox]) -> None:
    assert resident(node, pods[:1], rounds=50) == []
    assert links(node) == ["bridge0", "lo"]
    assert links(pods[0]) == ["lo"]


def test_what_a_killed_one_has_retired_goes_with_the_next(node: Node, pods: list[Sandbox]) -> None:
    resident(node, pods, killed=True)
    left = [item for item in node.links().values() if item["group"] == str(RETIRED_GROUP)]
    assert [(item["operstate"], "master" in item) for item in left] == [("DOWN", False)] * THREADS
    resident(node, [])
    assert links(node) == ["bridge0", "lo"]
    assert [links(pod) for pod in pods] == [["lo"]] * THREADS


def test_an_executable_works_beside_it(node: Node, pods: list[Sandbox]) -> None:
    resident(node, pods[:4], killed=True, macspoofchk=True)
    config = {"cniVersion": "1.1.0", "name": "testConfig", "type": "cnv-bridge", "bridge": "bridge0"}
    for number, pod in enumerate(pods[:4]):
        name = f"vm-{number}"
        result = node.cni("cnv-bridge", "ADD", config, pod, container_id=name).ok()
        added = {**config, "prevResult": result}
        node.cni("cnv-bridge", "CHECK", added, pod, container_id=name).ok()
        node.cni("cnv-bridge", "DEL", added, pod, container_id=name).ok()
    ports = {item["group"] for name, item in node.links().items() if name.startswith("veth")}
    assert ports == {str(RETIRED_GROUP)}
