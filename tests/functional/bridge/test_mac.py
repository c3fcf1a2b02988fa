"""The pod's MAC is that of runtimeConfig, args.cni, CNI_ARGS or the lease, in this order, or random."""

from __future__ import annotations

from typing import Any

import pytest

from tests.functional.bridge.bridge_network import Network, assert_attached, host_local, ports
from tests.harness import VERSIONS, Node, Sandbox

BY_ARGS = "02:00:00:00:00:01"
BY_CNI = "02:00:00:00:00:02"
BY_RUNTIME = "02:00:00:00:00:03"

SOURCES = [
    pytest.param({}, BY_ARGS, id="CNI_ARGS"),
    pytest.param({"args": {"cni": {"mac": BY_CNI}}}, BY_CNI, id="args.cni-beats-CNI_ARGS"),
    pytest.param(
        {"args": {"cni": {"mac": BY_CNI}}, "RuntimeConfig": {"mac": BY_RUNTIME}},
        BY_RUNTIME,
        id="runtimeConfig-beats-both",
    ),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("keys", "expected"), SOURCES)
def test_the_wanted_mac_is_set(
    node: Node, pod: Sandbox, program: str, version: str, keys: dict[str, Any], expected: str
) -> None:
    network = Network(node, program, version, ipam=host_local(node, "10.1.2.0/24"), **keys)
    assert_attached(network, pod, network.add(pod, args=f"IgnoreUnknown=1;MAC={BY_ARGS}"))
    assert (pod.link("eth0") or {})["address"] == expected
    network.delete(pod, args=f"IgnoreUnknown=1;MAC={BY_ARGS}").ok()


@pytest.mark.parametrize(
    "keys",
    [{"args": {"cni": {"mac": "nonsense"}}}, {"runtimeConfig": {"mac": "02:00:00:00:00"}}],
    ids=["args.cni", "runtimeConfig"],
)
def test_a_malformed_mac_is_refused_and_quoted(
    node: Node, pod: Sandbox, program: str, keys: dict[str, Any]
) -> None:
    error = Network(node, program, **keys).add(pod).error()
    assert "nonsense" in error["msg"] or "02:00:00:00:00" in error["msg"]
    assert pod.link("eth0") is None
    assert ports(node) == []


def test_a_malformed_mac_in_cni_args_is_refused(node: Node, pod: Sandbox, program: str) -> None:
    error = Network(node, program).add(pod, args="MAC=nonsense").error()
    assert "nonsense" in error["msg"]
    assert pod.link("eth0") is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("FOO", 'ARGS: invalid pair "FOO"'),
        ("A=B=C", 'ARGS: invalid pair "A=B=C"'),
        ("FOO=BAR", 'ARGS: unknown args ["FOO=BAR"]'),
        ("mac=02:00:00:00:00:01", 'ARGS: unknown args ["mac=02:00:00:00:00:01"]'),
    ],
)
def test_arguments_that_mean_nothing_are_refused(
    node: Node, pod: Sandbox, program: str, args: str, message: str
) -> None:
    assert message in Network(node, program).add(pod, args=args).error()["msg"]
    assert pod.link("eth0") is None
    assert "bridge0" not in node.links()


@pytest.mark.parametrize("value", ["1", "true", "True", "TRUE"])
def test_unknown_arguments_are_ignored_when_the_runtime_says_so(
    node: Node, pod: Sandbox, program: str, value: str
) -> None:
    args = f"FOO=BAR;IgnoreUnknown={value};MAC={BY_ARGS}"
    Network(node, program).add(pod, args=args).ok()
    assert (pod.link("eth0") or {})["address"] == BY_ARGS


# What Multus 4.3 sends for a pod whose annotation asks for a MAC and two addresses: its own arguments, then
# the runtime's once more, then the requests,
# whether the network has addresses or not.
MULTUS = (
    "IgnoreUnknown=true;K8S_POD_NAMESPACE=default;K8S_POD_NAME=virt-launcher-vm-a-x2k4p;"
    "K8S_POD_INFRA_CONTAINER_ID=4f3a9b;K8S_POD_UID=0b0f0c3e-4f0a-4b8e-9c55-4a1f1a1b1c1d;"
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=virt-launcher-vm-a-x2k4p;"
    "K8S_POD_INFRA_CONTAINER_ID=4f3a9b;K8S_POD_UID=0b0f0c3e-4f0a-4b8e-9c55-4a1f1a1b1c1d;"
    f"MAC={BY_RUNTIME};IP=10.1.2.3,10.1.2.4"
)


def test_arguments_as_multus_sends_them(node: Node, pod: Sandbox, program: str) -> None:
    network = Network(node, program, "0.3.1", name="tenant-net", deviceID="", pciBusID="")
    result = network.add(pod, ifname="net1", args=MULTUS).ok()
    assert result["interfaces"][2]["mac"] == BY_RUNTIME
    assert (pod.link("net1") or {})["address"] == BY_RUNTIME
    network.delete(pod, ifname="net1", args=MULTUS).ok()
    assert pod.link("net1") is None


def test_the_last_of_two_equal_arguments_counts(node: Node, pod: Sandbox, program: str) -> None:
    Network(node, program).add(pod, args=f"MAC={BY_CNI};MAC={BY_ARGS}").ok()
    assert (pod.link("eth0") or {})["address"] == BY_ARGS


def test_a_list_of_addresses_reaches_the_address_manager_untouched(
    node: Node, pod: Sandbox, program: str
) -> None:
    args = "IgnoreUnknown=1;IP=10.1.2.3/24,10.1.2.4/24;GATEWAY=10.1.2.1"
    result = Network(node, program, ipam={"type": "static"}).add(pod, args=args).ok()
    assert [ip["address"] for ip in result["ips"]] == ["10.1.2.3/24", "10.1.2.4/24"]
    assert pod.addresses("eth0") == ["10.1.2.3/24", "10.1.2.4/24"]
