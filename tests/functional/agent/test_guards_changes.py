"""What others change in our nftables without deleting it all is missed by CHECK, and put right as well."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from cnvnet.agent.guards import GuardReconciler
from cnvnet.kernel import netns
from cnvnet.kernel.nft.events import NftChanges
from cnvnet.kernel.nft.tables import Nft
from cnvnet.plugins.cnv_bridge import guards
from cnvnet.plugins.cnv_bridge.reconcile import ReconcileResult
from tests.functional.agent.own_agent import eventually, running_agent
from tests.functional.agent.test_guards import (
    BRIDGE,
    INET,
    MAC,
    Guarded,
    log_of,
    nft_of,
    reconciliations,
    stopped,
    without_counters,
)
from tests.functional.bridge.bridge_network import ruleset
from tests.harness import Node

pytestmark = pytest.mark.alone

SUBNET = f"{INET} beyond_10.1.2.0/24"
MASQUERADES = f"{INET} masquerade_v1"
BASE = f"{BRIDGE} {guards.VERSION}"


@pytest.fixture
def guarded(node: Node) -> Iterator[Guarded]:
    made = Guarded(node)
    yield made
    made.close()


def handle(guarded: Guarded, chain: str) -> str:
    """The chain's first rule, as nft names it."""
    listing = guarded.node.run("nft", "-a", f"list chain {chain}").stdout
    found = re.search(r"[^{] # handle (\d+)$", listing, re.MULTILINE)
    assert found is not None, listing
    return f"{chain} handle {found[1]}"


Script = Callable[[Guarded], str]
DAMAGES: dict[str, tuple[Script, str, str]] = {
    "rule-inserted": (lambda _: f"insert rule {BRIDGE} mac_source accept", BRIDGE, "does not guard"),
    "rule-in-the-base-chain": (lambda _: f"insert rule {BASE} accept", BRIDGE, "does not guard"),
    "rule-deleted": (lambda g: f"delete rule {handle(g, BRIDGE + ' mac_source')}", BRIDGE, "does not guard"),
    "dormant": (lambda _: f"add table {BRIDGE} {{ flags dormant; }}", BRIDGE, "does not guard"),
    "element": (lambda g: f'delete element {BRIDGE} mac_ports {{ "{g.port}" }}', BRIDGE, "element"),
    "masquerade-rule-inserted": (lambda _: f"insert rule {MASQUERADES} return", INET, "ipMasq: element"),
    "masquerade-rule-deleted": (lambda g: f"delete rule {handle(g, MASQUERADES)}", INET, "ipMasq: element"),
    "masquerade-dormant": (lambda _: f"add table {INET} {{ flags dormant; }}", INET, "ipMasq: element"),
    "subnet-rule-inserted": (lambda _: f"insert rule {SUBNET} return", INET, "ipMasq: element"),
}


