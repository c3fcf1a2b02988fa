"""What others delete of our nftables is back in a moment; what the node's calls delete stays deleted."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import uniform
from typing import Any

import pytest

from cnvnet.cni.errors import TRY_AGAIN_LATER
from cnvnet.kernel import netns
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.nft.events import NftChanges
from cnvnet.kernel.nft.tables import Nft, open_nft
from cnvnet.plugins.cnv_bridge import guards, reconcile
from tests.functional.agent.launcher_calls import Ipam, cni, start
from tests.functional.agent.own_agent import (
    RunningAgent,
    capabilities_of_the_unit,
    eventually,
    running_agent,
    within_capabilities,
)
from tests.functional.bridge.bridge_network import OURS, Network, host_local, ruleset
from tests.functional.datapath.guarded_bridge import Guest, Lab, frame_mac, packet_socket
from tests.guard_versions import NEWER, OLDER, text_of
from tests.harness import Node, Sandbox, peer

pytestmark = pytest.mark.alone

MAC = "02:00:00:00:00:05"
FOREIGN = bytes.fromhex("0200000000ee")
BROADCAST = b"\xff" * 6
PAYLOAD = b"\x88\xb5" + b"hello" * 10
# IEEE 802: the other EtherType for experiments.
TRAFFIC = b"\x88\xb6"
_SO_RCVBUFFORCE = 33
BRIDGE, INET = "bridge cnv_bridge", "inet cnv_masquerade"


class Guarded(Lab):
    """A port with guards and masquerading, made by the installed executable, and an unguarded listener."""

    program = OURS

    def __init__(self, node: Node) -> None:
        peer("host-local")
        self.node = node
        self.network = Network(
            node,
            self.program,
            type=OURS,
            isGateway=True,
            ipMasq=True,
            macspoofchk=True,
            ipspoofchk=True,
            ipam=host_local(node, "10.1.2.0/24", "fd00::/64"),
        )
        pod, ear = node.pod(), node.pod()
        self.result = self.network.add(pod, container_id="guest", args=f"IgnoreUnknown=1;MAC={MAC}").ok()
        self.plain = self.network.with_(ipMasq=False, macspoofchk=False, ipspoofchk=False)
        self.plain.add(ear, container_id="ear").ok()
        ipv4, ipv6 = (ip["address"].partition("/")[0] for ip in self.result["ips"])
        super().__init__(node, pod, ear, Guest(MAC, ipv4, ipv6))

    @property
    def port(self) -> str:
        return str(self.result["interfaces"][1]["name"])

    def check(self) -> str:
        """What CHECK has against the attachment, "" for nothing."""
        outcome = self.network.check(self.pod, self.result, container_id="guest")
        return "" if outcome.code == 0 else str(outcome.error()["msg"])

    def status(self) -> str:
        outcome = self.node.cni(OURS, "STATUS", self.network.config)
        return "" if outcome.code == 0 else str(outcome.error()["msg"])

    def lies(self) -> bool:
        """Whether a frame with a foreign MAC comes through; an honest one must."""
        assert self.passes(BROADCAST + frame_mac(MAC) + PAYLOAD)
        return self.passes(BROADCAST + FOREIGN + PAYLOAD)

    def nft(self, command: str) -> None:
        self.node.run("nft", command)


@pytest.fixture
def guarded(node: Node) -> Iterator[Guarded]:
    made = Guarded(node)
    yield made
    made.close()


@contextmanager
def stopped(agent: RunningAgent) -> Generator[None]:
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(agent.pid, signal.SIGCONT)


@contextmanager
def nft_of(node: Sandbox) -> Generator[Nft]:
    with netns.opened(node.netns) as inside, open_nft(inside) as nft:
        yield nft


def reconciliations(agent: RunningAgent, table: str) -> float:
    return agent.metrics()[f'cnvnet_nft_reconciliations_total{{table="{table}"}}']


def log_of(agent: RunningAgent, text: str) -> list[dict[str, Any]]:
    return [event for event in agent.events() if text in event["msg"]]


DAMAGES = {
    "ruleset": ("flush ruleset", BRIDGE, "does not guard"),
    "table-deleted": ("delete table bridge cnv_bridge", BRIDGE, "does not guard"),
    "table-flushed": ("flush table bridge cnv_bridge", BRIDGE, "does not guard"),
    "chain": ("flush chain bridge cnv_bridge mac_source", BRIDGE, "does not guard"),
    "set": ("flush set bridge cnv_bridge mac_ports", BRIDGE, "element"),
    "masquerade-deleted": ("delete table inet cnv_masquerade", INET, "ipMasq: element"),
    "masquerade-flushed": ("flush table inet cnv_masquerade", INET, "ipMasq: element"),
    "masquerade-elements": ("flush map inet cnv_masquerade pods4", INET, "ipMasq: element"),
    "subnet": ("flush chain inet cnv_masquerade beyond_10.1.2.0/24", INET, "ipMasq: element"),
}


@pytest.mark.parametrize(("command", "table", "complaint"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_deleted_is_missed_by_check_and_comes_back(
    guarded: Guarded, command: str, table: str, complaint: str
) -> None:
    with running_agent(guarded.node) as agent:
        assert guarded.check() == ""
        before = ruleset(guarded.node)
        with stopped(agent):
            guarded.nft(command)
            assert complaint in guarded.check()
            assert guarded.lies() == (table == BRIDGE)
            assert guarded.status() == ""  # an ADD could be served, and is what brings the rules back
        assert eventually(lambda: guarded.check() == ""), agent.log()
        assert not guarded.lies()
        assert guarded.status() == ""
        assert without_counters(ruleset(guarded.node)) == without_counters(before)
        # More than once if the CHECK had the record just then.
        assert reconciliations(agent, table) >= 1
        assert agent.http("/healthz") == (200, "ok\n")


def without_counters(rules: str) -> set[str]:
    """The lines of a ruleset: the order of tables and of a set's elements, and counts, are no part of it."""
    text = rules.replace(" ,", ",").replace("\t", "").replace("elements = {", "")
    parts = (part.strip(" ,}") for line in text.splitlines() for part in line.split(", "))
    return {part for part in parts if "packets" not in part}


