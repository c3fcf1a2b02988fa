"""A network configuration on a node, and what every successful ADD of it must leave behind."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import pytest

from tests.harness import Node, Outcome, Sandbox

REFERENCE = "bridge"
OURS = "cnv-bridge"
PROGRAMS = (
    pytest.param(REFERENCE, id="reference"),
    pytest.param(OURS, id="ours"),
)
LEGACY = ("0.1.0", "0.2.0")
"""Versions whose results have no interfaces and at most one address per family."""


def where_the_reference_errs(reason: str) -> pytest.MarkDecorator:
    """Run a test against both programs, knowing (strictly) that the reference fails it."""
    wrong = pytest.param(
        REFERENCE, id="reference", marks=pytest.mark.xfail(reason=reason, raises=AssertionError)
    )
    return pytest.mark.parametrize("program", [wrong, pytest.param(OURS, id="ours")])


def host_local(node: Node, *subnets: str, **more: Any) -> dict[str, Any]:
    """An `ipam` object of the reference's address manager whose leases stay in the test's folder."""
    folder = {"type": "host-local", "dataDir": str(node.folder / "ipam")}
    if len(subnets) == 1:
        return {**folder, "subnet": subnets[0], **more}
    return {**folder, "ranges": [[{"subnet": subnet}] for subnet in subnets], **more}


def leases(node: Node, network: str = "testConfig") -> list[str]:
    """The addresses host-local holds as taken."""
    folder = node.folder / "ipam" / network
    entries = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    return [name for name in entries if name != "lock" and not name.startswith("last_reserved_ip")]


class Network:
    """One configuration, the program that serves it, and the calls a runtime makes with both."""

    def __init__(self, node: Node, program: str, version: str = "1.1.0", /, **keys: Any) -> None:
        self.node = node
        self.program = program
        self.version = version
        self.config: dict[str, Any] = {
            "cniVersion": version,
            "name": "testConfig",
            "type": program,
            "bridge": "bridge0",
            **keys,
        }

    @property
    def bridge(self) -> str:
        return str(self.config["bridge"])

    @property
    def legacy(self) -> bool:
        return self.version in LEGACY

    @property
    def checkable(self) -> bool:
        return self.version not in (*LEGACY, "0.3.0", "0.3.1")

    def with_(self, **keys: Any) -> Network:
        """The same network with other keys."""
        return Network(self.node, self.program, self.version, **{**self._keys(), **keys})

    def with_program(self, program: str) -> Network:
        """The same network after an upgrade or a downgrade of the node."""
        return Network(self.node, program, self.version, **{**self._keys(), "type": program})

    def add(self, pod: Sandbox | str, **call: Any) -> Outcome:
        return self.node.cni(self.program, "ADD", self.config, pod, **call)

    def check(self, pod: Sandbox | str, result: Mapping[str, Any], **call: Any) -> Outcome:
        return self.node.cni(self.program, "CHECK", {**self.config, "prevResult": result}, pod, **call)

    def delete(
        self, pod: Sandbox | str = "", result: Mapping[str, Any] | None = None, **call: Any
    ) -> Outcome:
        config = self.config if result is None else {**self.config, "prevResult": result}
        return self.node.cni(self.program, "DEL", config, pod, **call)

    def _keys(self) -> dict[str, Any]:
        return {key: value for key, value in self.config.items() if key != "cniVersion"}


def ports(node: Sandbox, bridge: str = "bridge0") -> list[str]:
    """The names of the bridge's ports, oldest first."""
    found = [link for link in node.links().values() if link.get("master") == bridge]
    return [link["ifname"] for link in sorted(found, key=lambda link: int(link["ifindex"]))]


def kind(link: Mapping[str, Any] | None) -> str:
    """The kernel's word for what a link is: `bridge`, `veth`; "" for one that is not there."""
    return str(link["linkinfo"]["info_kind"]) if link else ""


def port_flag(node: Sandbox, port: str, flag: str) -> bool:
    link = node.link(port)
    assert link is not None, f"{port} is gone"
    return bool(link["linkinfo"]["info_slave_data"][flag])


