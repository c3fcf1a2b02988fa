"""The test bed leaves nothing behind, however it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.machine import eventually
from tests.e2e.testbed import require_programs

ROOT = Path(__file__).resolve().parents[2]
# Says what there is outside of the test's own process, and goes on until its standard input ends.
SCRIPT = """
import json, sys
from pathlib import Path
from tests.e2e.testbed import running_testbed

with running_testbed(Path(sys.argv[1])) as testbed:
    (node,) = testbed.nodes
    testbed.create_pod("pod", node, {})
    testbed.wait_until_running("pod")
    machines = [testbed.control_plane.machine, node.machine]
    print(json.dumps({
        "processes": [pid for machine in machines for pid in machine.processes()],
        "programs": [name for machine in machines for name in machine.programs()],
        "cgroups": node.machine.cgroups(),
    }), flush=True)
    sys.stdin.read()
"""
SETTINGS = ("kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory")


def settings() -> list[str]:
    return [Path("/proc/sys", name).read_text() for name in SETTINGS]


def mounts() -> set[str]:
    return set(Path("/proc/self/mountinfo").read_text().splitlines())


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
def test_nothing_is_left_of_a_cluster(tmp_path: Path, *, killed: bool) -> None:
    require_programs()  # the child's skip would be a failure here
    before = (settings(), mounts())
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        started: dict[str, Any] = json.loads(running.stdout.readline())
        # The sandbox and the container are among them.
        assert started["programs"].count("busybox") == 2
        assert {"etcd", "kube-apiserver", "containerd", "kubelet"} <= set(started["programs"])
        assert started["cgroups"]
        assert (settings(), mounts()) == before
        if killed:
            running.kill()
        else:
            running.stdin.close()
    eventually(lambda: not list(living(started)), "all processes and cgroups are gone")
    assert (settings(), mounts()) == before


def living(started: dict[str, Any]) -> list[str]:
    processes = (f"/proc/{pid}" for pid in started["processes"])
    return [path for path in (*processes, *started["cgroups"]) if os.path.exists(path)]
