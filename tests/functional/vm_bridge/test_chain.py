"""Behind cnv-bridge in one list: CHECK of the whole list looks behind what stands in for the interface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.functional.bridge.bridge_network import host_local
from tests.functional.bridge.test_cnitool import Cnitool
from tests.harness import Node, Sandbox, cni_path_of_all

SWITCHES = dict.fromkeys(("macspoofchk", "ipspoofchk", "portIsolation", "isDefaultGateway"), True)


class Bound(NamedTuple):
    """A pod on a guarded port, whose place a VM has taken."""

    node: Node
    pod: Sandbox
    tool: Cnitool

    def check(self) -> str:
        """What CHECK complains about, "" if nothing."""
        done = self.tool.run("check", self.pod)
        return "" if done.code == 0 else done.stdout + done.stderr

    @property
    def port(self) -> str:
        (port,) = (link["ifname"] for link in self.node.ip("link") if link["ifname"].startswith("veth"))
        return str(port)


@pytest.fixture(params=["addresses", "none"])
def bound(node: Node, request: pytest.FixtureRequest) -> Iterator[Bound]:
    pod = node.pod()
    ipam = {"ipam": host_local(node, "10.244.0.0/24", "fd99::/64", dataDir=str(node.folder / "ipam"))}
    below = {"type": "cnv-bridge", "bridge": "br1", "mtu": 1400, **SWITCHES}
    if request.param == "addresses":
        below |= ipam
    else:
        below |= {"isDefaultGateway": False, "ipspoofchk": False}
    tool = Cnitool(node, "net", below, {"type": "vm-bridge"})
    tool.run("add", pod).ok()
    yield Bound(node, pod, tool)
    assert tool.run("del", pod).code == 0
    assert "eth0" not in pod.links()


@pytest.mark.parametrize("lan_dhcp", [False, True])
def test_an_address_that_has_to_be_renewed_is_not_taken_over(node: Node, lan_dhcp: bool) -> None:
    """The reference's `dhcp` renews its lease through the pod's interface."""
    programs = node.folder / "bin"
    programs.mkdir()
    answer = '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.2/16"}]}'
    (programs / "dhcp").write_text(f"#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\necho '{answer}'\n")
    (programs / "dhcp").chmod(0o755)
    pod, common = node.pod(), {"cniVersion": "1.0.0", "name": "net"}
    path = f"{programs}:{cni_path_of_all()}"
    bridge = {**common, "type": "cnv-bridge", "bridge": "br1", "ipam": {"type": "dhcp"}}
    result = node.cni("cnv-bridge", "ADD", bridge, pod, cni_path=path).ok()
    wire = {**common, "type": "vm-bridge", "prevResult": result, "lanDHCP": lan_dhcp}
    before = pod.links()
    done = node.cni("vm-bridge", "ADD", wire, pod, cni_path=path)
    if lan_dhcp:
        done.ok()
    else:
        error = done.error()
        assert error["code"] == 7
        assert error["msg"].startswith("eth0: ipam dhcp cannot renew its lease")
        assert "lanDHCP" in error["msg"]
        assert pod.links() == before
    node.cni("vm-bridge", "DEL", wire, pod, cni_path=path).ok()
    node.cni("cnv-bridge", "DEL", bridge, pod, cni_path=path).ok()
    assert list(pod.links()) == ["lo"]


def test_all_is_as_added(bound: Bound) -> None:
    assert bound.check() == ""


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("node ip link set PORT nomaster", "is not attached"),
        ("node ip link set PORT mtu 1300", "mtu of"),
        ("node ip link set PORT down", "is down"),
        ("node bridge link set dev PORT isolated off", "isolation of"),
        ("node bridge link set dev PORT hairpin on", "hairpin mode of"),
        # An agent would have put them back.
        pytest.param("node nft flush ruleset", "macspoofchk", marks=pytest.mark.alone),
        ("pod ip link del eth0-nic", "Container interface eth0, whose place a VM has taken, not found"),
        ("pod ip link set eth0 address 0a:00:00:00:00:99", "doesn't match container Mac"),
        ("pod ip link set eth0-nic down", "eth0-nic is down"),
        ("pod ip link del eth0", "eth0 not found"),
    ],
)
def test_what_is_not_as_added_is_seen(bound: Bound, spoil: str, message: str) -> None:
    where, *command = spoil.replace("PORT", bound.port).split()
    (bound.node if where == "node" else bound.pod).run(*command)
    assert message in bound.check()
