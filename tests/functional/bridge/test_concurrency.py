"""Many concurrent calls, the first of which has to make the bridge."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.functional.bridge.bridge_network import OURS, Network, host_local, leases, ports, ruleset
from tests.harness import Node, Outcome, Sandbox

pytestmark = pytest.mark.every_way

COUNT = 50


def at_once(calls: list[Any]) -> list[Outcome]:
    with ThreadPoolExecutor(16) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def mixed(node: Node, program: str) -> list[Network]:
    """Layer 2, guarded, and with addresses, in turns; all on one bridge."""
    kinds: list[dict[str, Any]] = [
        {},
        {"macspoofchk": True},
        {"isGateway": True, "ipam": host_local(node, "10.1.0.0/16")},
        {"isGateway": True, "ipMasq": True, "macspoofchk": True, "ipam": host_local(node, "10.1.0.0/16")},
    ]
    return [Network(node, program, **kinds[number % len(kinds)]) for number in range(COUNT)]


@pytest.fixture
def pods(node: Node) -> list[Sandbox]:
    return [node.pod() for _ in range(COUNT)]


def test_fifty_adds_and_then_fifty_deletes(node: Node, pods: list[Sandbox], program: str) -> None:
    def add(number: int) -> Outcome:
        return networks[number].add(pods[number], container_id=f"vm-{number}", timeout=90)

    def delete(number: int) -> Outcome:
        return networks[number].delete(pods[number], container_id=f"vm-{number}", timeout=90)

    networks = mixed(node, program)
    results = [o.ok() for o in at_once([lambda n=n: add(n) for n in range(COUNT)])]
    assert len(ports(node)) == COUNT
    names = {result["interfaces"][1]["name"] for result in results}
    assert names == set(ports(node))
    addresses = [ip["address"] for result in results for ip in result.get("ips", [])]
    assert len(addresses) == len(set(addresses)) == len(leases(node))
    if program == OURS:
        assert len({result["interfaces"][0]["mac"] for result in results}) == 1, "one bridge has one MAC"
    for outcome in at_once([lambda n=n: delete(n) for n in range(COUNT)]):
        outcome.ok()
    assert ports(node) == []
    assert leases(node) == []
    assert "veth" not in ruleset(node)
    assert node.addresses("bridge0") == ["10.1.0.1/16"]


def test_adds_between_deletes(node: Node, pods: list[Sandbox], program: str) -> None:
    half = COUNT // 2
    networks = mixed(node, program)

    def call(number: int, *, add: bool) -> Outcome:
        method = networks[number].add if add else networks[number].delete
        return method(pods[number], container_id=f"vm-{number}", timeout=90)

    for outcome in at_once([lambda n=n: call(n, add=True) for n in range(half)]):
        outcome.ok()
    calls: list[Any] = []
    for number in range(half):
        calls.append(lambda n=number: call(n, add=False))
        calls.append(lambda n=number + half: call(n, add=True))
    for outcome in at_once(calls):
        outcome.ok()
    assert len(ports(node)) == half
    guarded = [n for n in range(half, COUNT) if networks[n].config.get("macspoofchk")]
    text = ruleset(node)
    for number in range(half, COUNT):
        mac = (pods[number].link("eth0") or {})["address"]
        assert (mac in text) is (number in guarded)


def test_calls_for_one_attachment_take_turns(node: Node, pod: Sandbox) -> None:
    network = Network(node, OURS, isGateway=True, macspoofchk=True, ipam=host_local(node, "10.1.0.0/16"))
    outcomes = at_once([lambda: network.add(pod) for _ in range(8)])
    assert sorted(outcome.code for outcome in outcomes) == [0] + [1] * 7
    assert len(ports(node)) == 1
    assert len(leases(node)) == 1
    assert (pod.link("eth0") or {})["operstate"] == "UP"
    for outcome in at_once([lambda: network.delete(pod) for _ in range(8)]):
        outcome.ok()
    assert ports(node) == []
    assert leases(node) == []


def test_twenty_bridges_at_once(node: Node) -> None:
    pods = [node.pod() for _ in range(20)]
    networks = [
        Network(
            node,
            OURS,
            bridge=f"br{n}",
            name=f"net{n}",
            isGateway=True,
            ipam=host_local(node, f"10.{n}.0.0/24"),
        )
        for n in range(20)
    ]
    for outcome in at_once([lambda n=n: networks[n].add(pods[n]) for n in range(20)]):
        outcome.ok()
    assert all(ports(node, f"br{n}") for n in range(20))
    assert all(node.addresses(f"br{n}") == [f"10.{n}.0.1/24"] for n in range(20))
