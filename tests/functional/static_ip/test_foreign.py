"""static-ip as the `ipam` of plugins that are not ours."""

from __future__ import annotations

from typing import Any

import pytest

from tests.functional.static_ip.lease_network import Addresses
from tests.harness import VERSIONS, Node, Sandbox

PLUGINS: list[tuple[str, dict[str, Any]]] = [
    ("bridge", {"bridge": "br0", "isGateway": True}),
    ("macvlan", {"master": "uplink", "linkInContainer": False}),
    ("ptp", {}),
]


@pytest.fixture
def pod(node: Node) -> Sandbox:
    node.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "lan")
    node.run("ip", "link", "set", "uplink", "up")
    return node.pod()


@pytest.mark.parametrize(("plugin", "keys"), PLUGINS, ids=[plugin for plugin, _ in PLUGINS])
def test_a_vm_keeps_its_addresses_under_any_plugin(
    node: Node, pod: Sandbox, plugin: str, keys: dict[str, Any]
) -> None:
    config = {
        "cniVersion": "1.1.0",
        "name": "blue",
        "type": plugin,
        **keys,
        "ipam": {"type": "static-ip", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]},
    }
    named = "IgnoreUnknown=1;VM_NAME=vm1;VM_UID=uid1"
    first = node.cni(plugin, "ADD", config, pod, container_id="c1", args=named).ok()
    addresses = [ip["address"] for ip in first["ips"]]
    assert pod.addresses("eth0") == addresses[:1]
    assert pod.addresses("eth0", family="inet6") == addresses[1:]
    check = {**config, "prevResult": first}
    assert node.cni(plugin, "CHECK", check, pod, container_id="c1", args=named).ok() is None
    node.cni(plugin, "DEL", {**config, "prevResult": first}, pod, container_id="c1", args=named).ok()
    restarted = node.pod()
    again = node.cni(plugin, "ADD", config, restarted, container_id="c2", args=named).ok()
    assert [ip["address"] for ip in again["ips"]] == addresses
    other = node.pod()
    third = node.cni(
        plugin, "ADD", config, other, container_id="c3", args="IgnoreUnknown=1;VM_NAME=vm2"
    ).ok()
    assert not {ip["address"] for ip in third["ips"]} & set(addresses)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_reference_bridge_understands_every_version_of_the_result(
    node: Node, pod: Sandbox, version: str
) -> None:
    config = {
        "cniVersion": version,
        "name": "blue",
        "type": "bridge",
        "bridge": "br0",
        "ipam": {"type": "static-ip", "subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
    }
    answer = node.cni("bridge", "ADD", config, pod).ok()
    (address,) = pod.addresses("eth0")
    assert (answer["ip4"]["ip"] if version in ("0.1.0", "0.2.0") else answer["ips"][0]["address"]) == address
    assert [route for route in pod.ip("route") if route["dst"] == "default"]
    node.cni("bridge", "DEL", config, pod).ok()
    assert Addresses(node).taken() == {}


@pytest.mark.parametrize("plugin", ["bridge", "cnv-bridge"])
@pytest.mark.parametrize("key", ["isGateway", "isDefaultGateway"])
def test_no_vm_gets_the_address_that_the_bridge_has_as_gateway(node: Node, plugin: str, key: str) -> None:
    ranges = [{"range": "10.7.0.0/30"}, {"range": "fd07::/126"}]
    config = {
        "cniVersion": "1.1.0",
        "name": "blue",
        "type": plugin,
        "bridge": "br0",
        key: True,
        "ipam": {"type": "static-ip", "ipRanges": ranges},
    }
    answer = node.cni(plugin, "ADD", config, node.pod(), container_id="c1").ok()
    assert [ip["gateway"] for ip in answer["ips"]] == ["10.7.0.1", "fd07::1"]
    assert answer["ips"][0]["address"] == "10.7.0.2/30"
    error = node.cni(plugin, "ADD", config, node.pod(), container_id="c2").error()
    assert error["details"] == "no IP addresses available in range set: 10.7.0.1-10.7.0.2"
    requested = {**config, "runtimeConfig": {"ips": ["10.7.0.1"]}}
    error = node.cni(plugin, "ADD", requested, node.pod(), container_id="c2").error()
    text = "runtimeConfig.ips[0]: 10.7.0.1 is the gateway of network blue"
    assert (error["code"], error["msg"]) == (7, text)


def test_a_refusal_reaches_the_caller_of_the_plugin(node: Node, pod: Sandbox) -> None:
    config = {
        "cniVersion": "1.1.0",
        "name": "blue",
        "type": "bridge",
        "bridge": "br0",
        "ipam": {"type": "static-ip", "subnet": "10.1.0.0/30"},
    }
    node.cni("bridge", "ADD", config, pod, container_id="c1").ok()
    error = node.cni("bridge", "ADD", config, node.pod(), container_id="c2").error()
    text = "network blue: the only address of 10.1.0.1-10.1.0.2 is taken: 1 in use"
    assert (error["code"], error["msg"]) == (11, f"{text}: give the network a wider range")
    assert error["details"] == "no IP addresses available in range set: 10.1.0.1-10.1.0.2"
