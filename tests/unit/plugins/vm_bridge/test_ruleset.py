"""The table as nft's text: golden files, which the functional tests feed to nft as well."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path

import pytest

from cnvnet.guest.settings import V4, V6, GuestNeighbour, Settings
from cnvnet.plugins.binding import ruleset as vm_ruleset
from cnvnet.plugins.vm_bridge import ruleset
from cnvnet.vm import names

DATA = Path(__file__).parents[3] / "data"
NEXT_HOP = IPv4Address("169.254.1.1")
V4_SERVED = V4(IPv4Interface("10.9.0.5/32"), IPv4Address("169.254.75.10"), NEXT_HOP)
V6_SERVED = V6(IPv6Interface("fd99::5/64"), IPv6Address("fe80::1"), "0a:00:00:00:00:01")
BOTH = Settings(
    server_mac="02:00:00:00:00:01",
    mtu=1500,
    v4=V4_SERVED,
    v6=V6_SERVED,
    neighbours=(GuestNeighbour(NEXT_HOP, "0a:00:00:00:00:01"),),
)
CASES: dict[str, tuple[str, Settings | None]] = {
    "guest_both": ("eth0", BOTH),
    "guest_ipv4": ("pod16477688c0e", BOTH._replace(v6=None, neighbours=())),
    "guest_of_the_lan": ("eth0", None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_text_is_the_golden_one(case: str) -> None:
    pod, served = CASES[case]
    planned = ruleset.plan(names.of(pod), served)
    assert vm_ruleset.render(planned) == (DATA / f"{case}.nft").read_text()


def test_the_text_of_what_passes_the_bridge_by_is_the_golden_one() -> None:
    planned = ruleset.plan_wire(names.of("eth0"))
    assert vm_ruleset.render(planned) == (DATA / "guest_wire.nft").read_text()


def test_what_passes_the_bridge_by_is_what_its_rules_accept_first() -> None:
    """Nothing that they drop may find another way."""
    called = names.of("eth0")
    (forward,) = (chain for chain in ruleset.plan(called, BOTH).chains if chain.name == "forward")
    for chain in ruleset.plan_wire(called).chains:
        matches = [rule.match for rule in chain.rules]
        first = forward.rules[: len(matches)]
        assert [(rule.match, rule.verdict) for rule in first] == [(match, "accept") for match in matches]


@pytest.mark.parametrize("case", CASES)
def test_every_rule_of_a_chain_is_known_by_its_comment(case: str) -> None:
    pod, served = CASES[case]
    for chain in ruleset.plan(names.of(pod), served).chains:
        comments = [rule.comment for rule in chain.rules]
        assert len(set(comments)) == len(comments)
        assert all(0 < len(comment) <= 128 for comment in comments)
