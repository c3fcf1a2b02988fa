"""Guarded ports of the first version get today's, under traffic: no frame is unguarded, none is lost.

The older program is the real one: its sources come out of the repository's history.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cnvnet.plugins.cnv_bridge import guards
from tests.functional.agent.own_agent import eventually, running_agent
from tests.functional.agent.test_guards import Guarded, Traffic
from tests.functional.bridge.bridge_network import OURS, Network, ruleset
from tests.functional.datapath.frames import HONEST, LYING
from tests.harness import Node

pytestmark = pytest.mark.alone

OLDER_CHAIN = "guard_v1"
CASES = {case.name: case for case in [*HONEST, *LYING]}
# Of version 2 only.
FRAGMENT, RELAYED = CASES["ipv4-later-fragment-like-67"], CASES["dhcp-relayed"]


@pytest.fixture
def older(older_programs: Path) -> str:
    """A program that runs cnv-bridge as it was."""
    return str(older_programs / "cnv-bridge")


class Upgraded(Guarded):
    """Both ports made by the older program."""

    def __init__(self, node: Node, older: str) -> None:
        self.older = self.program = older
        super().__init__(node)
        # Where there is br_netfilter, it would gather fragments for the masquerading's sake.
        node.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0", check=False)

    def by(self, program: str) -> Network:
        return self.network.with_(type=OURS).with_program(program).with_(type=OURS)

    def is_version_2(self) -> bool:
        """By what a port may say, whatever the chain is called."""
        self._drain()
        seen = [self.passes(bytes(case.build(self.guest))) for case in (FRAGMENT, RELAYED)]
        assert seen in ([True, False], [False, True])
        return seen == [True, False]

    def _drain(self) -> None:
        """Forgets what has been heard: other traffic has left no room for more."""
        self._ear.setblocking(False)
        with suppress(BlockingIOError):
            while self._ear.recv(4000):
                pass
        self._ear.settimeout(5)

    def complaints(self, *programs: str) -> list[str]:
        outcomes = [self.by(each).check(self.pod, self.result, container_id="guest") for each in programs]
        return [outcome.stdout for outcome in outcomes if outcome.code]


@pytest.fixture
def upgraded(node: Node, older: str) -> Iterator[Upgraded]:
    made = Upgraded(node, older)
    yield made
    made.close()


def named_in(rules: str) -> set[str]:
    return {word.strip('",') for word in rules.split() if word.startswith('"veth')}


@pytest.mark.parametrize("by", ["agent", "ADD"])
def test_ports_of_the_older_version_move_over_under_traffic(upgraded: Upgraded, by: str) -> None:
    node, older = upgraded.node, upgraded.older
    assert not upgraded.is_version_2()
    with Traffic(upgraded) as traffic:
        traffic.await_frames(200)
        if by == "agent":
            with running_agent(node) as agent:
                assert eventually(lambda: guards.VERSION in ruleset(node)), agent.log()
        else:
            upgraded.by(OURS).add(node.pod(), container_id="new").ok()
        traffic.await_frames(200)
        passed = traffic.end()
    assert passed == [b"good"] * traffic.sent
    assert OLDER_CHAIN not in ruleset(node)
    assert upgraded.is_version_2()
    assert upgraded.complaints(OURS, older) == []


def test_both_programs_go_on_side_by_side(upgraded: Upgraded) -> None:
    """Each adds, checks and deletes; what the one has made, the other checks and deletes."""
    node, programs = upgraded.node, (OURS, upgraded.older)
    upgraded.by(OURS).add(node.pod(), container_id="first").ok()
    for maker in programs:
        for remover in programs:
            pod = node.pod()
            made = upgraded.by(maker).add(pod, container_id="made").ok()
            for checker in programs:
                assert upgraded.by(checker).check(pod, made, container_id="made").ok() is None
            assert made["interfaces"][1]["name"] in named_in(ruleset(node))
            upgraded.by(remover).delete(pod, made, container_id="made").ok()
            assert made["interfaces"][1]["name"] not in named_in(ruleset(node))
    assert upgraded.is_version_2()
    upgraded.by(upgraded.older).delete("", container_id="first").ok()
    assert named_in(ruleset(node)) == {upgraded.port}
    assert not upgraded.lies()
    upgraded.by(OURS).delete(upgraded.pod, container_id="guest").ok()
    assert named_in(ruleset(node)) == set()
    assert "beyond_" not in ruleset(node), "the chain of a subnet goes with its last pod"


def test_gc_removes_the_subnets_that_the_older_program_has_left(upgraded: Upgraded) -> None:
    node = upgraded.node
    upgraded.by(upgraded.older).delete(upgraded.pod, container_id="guest").ok()
    assert "beyond_10.1.2.0/24" in ruleset(node)
    valid = {"cni.dev/valid-attachments": [{"containerID": "ear", "ifname": "eth0"}]}
    node.cni(OURS, "GC", {**upgraded.by(OURS).config, **valid}).ok()
    assert "beyond_" not in ruleset(node)
