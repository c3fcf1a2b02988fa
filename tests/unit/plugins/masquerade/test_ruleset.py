"""The tables as nft's text: golden files, which the functional tests feed to nft as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnvnet.plugins.binding import ruleset
from cnvnet.plugins.binding.ruleset import Ruleset
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.plan import Observed, plan
from cnvnet.plugins.masquerade.ruleset import table as table_of
from tests.unit.plugins.masquerade.masquerade_fake_pod import a_request
from tests.unit.plugins.masquerade.test_plan import observed

DATA = Path(__file__).parents[3] / "data"
LISTED: dict[str, Any] = {
    "ports": [{"port": 80}, {"port": 22}],
    "portRanges": [{"protocol": "UDP", "start": 5000, "end": 5010}],
}
TARGET = {"args": {"cni": {"vm": {"name": "vm1", "role": "target"}}}}
BOTH = observed("10.244.0.5/24", "fd99::5/64")
CASES: dict[str, tuple[dict[str, Any], Observed]] = {
    "pod_all_ports": ({}, BOTH),
    "pod_listed_ports": (LISTED, BOTH),
    "pod_migration_target": (LISTED | TARGET, BOTH),
    "pod_istio": ({"istio": True}, BOTH),
    "pod_istio_listed": ({"istio": True} | LISTED, BOTH),
    "pod_bare": (
        {"hairpin": False, "reservedPorts": [], "guestServices": {"enabled": False}},
        observed("10.244.0.5/32", "10.244.1.5/24", name="pod16477688c0e"),
    ),
}


def tables(keys: dict[str, Any], seen: Observed = BOTH) -> list[Ruleset]:
    return list(plan(Config.parse(a_request(keys)), seen).rulesets)


@pytest.mark.parametrize("case", CASES)
def test_the_text_is_the_golden_one(case: str) -> None:
    keys, seen = CASES[case]
    assert "".join(map(ruleset.render, tables(keys, seen))) == (DATA / f"{case}.nft").read_text()


@pytest.mark.parametrize("keys", [keys for keys, _ in CASES.values()], ids=CASES)
def test_every_rule_of_a_chain_is_known_by_its_comment(keys: dict[str, Any]) -> None:
    for table in tables(keys):
        for chain in table.chains:
            comments = [rule.comment for rule in chain.rules]
            assert len(set(comments)) == len(comments)
            assert all(0 < len(comment) <= 128 for comment in comments)


@pytest.mark.parametrize("listed", [False, True], ids=["all ports", "listed ports"])
@pytest.mark.parametrize("istio", [False, True], ids=["", "istio"])
@pytest.mark.parametrize("role", ["active", "target"])
def test_flows_are_taken_up_only_where_new_ones_are_kept_out(listed: bool, istio: bool, role: str) -> None:
    keys = {
        **(LISTED if listed else {}),
        "istio": istio,
        "args": {"cni": {"vm": {"name": "v", "role": role}}},
    }
    for table in tables(keys):
        chains = {chain.name: chain for chain in table.chains}
        taken_up = any(rule.comment == "flows that moved with the VM" for rule in chains["prerouting"].rules)
        assert taken_up == ("forward" in chains) == (listed and not istio and role == "target")
        if taken_up:
            (rule,) = (rule for rule in chains["prerouting"].rules if "moved" in rule.comment)
            assert "tcp dport != @reserved" in rule.match


def test_tables_are_removed_in_one_transaction() -> None:
    assert ruleset.render_removal((table_of("ip"), table_of("ip6"))) == (
        "add table ip cnv_masquerade\ndelete table ip cnv_masquerade\n"
        "add table ip6 cnv_masquerade\ndelete table ip6 cnv_masquerade\n"
    )
