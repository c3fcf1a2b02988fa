"""A port whose addresses are another one's says and hears nothing, whatever becomes of agent and rules."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from ipaddress import ip_address

import pytest

from cnvnet.ipam.lease import Holder, Lease, LeaseKey
from cnvnet.ipam.store.holds import HELD, Hold, Holds
from cnvnet.kernel import netns
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.nft.tables import open_nft
from tests.functional.agent.own_agent import RunningAgent, eventually, running_agent
from tests.functional.bridge.bridge_network import OURS, Network, ruleset
from tests.functional.datapath.guarded_bridge import frame_mac, packet_socket
from tests.harness import Node, Sandbox

pytestmark = pytest.mark.alone

FENCED, OTHER = "02:00:00:00:00:05", "02:00:00:00:00:06"
BROADCAST = "ff:ff:ff:ff:ff:ff"
# 802.1X: what a bridge does not forward and takes itself (0E passes by all hooks; it is not forwarded).
TO_THE_BRIDGE = "01:80:c2:00:00:03"
# IEEE 802: an EtherType for experiments.
TRAFFIC = b"\x88\xb5"
WHY = "VM default/web (eth0) is in pod default/web-2 on node n2, and pod default/web-1 has ended"


class Interfaces:
    """Three pods on one bridge, made by the installed executable; the first one is the fenced one's."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.network = Network(node, OURS)
        self.sockets: dict[str, socket.socket] = {}
        for name in ("fenced", "other", "third"):
            pod = node.pod()
            result = self.network.add(pod, container_id=name).ok()
            if name == "fenced":
                self.port = str(result["interfaces"][1]["name"])
            self._open(name, pod)
        self.holds = Holds(str(node.statedir))

    def _open(self, name: str, pod: Sandbox) -> None:
        self.sockets[name] = packet_socket(pod)
        self.sockets[name].settimeout(10)

    def close(self) -> None:
        for each in self.sockets.values():
            each.close()

    def agent(self) -> AbstractContextManager[RunningAgent]:
        """An agent that reads the hold files of this node."""
        return running_agent(self.node, within=("env", f"CNVNET_STATEDIR={self.node.statedir}"))

    def hold(self, *, fenced: bool) -> None:
        """What a look at the Kubernetes API has made of the hold file."""
        name = str(self.network.config["name"])
        holder = Holder(
            "fenced", "eth0", "active", "/run/netns/x", 1, boot_id(), 5, "n1", "default/web-1", "u"
        )
        key = LeaseKey(name, "default", "web", "eth0")
        lease = Lease(key, (ip_address("10.0.0.5"),), holders=(holder,))
        hold = Hold(HELD, "fenced", "eth0", lease, dispute=WHY if fenced else "", fenced=fenced)
        self.holds.write(hold)

    def passes(self, sender: str, receiver: str, *, to: str = BROADCAST) -> bool:
        """Whether a frame comes through; one of the third pod that is sent after it always does."""
        mark = b"that was all".ljust(50)
        frame = (
            frame_mac(to) + frame_mac(FENCED if sender == "fenced" else OTHER) + TRAFFIC + b"hello".ljust(50)
        )
        self.sockets[sender].send(frame)
        self.sockets["third"].send(frame_mac(BROADCAST) + frame_mac(OTHER) + TRAFFIC + mark)
        passed = False
        while not (arrived := self.sockets[receiver].recv(4000)).endswith(mark):
            passed = passed or arrived == frame
        return passed

    def is_fenced(self) -> bool:
        """Whether nothing comes from the port; the others are heard."""
        return not self.passes("fenced", "other")

    def counters(self) -> dict[str, int]:
        with netns.opened(self.node.netns) as inside, open_nft(inside) as nft:
            return nft.counters("bridge", "cnv_fence")


@pytest.fixture
def interfaces(node: Node) -> Iterator[Interfaces]:
    made = Interfaces(node)
    yield made
    made.close()


def test_a_fenced_port_says_nothing_and_hears_nothing(interfaces: Interfaces) -> None:
    interfaces.hold(fenced=True)
    assert not interfaces.is_fenced()
    with interfaces.agent() as agent:
        assert eventually(interfaces.is_fenced), agent.log()
        before = interfaces.counters()
        interfaces.sockets["fenced"].send(
            frame_mac(TO_THE_BRIDGE) + frame_mac(FENCED) + TRAFFIC + b"hello".ljust(50)
        )
        assert interfaces.is_fenced()
        assert interfaces.counters()["from_fenced"] == before["from_fenced"] + 2
        # What the third pod says to all is kept from it as well.
        assert interfaces.counters()["to_fenced"] >= before["to_fenced"] + 1
        assert ruleset(interfaces.node).count(interfaces.port) == 1


def test_a_fence_comes_back_when_it_is_flushed(interfaces: Interfaces) -> None:
    interfaces.hold(fenced=True)
    with interfaces.agent() as agent:
        assert eventually(interfaces.is_fenced), agent.log()
        for command in (
            "flush ruleset",
            "flush chain bridge cnv_fence received",
            "flush set bridge cnv_fence ports",
        ):
            interfaces.node.run("nft", command)
            assert eventually(interfaces.is_fenced), agent.log()


def test_a_fence_outlives_the_agent_and_ends_with_the_next_one(interfaces: Interfaces) -> None:
    interfaces.hold(fenced=True)
    with interfaces.agent() as agent:
        assert eventually(interfaces.is_fenced), agent.log()
        agent.kill()
        assert interfaces.is_fenced()
        # As a look leaves it that is killed before it comes to the port.
        interfaces.hold(fenced=False)
        agent.start()
        assert eventually(lambda: not interfaces.is_fenced()), agent.log()
        assert "cnv_fence" not in ruleset(interfaces.node)


def test_a_node_without_fences_has_no_table(interfaces: Interfaces) -> None:
    interfaces.hold(fenced=False)
    with interfaces.agent() as agent:
        assert not interfaces.is_fenced()
        assert "cnv_fence" not in ruleset(interfaces.node)
        assert shown(agent) == {}


def shown(agent: RunningAgent) -> dict[str, float]:
    """The metrics of disputes."""
    return {name: value for name, value in agent.metrics().items() if name.startswith("cnvnet_disputed")}


def test_a_fence_is_counted_by_its_network(interfaces: Interfaces) -> None:
    interfaces.hold(fenced=True)
    name = interfaces.network.config["name"]
    with interfaces.agent() as agent:
        wanted = {f'cnvnet_disputed_interfaces{{network="{name}",state="fenced"}}': 1.0}
        assert eventually(lambda: shown(agent) == wanted), agent.log()
