"""An agent that sees nothing of the node, and callers that have a root and mounts of their own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.functional.agent.launcher_calls import CONFIG, Ipam, cni
from tests.functional.agent.own_agent import RunningAgent, children, eventually, running_agent
from tests.functional.agent.test_calls import L3, nothing_is_left, ran
from tests.functional.masquerade.masquerade_pod import Lab
from tests.harness import Node, installed

pytestmark = pytest.mark.alone

CHECKOUT = Path(__file__).resolve().parents[3]
# Becomes its last arguments in a root of tmpfs that has the programs and two folders of the node.
CONTAINER = """
set -e
root=$1 rundir=$2 statedir=$3 programs=$4; shift 4
mount -t tmpfs none "$root"
for folder in /usr /etc /dev /sys $programs; do
    mkdir -p "$root$folder"; mount --rbind "$folder" "$root$folder"
done
for folder in /bin /sbin /lib /lib64; do
    if [ -L $folder ]; then cp -P $folder "$root$folder"
    elif [ -d $folder ]; then mkdir "$root$folder"; mount --rbind $folder "$root$folder"; fi
done
mkdir -p "$root/proc" "$root/tmp" "$root/run/cnvnet" "$root$statedir"
mount -t proc none "$root/proc"
mount --bind "$rundir" "$root/run/cnvnet"
mount --bind "$statedir" "$root$statedir"
exec chroot "$root" "$@"
"""


@contextmanager
def contained_agent(node: Node) -> Generator[RunningAgent]:
    """The agent as a container: of the node it has the network, the records (elsewhere) and the leases."""
    root = node.folder / "root"
    for folder in (root, node.rundir, node.statedir):
        folder.mkdir()
    programs = f"{CHECKOUT} {sys.base_prefix} {Path(installed('cnvnet-agent')).parent.parent}"
    within = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", CONTAINER, "sh")
    folders = (str(root), str(node.rundir), str(node.statedir), programs)
    options = ("--rundir", "/run/cnvnet", "--log-level", "debug")
    agent = RunningAgent(node, *options, within=(*within, *folders))
    try:
        agent.start()
        yield agent
    finally:
        # unshare is deaf to SIGTERM as long as its child lives.
        for child in children(agent.pid):
            os.kill(child, signal.SIGTERM)
        agent.end()
        root.rmdir()


def test_it_needs_nothing_but_what_the_launcher_hands_it(node: Node) -> None:
    pod = node.pod()
    with contained_agent(node) as agent:
        result = cni(node, "ADD", pod, config=L3).ok()
        assert result["interfaces"][2]["sandbox"] == pod.netns
        assert pod.addresses("eth0") == [result["ips"][0]["address"]]
        added = {**L3, "prevResult": result}
        cni(node, "CHECK", pod, config=added).ok()
        assert cni(node, "ADD", node.netns, config=L3).error()["code"] == 8
        cni(node, "DEL", pod, config=added).ok()
        assert eventually(lambda: nothing_is_left(node, pod))
        assert ran(agent) == 4
        # The same names mean the same things to those who run alone.
        again = node.cni(installed("cnv-bridge"), "ADD", {**CONFIG, **L3}, pod).ok()
        assert again["ips"] == result["ips"]
        cni(node, "DEL", pod, config=L3).ok()
        assert eventually(lambda: nothing_is_left(node, pod))


def test_a_foreign_address_manager_sees_what_its_caller_sees(node: Node, tmp_path: Path) -> None:
    pod = node.pod()
    ipam = Ipam(tmp_path)
    with contained_agent(node) as agent:
        result = cni(node, "ADD", pod, config=ipam.keys, cni_path=str(ipam.folder)).ok()
        assert result["ips"][0]["address"] == "10.9.0.2/16"
        cni(node, "DEL", pod, config=ipam.keys, cni_path=str(ipam.folder)).ok()
        assert ipam.calls() == [
            f"{word} dummy-0 {end}" for word in ("ADD", "DEL") for end in ("begin", "end")
        ]
        missing = cni(node, "ADD", pod, config=ipam.keys, cni_path="/nowhere").error()
        assert "failed to find plugin" in missing["msg"]
        assert eventually(lambda: nothing_is_left(node, pod))
        assert ran(agent) == 3


def test_a_foreign_address_manager_inherits_its_pipes_only(node: Node, tmp_path: Path) -> None:
    pod, listed = node.pod(), tmp_path / "listed"
    ipam = Ipam(tmp_path)
    program = ipam.folder / ipam.name
    program.write_text(
        program.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\nls /proc/self/fd >{listed}\n")
    )
    with contained_agent(node):
        cni(node, "ADD", pod, config=ipam.keys, cni_path=str(ipam.folder)).ok()
        # And the folder that is listed.
        assert listed.read_text().split() == ["0", "1", "2", "3"]
        cni(node, "DEL", pod, config=ipam.keys, cni_path=str(ipam.folder)).ok()


def test_a_namespace_that_only_the_record_knows_is_found(lab: Lab) -> None:
    pod = lab.pod()
    with contained_agent(lab.node) as agent:
        config = {"type": "masquerade", "name": "masq"}
        cni(lab.node, "ADD", pod, config=config, ifname="net1").ok()
        assert "tap" in str(sorted(pod.links()))
        cni(lab.node, "DEL", "", config=config, ifname="net1").ok()
        assert set(pod.links()) == {"lo", "eth0"}
        assert ran(agent) == 2


def test_an_agent_that_cannot_see_a_guests_namespace_says_what_it_needs(lab: Lab) -> None:
    pod = lab.pod()
    config = {"type": "masquerade", "name": "masq"}
    with contained_agent(lab.node):
        needed: dict[str, Any] = {**config, "guestServices": {}}
        error = cni(lab.node, "ADD", pod, config=needed, ifname="net1").error()
        assert (error["code"], "needs the node's /proc and /run/netns" in error["msg"]) == (50, True)
        assert set(pod.links()) == {"lo", "eth0"}
        # Where the guest need not be served it is a line of the call's.
        added = cni(lab.node, "ADD", pod, config=config, ifname="net1")
        assert added.code == 0
        assert "needs the node's /proc and /run/netns" in added.stderr
        cni(lab.node, "DEL", pod, config=config, ifname="net1").ok()


def test_addresses_of_live_holders_are_not_taken_for_those_of_dead_ones(node: Node) -> None:
    pods = [node.pod() for _ in range(3)]
    keys = {"ipam": {"type": "static-ip", "subnet": "10.1.0.0/29", "rangeStart": "10.1.0.4"}}
    with contained_agent(node):
        given = [
            cni(node, "ADD", pod, config=keys, container_id=f"c{number}").ok()["ips"][0]["address"]
            for number, pod in enumerate(pods)
        ]
        assert len(set(given)) == 3
        fourth = node.pod()
        assert cni(node, "ADD", fourth, config=keys, container_id="c3").error()["code"] == 11
        for number, pod in enumerate(pods):
            cni(node, "DEL", pod, config=keys, container_id=f"c{number}").ok()


# A root that is no mount namespace's own, with a folder that is nowhere else; becomes its last arguments.
CHROOT = """
set -e
root=$1 folder=$2 hidden=$3; shift 3
mount --rbind / "$root"
mount --bind "$folder" "$root/mnt"
[ -z "$hidden" ] || mount -t tmpfs none "$root$hidden"
exec chroot "$root" "$@"
"""


def chrooted(node: Node, folder: Path, hidden: str = "") -> tuple[str, ...]:
    root = node.folder / "hostroot"
    root.mkdir(exist_ok=True)
    return ("unshare", "--mount", "sh", "-c", CHROOT, "sh", str(root), str(folder), hidden)


@pytest.mark.parametrize("kind", ["c", "python"])
def test_a_caller_in_a_chroot(node: Node, tmp_path: Path, kind: str) -> None:
    pod = node.pod()
    ipam = Ipam(tmp_path)
    (ipam.folder / "resolv.conf").write_text("nameserver 192.0.2.7\n")
    within = chrooted(node, ipam.folder)
    with running_agent(node) as agent:
        cni(node, "ADD", pod, kind, config=ipam.keys, cni_path="/mnt", within=within).ok()
        cni(node, "DEL", pod, kind, config=ipam.keys, cni_path="/mnt", within=within).ok()
        assert len(ipam.calls()) == 4
        own = {"ipam": {"type": "static-ip", "subnet": "10.1.0.0/24", "resolvConf": "/mnt/resolv.conf"}}
        result = cni(node, "ADD", pod, kind, config=own, within=within).ok()
        assert result["dns"]["nameservers"] == ["192.0.2.7"]
        cni(node, "DEL", pod, kind, config=own, within=within).ok()
        assert eventually(lambda: nothing_is_left(node, pod))
        assert ran(agent) == 4


def test_a_caller_with_other_leases_runs_its_call_itself(node: Node, tmp_path: Path) -> None:
    pod = node.pod()
    node.statedir.mkdir()
    within = chrooted(node, tmp_path, hidden=str(node.statedir))
    with running_agent(node) as agent:
        cni(node, "ADD", pod, config=L3, within=within).ok()
        assert list(node.statedir.iterdir()) == []
        cni(node, "DEL", pod, config=L3, within=within).ok()
        assert ran(agent) == 0
        events = [event for event in agent.events() if "other leases" in event["msg"]]
        assert [event["folder"] for event in events] == [str(node.statedir)] * 2
        # Where there are no leases it does not matter.
        cni(node, "ADD", pod, within=within).ok()
        cni(node, "DEL", pod, within=within).ok()
        assert ran(agent) == 2
