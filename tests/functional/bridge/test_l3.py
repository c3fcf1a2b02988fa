"""Layer 3: ADD puts the addresses and routes of IPAM into the pod, and gateways on the bridge."""

from __future__ import annotations

from typing import Any

import pytest

from tests.functional.bridge.bridge_network import (
    LEGACY,
    OURS,
    Network,
    assert_attached,
    assert_gone,
    default_gateway,
    host_local,
    leases,
    within,
)
from tests.harness import VERSIONS, Node, Sandbox

V4 = ("10.1.2.0/24",)
V6 = ("2001:db8::/64",)
DUAL = ("192.168.0.0/24", "fd00::/64")
TRIPLE = (*DUAL, "2001:db8::/64")


def gateway(subnet: str) -> str:
    """The first address of a subnet, with its length."""
    base, length = subnet.split("/")
    return f"{base[:-1] if base.endswith('.0') else base}1/{length}"


CASES = [
    pytest.param(version, subnets, id=f"{version}-{name}")
    for version in VERSIONS
    for name, subnets in {"v4": V4, "v6": V6, "dual": DUAL, "triple": TRIPLE}.items()
    if subnets != TRIPLE or version not in LEGACY  # those are refused: see the next test
]


@pytest.mark.parametrize(("version", "subnets"), CASES)
def test_pods_get_addresses_and_the_bridge_their_gateways(
    node: Node, pod: Sandbox, program: str, version: str, subnets: tuple[str, ...]
) -> None:
    network = Network(node, program, version, isDefaultGateway=True, ipam=host_local(node, *subnets))
    result = assert_attached(network, pod, network.add(pod))
    for family, shown, letter in (("inet", "-4", "."), ("inet6", "-6", ":")):
        wanted = [subnet for subnet in subnets if letter in subnet]
        assert sorted(node.addresses("bridge0", family=family)) == sorted(gateway(item) for item in wanted)
        held = pod.addresses("eth0", family=family)
        assert len(held) == len(wanted)
        assert all(any(within(address, subnet) for address in held) for subnet in wanted)
        assert default_gateway(pod, shown) == (gateway(wanted[0]).split("/")[0] if wanted else "")
    if network.checkable:
        assert network.check(pod, result).ok() is None
    network.delete(pod).ok()
    assert_gone(network, pod)
    assert leases(node) == []
    network.delete(pod).ok()


@pytest.mark.parametrize("version", LEGACY)
def test_the_oldest_versions_take_one_address_of_each_family(
    node: Node, pod: Sandbox, program: str, version: str
) -> None:
    network = Network(node, program, version, isDefaultGateway=True, ipam=host_local(node, *TRIPLE))
    expected = f"CNI version {version} does not support more than 1 address per family"
    assert expected in network.add(pod).error()["msg"]
    assert expected in network.delete(pod).error()["msg"]


@pytest.mark.parametrize("version", VERSIONS)
def test_name_servers_of_the_address_manager_are_in_the_result(
    node: Node, pod: Sandbox, program: str, version: str
) -> None:
    resolv = node.folder / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.0\n")
    ipam = host_local(node, *V4, resolvConf=str(resolv))
    network = Network(node, program, version, isDefaultGateway=True, ipam=ipam)
    result = assert_attached(network, pod, network.add(pod))
    assert result["dns"]["nameservers"] == ["192.0.2.0"]


def test_resolver_settings_of_the_network_replace_those_of_the_address_manager(
    node: Node, pod: Sandbox, program: str
) -> None:
    resolv = node.folder / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.0\nsearch example.org\n")
    wanted = {"nameservers": ["192.0.2.1"], "domain": "a.example", "search": ["b"], "options": ["ndots:2"]}
    ipam = host_local(node, *V4, resolvConf=str(resolv))
    result = Network(node, program, ipam=ipam, dns=wanted).add(pod).ok()
    assert result["dns"] == wanted


@pytest.mark.parametrize("version", VERSIONS)
def test_deleting_what_was_never_added_succeeds(
    node: Node, pod: Sandbox, program: str, version: str
) -> None:
    network = Network(node, program, version, isDefaultGateway=True, ipam=host_local(node, *V4))
    assert network.delete(pod).ok() is None
    assert pod.link("eth0") is None