@pytest.mark.parametrize(("script", "table", "complaint"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_changed_is_missed_by_check_and_put_right(
    guarded: Guarded, script: Script, table: str, complaint: str
) -> None:
    with running_agent(guarded.node) as agent:
        assert guarded.check() == ""
        before = ruleset(guarded.node)
        with stopped(agent):
            guarded.nft(script(guarded))
            assert complaint in guarded.check()
            assert guarded.lies() == (table == BRIDGE)
        assert eventually(lambda: guarded.check() == ""), agent.log()
        assert not guarded.lies()
        assert without_counters(ruleset(guarded.node)) == without_counters(before)
        assert reconciliations(agent, table) >= 1


EXCHANGES: dict[str, tuple[Script, str]] = {
    "rule": (lambda g: f"replace rule {handle(g, BRIDGE + ' mac_source')} accept", BRIDGE),
    "policy": (lambda _: f"add chain {BASE} {{ policy drop; }}", BRIDGE),
    "masquerade-rule": (lambda g: f"replace rule {handle(g, MASQUERADES)} return", INET),
}


@pytest.mark.parametrize(("script", "table"), EXCHANGES.values(), ids=EXCHANGES)
def test_what_is_exchanged_is_noticed_by_the_agent_that_has_seen_it(
    guarded: Guarded, script: Script, table: str
) -> None:
    with running_agent(guarded.node) as agent:
        assert agent.events()
        before = without_counters(ruleset(guarded.node))
        guarded.nft(script(guarded))
        assert eventually(lambda: reconciliations(agent, table) == 1), agent.log()
        assert eventually(lambda: without_counters(ruleset(guarded.node)) == before), agent.log()
        assert not guarded.lies()
        assert len(log_of(agent, "nftables: missing")) == 1


def test_elements_deleted_one_by_one_all_come_back(guarded: Guarded) -> None:
    with running_agent(guarded.node) as agent:
        before = without_counters(ruleset(guarded.node))
        for element in (
            f'mac_ports {{ "{guarded.port}" }}',
            f'macs {{ "{guarded.port}" . {MAC} }}',
            f'ipv4 {{ "{guarded.port}" . {guarded.guest.ipv4} }}',
            f'ip_ports {{ "{guarded.port}" }}',
        ):
            guarded.nft(f"delete element {BRIDGE} {element}")
            time.sleep(0.05)
        assert eventually(lambda: without_counters(ruleset(guarded.node)) == before), agent.log()
        assert eventually(lambda: guarded.check() == ""), agent.log()


def test_a_table_that_cannot_be_put_right_is_reported(guarded: Guarded) -> None:
    """A base chain moved to another hook: the kernel does not move it back."""
    with running_agent(guarded.node) as agent:
        with stopped(agent):
            guarded.nft(f"flush chain {BASE}; delete chain {BASE}")
            guarded.nft(
                f"add chain {BASE} {{ type filter hook output priority 0; }};"
                f"add rule {BASE} accept; add rule {BASE} accept"
            )
            assert "does not guard" in guarded.check()
        assert eventually(lambda: agent.http("/healthz")[0] == 503), agent.log()
        assert BRIDGE in agent.http("/healthz")[1]
        guarded.nft(f"delete table {BRIDGE}")
        assert eventually(lambda: agent.http("/healthz")[0] == 200), agent.log()
        assert guarded.check() == ""
        assert not guarded.lies()


def test_the_agents_own_changes_are_no_reason_to_look_again(guarded: Guarded) -> None:
    """Once all is well nothing is changed any more."""
    with running_agent(guarded.node) as agent:
        guarded.nft("flush ruleset")
        assert eventually(lambda: guarded.check() == ""), agent.log()
        before = log_of(agent, "nftables: missing")
        with netns.opened(guarded.node.netns) as inside, netns.entered(inside):
            changes = NftChanges([guards.TABLE], [])
        try:
            time.sleep(1)
            assert not changes.take()
        finally:
            changes.close()
        assert log_of(agent, "nftables: missing") == before


class Counted:
    """A table whose looks are counted, each of which changes something."""

    family, table = "bridge", "t"

    def __init__(self, nft: Nft) -> None:
        self.looks = 0
        self._nft = nft

    def reconcile(self) -> ReconcileResult:
        self.looks += 1
        self._nft.run("add table bridge t; add chain bridge t c; flush chain bridge t c")
        return ReconcileResult()

    def observe_table(self, table: str, *, reconciled: bool, newer: bool) -> None:
        pass


@pytest.mark.skipif(
    os.stat("/proc/self/ns/pid").st_ino != 0xEFFFFFFC,  # PROC_PID_INIT_INO
    reason="threads have other numbers here than the kernel reports: run it outside of a container",
)
def test_a_look_that_changes_something_is_followed_by_no_other(node: Node) -> None:
    with nft_of(node) as nft:
        table = Counted(nft)
        with netns.opened(node.netns) as inside, netns.entered(inside):
            reconciler = GuardReconciler([table], [], table)
            reconciler.start()
        try:
            assert eventually(lambda: table.looks == 1)
            time.sleep(1)
            assert table.looks == 1
            subprocess.run(
                ["nsenter", f"--net={node.netns}", "nft", "add rule bridge t c accept"], check=True
            )
            assert eventually(lambda: table.looks == 2)
            time.sleep(1)
            assert table.looks == 2
        finally:
            reconciler.stop()
