"""Attachments that the reference masqueraded with the old iptables, which knows nothing of nftables."""

from __future__ import annotations

import sys

import pytest

from cnvnet.plugins.cnv_bridge.reference_cleanup import Attachment
from tests.harness import Node, peer

# As the reference plugin v1.9.1 calls iptables for network "mynet" and container "cidiptables".
CHAIN = "CNI-d0e0c55450e995ee172216a8"
COMMENT = ["-m", "comment", "--comment", 'name: "mynet" id: "cidiptables"']
RULES = [
    ["-N", CHAIN],
    ["-A", CHAIN, "-d", "10.1.2.0/24", "-j", "ACCEPT", *COMMENT],
    ["-A", CHAIN, "!", "-d", "224.0.0.0/4", "-j", "MASQUERADE", *COMMENT],
    ["-A", "POSTROUTING", "-s", "10.1.2.2", *COMMENT, "-j", CHAIN],
    ["-N", "THEIRS"],
    ["-A", "POSTROUTING", "-s", "10.9.9.9", "-j", "THEIRS"],
]
REMOVE = """
import sys
from cnvnet.kernel.nft.tables import open_nft
from cnvnet.plugins.cnv_bridge import reference_cleanup
attachment = reference_cleanup.Attachment(*sys.argv[1:])
with open_nft() as nft:
    print(reference_cleanup.has_masquerade(nft, attachment))
    reference_cleanup.remove(nft, attachment)
    print(reference_cleanup.has_masquerade(nft, attachment))
"""
OURS = Attachment("mynet", "cidiptables", "eth0")


@pytest.fixture
def iptables() -> str:
    return peer("iptables-legacy")


def test_old_rules_go_and_others_stay(node: Node, iptables: str) -> None:
    for rule in RULES:
        node.run(iptables, "-t", "nat", *rule)
    done = node.run(sys.executable, "-c", REMOVE, *OURS)
    assert done.stdout.split() == ["True", "False"]
    assert not done.stderr
    left = node.run(iptables, "-t", "nat", "-S").stdout
    assert CHAIN not in left
    assert "-A POSTROUTING -s 10.9.9.9/32 -j THEIRS" in left


def test_without_old_rules_the_old_program_is_not_asked(node: Node) -> None:
    done = node.run("env", "PATH=/nowhere", sys.executable, "-c", REMOVE, *OURS)
    assert done.stdout.split() == ["False", "False"]
    assert not done.stderr