def test_what_was_deleted_while_no_agent_ran_comes_back_with_it(guarded: Guarded) -> None:
    guarded.nft("flush ruleset")
    assert guarded.lies()
    with running_agent(guarded.node) as agent:
        assert eventually(lambda: guarded.check() == ""), agent.log()
        assert not guarded.lies()
        assert {event["table"] for event in log_of(agent, "nftables: missing")} == {BRIDGE, INET}


def test_the_capabilities_of_the_unit_are_enough(guarded: Guarded) -> None:
    within = within_capabilities(capabilities_of_the_unit())
    with running_agent(guarded.node, within=within) as agent:
        guarded.nft("flush ruleset")
        assert eventually(lambda: guarded.check() == ""), agent.log()
        assert not guarded.lies()


def test_an_agent_that_may_not_listen_says_so(guarded: Guarded) -> None:
    names = [name for name in capabilities_of_the_unit() if name != "net_admin"]
    with running_agent(guarded.node, within=within_capabilities(names)) as agent:
        assert agent.log().count("nftables: not watched") == 1
        assert "CAP_NET_ADMIN" in agent.log()


def test_an_agent_without_the_nodes_network_does_not_watch_the_nodes_guards(guarded: Guarded) -> None:
    """What hostNetwork is for, where the agent is a pod."""
    with running_agent(guarded.node, "--metrics-address", "", within=("unshare", "--net")):
        guarded.nft("flush ruleset")
        assert not eventually(lambda: guarded.check() == "", seconds=3)
    with running_agent(guarded.node) as agent:
        assert eventually(lambda: guarded.check() == ""), agent.log()


