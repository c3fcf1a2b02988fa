"""`ipam: dhcp`, the reference's plugin that asks a DHCP server through the port."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.functional.bridge.bridge_network import OURS, REFERENCE, Network, default_gateway, ports, ruleset
from tests.functional.bridge.dhcp import ADDRESS, GATEWAY, LEASE_SECONDS, a_lan
from tests.functional.bridge.snapshot import Roles, snapshot
from tests.functional.bridge.test_oracle import normalised, unexplained
from tests.harness import Node, Sandbox, a_node

GUARDED: Final = {"macspoofchk": True, "ipspoofchk": True, "portIsolation": False, "hairpinMode": True}


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Node]:
    """The reference's node."""
    with a_node(tmp_path / "other") as made:
        made.folder.mkdir()
        yield made


def guard_drops(node: Node) -> dict[str, int]:
    """How many frames the guards have dropped, by the reason."""
    shown = node.run("nft", "-j", "list", "counters", "table", "bridge", "cnv_bridge").stdout
    found = [item["counter"] for item in json.loads(shown)["nftables"] if "counter" in item]
    return {
        each["name"]: each["packets"] for each in found if each["packets"] and each["name"] != "passed_other"
    }


@pytest.mark.parametrize("keys", [{}, GUARDED], ids=["plain", "guarded"])
def test_a_lease_is_renewed_while_the_pod_runs_and_released_by_del(
    node: Node, pod: Sandbox, keys: dict[str, Any]
) -> None:
    with a_lan(node) as lan:
        network = Network(node, OURS, ipam=lan.ipam, **keys)
        result = network.add(pod).ok()
        assert result["ips"] == [{"interface": 2, "address": f"{ADDRESS}/24", "gateway": GATEWAY}]
        assert pod.addresses("eth0") == [f"{ADDRESS}/24"]
        assert default_gateway(pod) == GATEWAY
        pod.run("ping", "-c1", "-W5", GATEWAY)
        network.check(pod, result).ok()
        # The first is the lease's own; at half its time it is renewed.
        acknowledged = lan.eventually_said("DHCPACK", 1 + 3, 4 * LEASE_SECONDS)
        assert all(f"on {ADDRESS} to {result['interfaces'][2]['mac']}" in line for line in acknowledged)
        pod.run("ping", "-c1", "-W5", GATEWAY)
        assert lan.said("DHCPRELEASE") == []
        network.delete(pod, result).ok()
        (released,) = lan.eventually_said("DHCPRELEASE", 1, 10)
        assert f"of {ADDRESS} from {result['interfaces'][2]['mac']}" in released
        assert "(found)" in released
        assert guard_drops(node) == {} if keys else "cnv_bridge" not in ruleset(node)


@pytest.mark.every_way
def test_its_address_is_announced_to_neighbours_that_knew_another_mac(node: Node, pod: Sandbox) -> None:
    with a_lan(node) as lan:
        stale = ("lladdr", "02:00:00:00:00:ee", "dev", "eth0", "nud", "reachable")
        lan.server.run("ip", "neigh", "replace", ADDRESS, *stale)
        network = Network(node, OURS, ipam=lan.ipam, **GUARDED)
        result = network.add(pod).ok()
        (known,) = lan.server.ip("neigh", "show", ADDRESS)
        assert known["lladdr"] == result["interfaces"][2]["mac"]
        network.delete(pod, result).ok()
        assert lan.eventually_said("DHCPRELEASE", 1, 10)


@pytest.mark.every_way
def test_without_an_answer_nothing_is_left(node: Node, pod: Sandbox) -> None:
    with a_lan(node, served=False) as lan:
        network = Network(node, OURS, isGateway=True, ipMasq=True, ipam=lan.ipam, **GUARDED)
        error = network.add(pod).error()
        assert "error calling DHCP.Allocate: no more tries" in error["msg"]
        assert list(pod.links()) == ["lo"]
        assert ports(node) == ["lan0"]
        assert "veth" not in ruleset(node)
        network.delete(pod).ok()


def test_an_add_that_fails_after_the_lease_releases_it(node: Node, pod: Sandbox) -> None:
    with a_lan(node) as lan:
        node.run("ip", "addr", "add", "10.9.9.1/8", "dev", "bridge0")
        network = Network(node, OURS, isGateway=True, ipam=lan.ipam, **GUARDED)
        assert "already has an IP address different from" in network.add(pod).error()["msg"]
        assert len(lan.eventually_said("DHCPRELEASE", 1, 10)) == 1
        assert list(pod.links()) == ["lo"]
        assert "veth" not in ruleset(node)


def test_the_bridge_becomes_the_gateway_after_the_lease(node: Node, pod: Sandbox) -> None:
    with a_lan(node) as lan:
        lan.server.run("ip", "addr", "del", f"{GATEWAY}/24", "dev", "eth0")
        lan.server.run("ip", "addr", "add", "10.77.0.2/24", "dev", "eth0")
        network = Network(node, OURS, isDefaultGateway=True, ipMasq=True, ipam=lan.ipam, **GUARDED)
        result = network.add(pod).ok()
        assert node.addresses("bridge0") == [f"{GATEWAY}/24"]
        assert default_gateway(pod) == GATEWAY
        pod.run("ping", "-c1", "-W5", GATEWAY)
        network.check(pod, result).ok()
        network.delete(pod, result).ok()
        assert len(lan.eventually_said("DHCPRELEASE", 1, 10)) == 1
        assert "veth" not in ruleset(node)
        assert ADDRESS not in ruleset(node)


@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.1.0"])
def test_ours_does_what_the_reference_does(node: Node, other: Node, version: str) -> None:
    printed: list[str] = []
    added: list[dict[str, str]] = []
    deleted: list[dict[str, str]] = []
    for program, host in ((REFERENCE, other), (OURS, node)):
        with a_lan(host) as lan:
            network, pod = Network(host, program, version, ipam=lan.ipam), host.pod()
            for each in (host, pod):
                each.run("sysctl", "-qw", "net.ipv6.conf.default.dad_transmits=0")
            outcome = network.add(pod)
            outcome.ok()
            roles = Roles(host, pod, "bridge0")
            printed.append(normalised(outcome.stdout, roles))
            added.append(snapshot(host, pod, roles))
            network.delete(pod).ok()
            deleted.append(snapshot(host, pod, roles))
            # The reference deletes the port first, and the daemon has nothing to send its message by.
            assert len(lan.said("DHCPRELEASE")) == (program == OURS)
    assert printed[1] == printed[0]
    assert unexplained(*added) == {}
    assert unexplained(*deleted) == {}