@pytest.mark.parametrize("key", ["isGateway", "isDefaultGateway"])
def test_forwarding_is_switched_on_for_the_families_the_bridge_is_gateway_of(
    node: Node, pod: Sandbox, program: str, key: str
) -> None:
    keys: dict[str, Any] = {key: True}
    Network(node, program, ipam=host_local(node, *DUAL), **keys).add(pod).ok()
    shown = node.run("sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding").stdout.split()
    assert shown == ["1", "1"]


def test_without_a_gateway_nothing_of_the_host_changes(node: Node, pod: Sandbox, program: str) -> None:
    result = Network(node, program, ipam=host_local(node, *V4)).add(pod).ok()
    assert node.addresses("bridge0") == []
    assert default_gateway(pod) == ""
    assert "routes" not in result
    assert node.run("sysctl", "-n", "net.ipv4.ip_forward").stdout.strip() == "0"


def test_a_default_route_of_the_address_manager_is_not_doubled(
    node: Node, pod: Sandbox, program: str
) -> None:
    ipam = host_local(node, *V4, routes=[{"dst": "0.0.0.0/0", "gw": "10.1.2.9"}])
    Network(node, program, isDefaultGateway=True, ipam=ipam).add(pod).ok()
    assert default_gateway(pod) == "10.1.2.9"


def test_routes_keep_their_priority_and_table(node: Node, pod: Sandbox, program: str) -> None:
    routes: list[dict[str, Any]] = [
        {"dst": "198.51.100.0/24"},
        {"dst": "203.0.113.0/24", "gw": "10.1.2.7", "priority": 77},
        {"dst": "192.0.2.0/24", "table": 100},
        {"dst": "192.0.2.128/25", "gw": "10.1.2.7", "mtu": 1300, "advmss": 1200},
    ]
    addresses = [{"address": "10.1.2.3/24", "gateway": "10.1.2.1"}]
    ipam = {"type": "static", "addresses": addresses, "routes": routes}
    result = Network(node, program, ipam=ipam).add(pod).ok()
    assert result["routes"] == routes
    shown = {route["dst"]: route for route in pod.ip("-4", "route", "show", "table", "all", "proto", "boot")}
    assert shown["198.51.100.0/24"]["gateway"] == "10.1.2.1"
    assert shown["203.0.113.0/24"]["gateway"] == "10.1.2.7"
    assert shown["203.0.113.0/24"]["metric"] == 77
    assert shown["192.0.2.0/24"]["table"] == "100"


def test_an_ipv6_pod_on_a_host_that_disables_ipv6_by_default_gets_its_addresses(
    node: Node, pod: Sandbox, program: str
) -> None:
    pod.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    Network(node, program, isDefaultGateway=True, ipam=host_local(node, *DUAL)).add(pod).ok()
    assert pod.addresses("eth0", family="inet6") == ["fd00::2/64"]
    assert pod.run("sysctl", "-n", "net.ipv6.conf.eth0.keep_addr_on_down").stdout.strip() == "1"


def test_announcements_of_a_pods_addresses_are_on_and_duplicate_detection_off(
    node: Node, pod: Sandbox, program: str
) -> None:
    Network(node, program, ipam=host_local(node, *DUAL)).add(pod).ok()
    shown = pod.run("sysctl", "-n", "net.ipv4.conf.eth0.arp_notify", "net.ipv6.conf.eth0.accept_dad").stdout
    assert shown.split() == ["1", "0"]


def test_an_address_manager_that_gives_no_address_is_refused(node: Node, pod: Sandbox, program: str) -> None:
    ipam: dict[str, Any] = {"type": "static", "addresses": []}
    error = Network(node, program, ipam=ipam).add(pod).error()
    assert "IPAM plugin returned missing IP config" in error["msg"]


def test_ours_reports_the_mtu(node: Node, pod: Sandbox) -> None:
    result = Network(node, OURS, mtu=1400, ipam=host_local(node, *V4)).add(pod).ok()
    assert result["interfaces"][2]["mtu"] == 1400