def test_a_node_without_guarded_ports_gets_no_tables(node: Node) -> None:
    plain = Network(node, OURS)
    pod = node.pod()
    with running_agent(node) as agent:
        plain.add(pod).ok()
        node.run("nft", "flush ruleset")
        node.run("nft", "add table ip other")
        assert reconciliations(agent, BRIDGE) == reconciliations(agent, INET) == 0
        assert "cnv" not in ruleset(node)


def test_calls_that_delete_are_not_taken_for_damage(guarded: Guarded) -> None:
    """Neither those of executables nor those that the agent runs."""
    with running_agent(guarded.node) as agent:
        for number, env in enumerate(({"CNVNET_AGENT": "off"}, {"CNVNET_AGENT": "auto"}) * 2):
            pod, container = guarded.node.pod(), f"other-{number}"
            guarded.network.add(pod, container_id=container, env=env).ok()
            guarded.network.delete(pod, container_id=container, env=env).ok()
        assert reconciliations(agent, BRIDGE) == reconciliations(agent, INET) == 0
        guarded.nft("flush ruleset")
        assert eventually(lambda: guarded.check() == ""), agent.log()


def test_what_an_executable_deletes_is_not_even_looked_at(node: Node) -> None:
    network, pod = Network(node, OURS, macspoofchk=True), node.pod()
    with netns.opened(node.netns) as inside, netns.entered(inside):
        changes = NftChanges([guards.TABLE], reconcile.PROGRAMS)
    try:
        network.add(pod).ok()
        network.delete(pod).ok()
        assert not changes.take()
        node.run("nft", "delete table bridge cnv_bridge")
        assert changes.take()
    finally:
        changes.close()


def test_a_check_whose_address_manager_is_stuck_keeps_no_guards_away(node: Node, tmp_path: Path) -> None:
    ipam = Ipam(tmp_path, waits="CHECK")
    pod, keys = node.pod(), {**ipam.keys, "macspoofchk": True}
    with running_agent(node):
        added = cni(node, "ADD", pod, config=keys, cni_path=str(ipam.folder)).ok()
        before = ruleset(node)
        ipam.hold.touch()
        check = start(node, "CHECK", pod, {**keys, "prevResult": added}, **ipam.path)
        assert eventually(lambda: ipam.calls()[-1] == "CHECK dummy-0 begin")
        node.run("nft", "flush ruleset")
        assert eventually(lambda: without_counters(ruleset(node)) == without_counters(before))
        assert check.process.poll() is None
        ipam.hold.unlink()
        check.outcome().ok()


def test_a_port_that_has_gone_gets_no_elements(guarded: Guarded) -> None:
    pod = guarded.node.pod()
    made = guarded.network.add(pod, container_id="gone").ok()
    gone = made["interfaces"][1]["name"]
    with running_agent(guarded.node) as agent:
        assert gone in ruleset(guarded.node)
        with stopped(agent):
            guarded.node.run("ip", "link", "del", gone)
            # A foreign link, of that name.
            guarded.node.run("ip", "link", "add", gone, "type", "veth", "peer", "name", "other")
            guarded.nft("flush ruleset")
        assert eventually(lambda: guarded.check() == ""), agent.log()
        assert guarded.port in ruleset(guarded.node)
        assert gone not in ruleset(guarded.node)
        guarded.network.delete(pod, container_id="gone").ok()


def test_a_record_that_is_not_of_this_boot_is_none_of_its_business(guarded: Guarded) -> None:
    [record] = (
        path for path in guarded.node.rundir.glob("attachments/*.json") if '"guest"' in path.read_text()
    )
    record.write_text(record.read_text().replace(boot_id(), "another"))
    guarded.nft("flush ruleset")
    with running_agent(guarded.node) as agent:
        guarded.network.add(guarded.node.pod(), container_id="new").ok()
        guarded.nft("flush ruleset")
        assert eventually(lambda: "macs" in ruleset(guarded.node)), agent.log()
        assert eventually(lambda: reconciliations(agent, INET) > 0), agent.log()
        rules = ruleset(guarded.node)
        assert guarded.port not in rules
        assert f"{guarded.guest.ipv4} :" not in rules


