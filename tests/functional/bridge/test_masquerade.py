"""`ipMasq` hides the addresses of pods behind the node's, and ends with the attachment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.functional.bridge.bridge_network import (
    LEGACY,
    OURS,
    Network,
    assert_attached,
    host_local,
    ruleset,
)
from tests.harness import VERSIONS, Node, Sandbox

CURRENT = [version for version in VERSIONS if version not in LEGACY]
BACKENDS = [
    pytest.param({}, id="unsaid"),
    pytest.param({"ipMasqBackend": "iptables"}, id="iptables"),
    pytest.param({"ipMasqBackend": "nftables"}, id="nftables"),
]


@pytest.fixture
def world(node: Node) -> Sandbox:
    """A neighbour of the node that knows the way to the node only."""
    world = node.pod()
    pid = world.netns.split("/")[2]
    node.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", pid)
    for sandbox, name, number in ((node, "uplink", 1), (world, "eth0", 2)):
        sandbox.run("ip", "addr", "add", f"203.0.113.{number}/24", "dev", name)
        sandbox.run("ip", "addr", "add", f"2001:db8:ffff::{number}/64", "dev", name, "nodad")
        sandbox.run("ip", "link", "set", name, "up")
    return world


def reaches(pod: Sandbox, destination: str, *, seconds: int = 20) -> bool:
    """Whether an answer comes in time; duplicate detection on the bridge takes two seconds or more."""
    return pod.run("ping", "-qc1", f"-w{seconds}", destination, check=False).returncode == 0


@pytest.mark.parametrize("version", CURRENT)
@pytest.mark.parametrize("keys", BACKENDS)
def test_masquerade_names_the_pods_address_until_the_delete(
    node: Node, pod: Sandbox, program: str, version: str, keys: dict[str, Any]
) -> None:
    ipam = host_local(node, "10.1.2.0/24")
    network = Network(node, program, version, isDefaultGateway=True, ipMasq=True, ipam=ipam, **keys)
    assert_attached(network, pod, network.add(pod))
    assert "10.1.2.2" in ruleset(node)
    network.delete(pod).ok()
    assert "10.1.2.2" not in ruleset(node)


def test_the_references_objects_are_those_of_the_list(node: Node, pod: Sandbox) -> None:
    ipam = host_local(node, "10.1.2.0/24")
    network = Network(
        node, "bridge", isDefaultGateway=True, ipMasq=True, ipMasqBackend="nftables", ipam=ipam
    )
    network.add(pod).ok()
    shown = node.run("nft", "list", "chain", "inet", "cni_plugins_masquerade", "masq_checks").stdout
    assert shown.count("masquerade comment") == 1


@pytest.mark.parametrize("keys", BACKENDS)
def test_pods_speak_to_the_world_with_the_nodes_address(
    node: Node, pod: Sandbox, world: Sandbox, program: str, keys: dict[str, Any]
) -> None:
    ipam = host_local(node, "10.1.2.0/24", "fd00::/64")
    network = Network(node, program, isDefaultGateway=True, ipMasq=True, ipam=ipam, **keys)
    network.add(pod).ok()
    assert reaches(pod, "203.0.113.2")
    assert reaches(pod, "2001:db8:ffff::2")
    plain = node.pod()
    network.with_(ipMasq=False).add(plain, container_id="dummy-1").ok()
    assert not reaches(plain, "203.0.113.2", seconds=1), "the world has no way back to it"


def test_pods_of_one_network_see_each_others_addresses(node: Node, program: str) -> None:
    node.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    network = Network(
        node, program, isDefaultGateway=True, ipMasq=True, ipam=host_local(node, "10.1.2.0/24")
    )
    pods = [node.pod(), node.pod()]
    for number, pod in enumerate(pods):
        network.add(pod, container_id=f"vm-{number}").ok()
    assert reaches(pods[0], "10.1.2.3")
    assert "10.1.2.2" in pods[1].run("ip", "neigh", "show", "dev", "eth0").stdout


def test_one_of_two_pods_stays_hidden_when_the_other_goes(node: Node, world: Sandbox, program: str) -> None:
    network = Network(
        node, program, isDefaultGateway=True, ipMasq=True, ipam=host_local(node, "10.1.2.0/24")
    )
    pods = [node.pod(), node.pod()]
    for number, pod in enumerate(pods):
        network.add(pod, container_id=f"vm-{number}").ok()
    network.delete(pods[0], container_id="vm-0").ok()
    assert reaches(pods[1], "203.0.113.2")
    text = ruleset(node)
    assert "10.1.2.2" not in text
    assert "10.1.2.3" in text


def test_pods_that_come_and_go_at_once_are_masqueraded_and_leave_no_subnet(node: Node) -> None:
    """The last one of a subnet takes its chain along, just when another one may need it."""
    network = Network(
        node, OURS, isGateway=True, ipMasq=True, ipam=host_local(node, "10.1.2.0/24", "fd00::/64")
    )

    def come_and_go(worker: int) -> list[str]:
        pod, found = node.pod(), list[str]()
        for turn in range(6):
            container = f"vm-{worker}-{turn}"
            result = network.add(pod, container_id=container).ok()
            checked = network.check(pod, result, container_id=container)
            found += [checked.stdout] if checked.code else []
            network.delete(pod, container_id=container).ok()
        return found

    with ThreadPoolExecutor(3) as workers:
        assert list(workers.map(come_and_go, range(3))) == [[], [], []]
    assert "beyond_" not in ruleset(node)


def test_an_unknown_backend_is_refused(node: Node, pod: Sandbox, program: str) -> None:
    ipam = host_local(node, "10.1.2.0/24")
    network = Network(node, program, ipMasq=True, ipMasqBackend="pf", ipam=ipam)
    error = network.add(pod).error()
    assert "pf" in error["msg"]
    assert "masq" in error["msg"].lower()


def test_without_addresses_there_is_nothing_to_hide(node: Node, pod: Sandbox, program: str) -> None:
    network = Network(node, program, ipMasq=True)
    done = network.add(pod)
    if program == OURS:
        expected = "ipMasq: without ipam there are no addresses to masquerade"
        assert (done.error()["code"], done.error()["msg"]) == (7, expected)
    else:
        done.ok()
    assert "masquerade" not in ruleset(node)
    network.delete(pod).ok()


def test_ours_never_touches_tables_of_others(node: Node, pod: Sandbox) -> None:
    foreign = (
        "table ip nat {\n\tchain POSTROUTING {\n\t\ttype nat hook postrouting priority srcnat;\n\t}\n}\n"
    )
    node.run("nft", "-f", "-", input=foreign)
    before = node.run("nft", "list", "table", "ip", "nat").stdout
    network = Network(
        node, OURS, isGateway=True, ipMasq=True, macspoofchk=True, ipam=host_local(node, "10.1.2.0/24")
    )
    network.add(pod).ok()
    tables = set(node.run("nft", "list", "tables").stdout.split("table ")[1:])
    assert {table.strip() for table in tables} == {"ip nat", "bridge cnv_bridge", "inet cnv_masquerade"}
    assert node.run("nft", "list", "table", "ip", "nat").stdout == before
