"""What an ADD works on goes while it works: the pod's namespace, the bridge. Disks are full or read-only."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import TIMES
from tests.functional.crash.node_state import attachment_state, held
from tests.harness import Node, Outcome, Sandbox

pytestmark = [pytest.mark.alone, pytest.mark.timeout(180 + 60 * TIMES)]

COUNT = 20 * TIMES
CONFIG: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "lost",
    "type": "cnv-bridge",
    "bridge": "br0",
    "macspoofchk": True,
    "ipam": {"type": "static-ip", "subnet": "10.9.0.0/24"},
}


def add(node: Node, pod: Sandbox | str, number: int = 0, **keys: Any) -> Outcome:
    return node.cni("cnv-bridge", "ADD", {**CONFIG, **keys}, pod, container_id=f"c{number}")


def delete(node: Node, pod: Sandbox | str, number: int = 0, **keys: Any) -> Outcome:
    return node.cni("cnv-bridge", "DEL", {**CONFIG, **keys}, pod, container_id=f"c{number}")


def assert_nothing_left(node: Node) -> None:
    left = attachment_state(node)
    assert (left.links, left.elements, left.files) == ((), (), ())
    assert held(node) == []


def during(action: Callable[[], object], delay: float) -> threading.Thread:
    thread = threading.Timer(delay, action)
    thread.start()
    return thread


def test_the_namespace_goes_in_the_middle(node: Node) -> None:
    codes = set[int]()
    for number in range(COUNT):
        holder = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
        path = f"/proc/{holder.pid}/ns/net"
        wait_for_namespace(holder.pid)
        # From before the executable has read anything to after its end.
        killer = during(holder.kill, 0.3 * number / COUNT)
        outcome = add(node, path, number)
        killer.join()
        holder.wait()
        codes.add(outcome.error()["code"] if outcome.code else 0)
        delete(node, path, number).ok()
        assert_nothing_left(node)
    assert codes <= {0, 5, 8, 11}, codes


def wait_for_namespace(pid: int) -> None:
    own = Path("/proc/self/ns/net").stat().st_ino
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/ns/net").stat().st_ino == own and time.monotonic() < deadline:
        time.sleep(0.005)


def test_the_bridge_goes_in_the_middle(node: Node) -> None:
    for number in range(COUNT):
        pod = node.pod()
        killer = during(lambda: node.run("ip", "link", "del", "br0", check=False), 0.3 * number / COUNT)
        outcome = add(node, pod, number)
        killer.join()
        assert outcome.code == 0 or outcome.error()["code"] in (11, 999), outcome
        delete(node, pod, number).ok()
        assert_nothing_left(node)


@contextmanager
def mounted(folder: Path) -> Generator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


@pytest.mark.parametrize("which", ["rundir", "statedir"])
@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_folder_that_cannot_be_written(node: Node, which: str, state: str) -> None:
    folder: Path = getattr(node, which)
    pod = node.pod()
    with mounted(folder):
        if state == "full":
            fill(folder)
        else:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        error = add(node, pod).error()
        assert (error["code"], str(folder) in error["msg"]) == (5, True), error
        assert node.cni("cnv-bridge", "STATUS", CONFIG).error()["code"] == 50
        deleted = delete(node, pod)
        if (which, state) == ("statedir", "full"):
            # Whether a lease is held is not known: the runtime repeats it until there is room.
            assert deleted.error()["code"] == 5
            (folder / "filler").unlink()
            deleted = delete(node, pod)
        deleted.ok()
        assert list(pod.links()) == ["lo"]
        assert [name for name in node.links() if name.startswith("veth")] == []