@pytest.mark.parametrize("agent", ["off", "auto"], ids=["executables", "through-the-agent"])
def test_calls_and_flushes_at_once(guarded: Guarded, agent: str) -> None:
    """Whatever their order: an added port is guarded in the end, and nothing is left of a deleted one."""
    node, network = guarded.node, guarded.network
    env = {"CNVNET_AGENT": agent}
    over = threading.Event()
    failures: list[str] = []

    def flush() -> None:
        while not over.is_set():
            guarded.nft("flush ruleset")
            over.wait(uniform(0.05, 0.09))

    def come_and_go(worker: int, pods: list[Sandbox]) -> None:
        for turn, pod in enumerate(pods):
            container = f"pod-{worker}-{turn}"
            # An ADD whose table is flushed over and over may fail, and asks to be tried again.
            outcome = network.add(pod, container_id=container, env=env)
            if outcome.code == 0:
                added[container] = pod, outcome.ok()
            elif outcome.error()["code"] != TRY_AGAIN_LATER:
                failures.append(outcome.stdout)
            if turn % 2:
                deleted = network.delete(pod, container_id=container, env=env)
                added.pop(container, None)
                if deleted.code:
                    failures.append(deleted.stdout)

    added: dict[str, tuple[Sandbox, Any]] = {}
    with running_agent(node) as running:
        workers = [
            threading.Thread(target=come_and_go, args=(worker, [node.pod() for _ in range(6)]))
            for worker in range(3)
        ]
        flushing = threading.Thread(target=flush)
        for thread in (flushing, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        over.set()
        flushing.join()
        assert failures == []

        def complaints() -> list[str]:
            outcomes = {
                container: network.check(pod, result, container_id=container)
                for container, (pod, result) in added.items()
            }
            return [container for container, outcome in outcomes.items() if outcome.code]

        assert added, "no ADD at all has come through"
        assert eventually(lambda: not complaints()), running.log()
        assert guarded.check() == ""
        rules = ruleset(node)
        alive = {guarded.port, *(result["interfaces"][1]["name"] for _, result in added.values())}
        assert ports_named_in(rules) == alive
        for container, (pod, _) in added.items():
            network.delete(pod, container_id=container, env=env).ok()
        rules = ruleset(node)
        assert ports_named_in(rules) == {guarded.port}
        assert rules.count("goto beyond") == 2


@pytest.mark.parametrize("agent", ["off", "auto"], ids=["executables", "through-the-agent"])
def test_a_port_deleted_right_after_a_flush_does_not_come_back(guarded: Guarded, agent: str) -> None:
    node, network, env = guarded.node, guarded.network, {"CNVNET_AGENT": agent}
    pods = {f"pod-{number}": node.pod() for number in range(6)}
    with running_agent(node) as running, ThreadPoolExecutor(4) as workers:
        for _ in range(3):
            for container, pod in pods.items():
                network.add(pod, container_id=container, env=env).ok()
            guarded.nft("flush ruleset")
            deletions = [
                workers.submit(network.delete, pod, container_id=container, env=env)
                for container, pod in pods.items()
            ]
            for deletion in deletions:
                deletion.result().ok()
            assert eventually(lambda: guarded.check() == ""), running.log()
            rules = ruleset(node)
            assert ports_named_in(rules) == {guarded.port}
            assert rules.count("goto beyond") == 2


def ports_named_in(rules: str) -> set[str]:
    return {word.strip('",') for word in rules.split() if word.startswith('"veth')}


def test_a_newer_agent_brings_the_rules_up_to_date_under_traffic(guarded: Guarded) -> None:
    downgrade(guarded)
    with Traffic(guarded) as traffic:
        traffic.await_frames(200)
        with running_agent(guarded.node) as agent:
            assert eventually(lambda: guards.VERSION in ruleset(guarded.node)), agent.log()
            traffic.await_frames(200)
            assert log_of(agent, "nftables: missing")[0]["table"] == BRIDGE
        passed = traffic.end()
    assert OLDER not in ruleset(guarded.node)
    assert passed == [b"good"] * traffic.sent
    assert guarded.check() == ""


def downgrade(guarded: Guarded) -> None:
    """The node as an older version would have left it: another base chain, and other rules in the others."""
    older = text_of(OLDER)
    chains = [line.split()[1] for line in older.splitlines() if line.strip().startswith("chain")]
    old = older.replace("meta protocol 0x8035 goto rarp_source\n\t}", "meta protocol 0x8035 drop\n\t}")
    assert old != older
    flushes = [f"flush chain {BRIDGE} {chain}" for chain in chains if chain != OLDER]
    gone = [f"{verb} chain {BRIDGE} {guards.VERSION}" for verb in ("flush", "delete")]
    with nft_of(guarded.node) as nft:
        nft.run("\n".join([*gone, *flushes, old]))
    assert not guarded.lies()


class Traffic:
    """Frames of a guest in turn spoofed and good, some hundreds a second, and those that come through."""

    def __init__(self, lab: Lab) -> None:
        self._mouth = packet_socket(lab.pod)
        self._ear = packet_socket(lab.ear)
        self._ear.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.sent = 0

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._mouth.close()
        self._ear.close()

    def await_frames(self, number: int) -> None:
        wanted = self.sent + number
        assert eventually(lambda: self.sent > wanted)

    def end(self) -> list[bytes]:
        """Which frames have come through, all of them."""
        self._stop()
        self._ear.settimeout(1)
        found: list[bytes] = []
        try:
            while True:
                frame = self._ear.recv(2000)
                if frame[12:14] == TRAFFIC:
                    found.append(frame[14:].rstrip(b" "))
        except TimeoutError:
            return found

    def _stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _send(self) -> None:
        good = BROADCAST + frame_mac(MAC) + TRAFFIC + b"good".ljust(50)
        spoofed = BROADCAST + FOREIGN + TRAFFIC + b"spoofed".ljust(50)
        while not self._over.wait(0.002):
            self._mouth.send(spoofed)
            self._mouth.send(good)
            self.sent += 1


def test_an_older_agent_leaves_newer_rules_alone_and_keeps_their_elements(guarded: Guarded) -> None:
    newer = text_of(NEWER)
    with nft_of(guarded.node) as nft:
        nft.ensure(guards.FAMILY, guards.TABLE, NEWER, newer)
    before = without_counters(ruleset(guarded.node))
    with running_agent(guarded.node) as agent:
        name = f'cnvnet_nft_table_newer_than_agent{{table="{BRIDGE}"}}'
        assert eventually(lambda: agent.metrics().get(name) == 1), agent.log()
        assert [event["chain"] for event in log_of(agent, "newer")] == [NEWER]
        assert reconciliations(agent, BRIDGE) == 0
        guarded.nft("flush set bridge cnv_bridge macs")
        assert eventually(lambda: reconciliations(agent, BRIDGE) == 1), agent.log()
        assert without_counters(ruleset(guarded.node)) == before
        assert guards.VERSION not in ruleset(guarded.node)
        # Another program has broken what only the newer agent can make.
        guarded.nft(f"flush chain bridge cnv_bridge {NEWER}")
        assert eventually(lambda: agent.http("/healthz")[0] == 503), agent.log()
        assert "a newer program's" in agent.http("/healthz")[1]
        with nft_of(guarded.node) as nft:
            nft.ensure(guards.FAMILY, guards.TABLE, NEWER, newer)
        assert eventually(lambda: agent.http("/healthz")[0] == 200), agent.log()
        assert not guarded.lies()
