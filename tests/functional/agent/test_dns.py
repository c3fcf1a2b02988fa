"""What a guest is given for DNS where its network says nothing: its pod's resolv.conf, once it has one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cnvnet.agent.guests import pod_dns
from cnvnet.kernel import regular_file
from tests.functional.agent.own_agent import eventually, running_agent
from tests.functional.agent.udhcpc import lease
from tests.functional.masquerade.masquerade_pod import Lab
from tests.harness import Sandbox

pytestmark = pytest.mark.alone

# A container's process: a mount namespace of its own, with a file in the place of resolv.conf.
CONTAINER = 'mount --make-rprivate /; mount --bind "$1" /etc/resolv.conf; echo; exec cat'


@contextmanager
def container(pod: Sandbox, content: str, folder: Path) -> Generator[int]:
    """The id of a process in the pod that has this resolv.conf."""
    conf = folder / "resolv.conf"
    conf.write_text(content)
    command = ["unshare", "--mount", "sh", "-ec", CONTAINER, "sh", str(conf)]
    with pod.popen(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


POD = "search ns.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"


def test_a_pods_resolv_conf_reaches_the_guest_as_soon_as_it_has_one(lab: Lab, tmp_path: Path) -> None:
    with running_agent(lab.node) as agent:
        pod = lab.pod()
        pod.cni("ADD", guestServices={}).ok()
        lab.plug(pod)
        # Only the node's own processes are in the pod: it has no resolv.conf, whatever the node has.
        first = lease(lab.guest, tmp_path)
        assert "dns" not in first
        assert "search" not in first
        with container(pod, POD, tmp_path):
            given = eventually(lambda: found if "dns" in (found := lease(lab.guest, tmp_path)) else None)
            assert given["dns"] == "10.96.0.10"
            assert given["search"] == "ns.svc.cluster.local svc.cluster.local"
            # The next agent knows it before it answers a guest.
            agent.kill()
            agent.start()
            assert lease(lab.guest, tmp_path)["dns"] == "10.96.0.10"


def test_what_was_said_counts_and_the_rest_is_the_pods(lab: Lab, tmp_path: Path) -> None:
    with running_agent(lab.node):
        pod = lab.pod()
        with container(pod, POD, tmp_path):
            pod.cni("ADD", guestServices={"nameservers": ["192.0.2.1"]}).ok()
            lab.plug(pod)
            given = eventually(lambda: found if "search" in (found := lease(lab.guest, tmp_path)) else None)
            assert given["dns"] == "192.0.2.1"
            assert given["search"] == "ns.svc.cluster.local svc.cluster.local"


def test_a_process_is_looked_at_by_its_own_root(lab: Lab, tmp_path: Path) -> None:
    pod = lab.pod()
    inode = os.stat(pod.netns).st_ino
    assert pod_dns.look([inode]) == {}
    with container(pod, POD, tmp_path):
        conf = pod_dns.look([inode, 1])[inode]
        assert [str(server) for server in conf.nameservers] == ["10.96.0.10"]


def a_root(folder: Path) -> Path:
    (folder / "etc").mkdir(parents=True)
    return folder / "etc/resolv.conf"


def test_a_strange_resolv_conf_is_none(tmp_path: Path) -> None:
    a_root(tmp_path / "good").write_text("nameserver 10.0.0.1\n")
    assert pod_dns.read(str(tmp_path / "good")) == "nameserver 10.0.0.1\n"
    a_root(tmp_path / "fifo").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "fifo/etc/resolv.conf")
    a_root(tmp_path / "device")
    os.mknod(tmp_path / "device/etc/resolv.conf", 0o020600, os.makedev(1, 5))
    a_root(tmp_path / "link").symlink_to(tmp_path / "good/etc/resolv.conf")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/etc").symlink_to(tmp_path / "good/etc")
    a_root(tmp_path / "folder").mkdir()
    a_root(tmp_path / "long").write_text("#" * (regular_file.LIMIT + 1))
    a_root(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    for name in ("fifo", "device", "link", "linked", "folder", "long", "absent", "empty", "nothing"):
        assert pod_dns.read(str(tmp_path / name)) is None, name


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00nonsense", b"nameserver\n" * 100])
def test_a_file_without_sense_says_nothing(tmp_path: Path, content: bytes) -> None:
    a_root(tmp_path / "root").write_bytes(content)
    assert pod_dns.read(str(tmp_path / "root")) is not None