def default_gateway(pod: Sandbox, family: str = "-4") -> str:
    """Where the pod's one default route goes; "" without one. It never has a source address."""
    routes = pod.ip(family, "route", "show", "default")
    assert len(routes) <= 1, routes
    assert all("prefsrc" not in route for route in routes), routes
    return str(routes[0]["gateway"]) if routes else ""


def assert_attached(network: Network, pod: Sandbox, outcome: Outcome) -> dict[str, Any]:
    """What holds after every successful ADD to an otherwise empty node; returns the result."""
    result: dict[str, Any] = outcome.ok()
    node, config = network.node, network.config
    has_gateway = bool(config.get("isGateway") or config.get("isDefaultGateway"))
    vlan = config.get("vlan", 0)
    own_link = bool(vlan and has_gateway)
    assert result["cniVersion"] == network.version
    bridge = node.link(network.bridge)
    assert bridge is not None
    assert kind(bridge) == "bridge"
    filtering = bridge["linkinfo"]["info_data"]["vlan_filtering"]
    assert filtering == int(bool(vlan) or "vlanTrunk" in config)
    others = [name for name in node.links() if name not in ("lo", network.bridge)]
    assert len(others) == (3 if own_link else 1), others
    if network.legacy:
        _assert_legacy_result(network, pod, result)
    else:
        assert '"interfaces":' in outcome.stdout
        _assert_interfaces(network, pod, result, own_link=own_link)
    inside = pod.link("eth0")
    assert inside is not None
    assert kind(inside) == "veth"
    if not config.get("disableContainerInterface"):
        assert inside["operstate"] == "UP"
    return result


def _assert_interfaces(network: Network, pod: Sandbox, result: Mapping[str, Any], *, own_link: bool) -> None:
    node = network.node
    interfaces = result["interfaces"]
    names = [interface["name"] for interface in interfaces]
    assert names[0] == network.bridge
    # Whichever was made first, the port and the node's own link into a VLAN.
    assert [names[1]] == [port for port in ports(node, network.bridge) if not is_own_link(network, port)]
    assert names[1].startswith("veth")
    assert names[2] == "eth0"
    assert names[3:] == ([f"{network.bridge}.{network.config['vlan']}"] if own_link else [])
    assert all(len(interface["mac"]) == 17 for interface in interfaces), interfaces
    assert [interface.get("sandbox", "") for interface in interfaces[:3]] == ["", "", pod.netns]
    for interface, sandbox in zip(interfaces, (node, node, pod, node), strict=False):
        link = sandbox.link(interface["name"])
        assert link is not None, interface
        assert link["address"] == interface["mac"]
    assert kind(node.link(names[1])) == "veth"
    if network.config.get("isDefaultGateway") and not own_link:
        assert interfaces[0]["mac"] != interfaces[1]["mac"]
    for address in result.get("ips", []):
        assert address["interface"] == 2


def _assert_legacy_result(network: Network, pod: Sandbox, result: Mapping[str, Any]) -> None:
    assert "interfaces" not in result
    held = {address for family in ("inet", "inet6") for address in pod.addresses("eth0", family=family)}
    assert {result[key]["ip"] for key in ("ip4", "ip6") if key in result} == held


def assert_gone(network: Network, pod: Sandbox) -> None:
    """What holds after every DEL of the node's only attachment."""
    assert pod.link("eth0") is None
    assert network.bridge in network.node.links(), "the bridge is not the attachment's to take away"
    assert [port for port in ports(network.node, network.bridge) if not is_own_link(network, port)] == []


def is_own_link(network: Network, port: str) -> bool:
    """Whether a port is the bridge end of the node's own link into a VLAN, which stays."""
    link = network.node.link(port)
    return link is not None and str(link.get("link", "")).startswith(f"{network.bridge}.")


def within(address: str, subnet: str) -> bool:
    return ipaddress.ip_interface(address).ip in ipaddress.ip_network(subnet)


def ruleset(node: Sandbox) -> str:
    """All of the node's nftables, as text."""
    return node.run("nft", "list", "ruleset").stdout
