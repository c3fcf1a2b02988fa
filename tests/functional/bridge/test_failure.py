"""An ADD that fails leaves nothing of its attachment, whichever step it was that failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.functional.bridge.bridge_network import (
    OURS,
    Network,
    host_local,
    leases,
    ports,
    ruleset,
    where_the_reference_errs,
)
from tests.functional.bridge.ipam import ScriptedIpam
from tests.harness import Node, Sandbox

pytestmark = pytest.mark.every_way

NO_ROLLBACK = "it leaves its port when an ADD fails"
SUBNET = "10.1.2.0/24"


def assert_nothing_left(node: Node, pod: Sandbox, container_id: str = "dummy-0") -> None:
    assert list(pod.links()) == ["lo"]
    assert ports(node) == []
    assert leases(node) == []
    text = ruleset(node)
    assert container_id not in text
    assert "veth" not in text
    assert records(node) == []


def records(node: Node) -> list[Path]:
    """What our own plugin remembers of attachments."""
    return sorted(path for path in node.rundir.rglob("attachments/*") if path.suffix == ".json")


@pytest.fixture
def ipam(node: Node) -> ScriptedIpam:
    return ScriptedIpam(node)


def test_an_address_is_given_back_when_the_gateway_conflicts(node: Node, program: str) -> None:
    node.run("ip", "link", "add", "bridge0", "type", "bridge")
    node.run("ip", "addr", "add", "10.9.9.1/8", "dev", "bridge0")
    network = Network(node, program, isGateway=True, ipam=host_local(node, SUBNET))
    error = network.add(node.pod()).error()
    assert '"bridge0" already has an IP address different from 10.1.2.1/24' in error["msg"]
    assert leases(node) == []


@where_the_reference_errs(NO_ROLLBACK)
def test_a_gateway_that_conflicts_leaves_nothing(node: Node, pod: Sandbox, program: str) -> None:
    node.run("ip", "link", "add", "bridge0", "type", "bridge")
    node.run("ip", "addr", "add", "10.9.9.1/8", "dev", "bridge0")
    ipam = host_local(node, SUBNET)
    network = Network(node, program, isGateway=True, macspoofchk=True, ipMasq=True, ipam=ipam)
    network.add(pod).error()
    assert_nothing_left(node, pod)
    assert node.addresses("bridge0") == ["10.9.9.1/8"]


@where_the_reference_errs(NO_ROLLBACK)
def test_an_address_manager_that_refuses_leaves_nothing(
    node: Node, pod: Sandbox, program: str, ipam: ScriptedIpam
) -> None:
    ipam.refuses("ADD", 123, "the pool is closed", "come back on Monday")
    network = Network(node, program, macspoofchk=True, ipam=ipam.config)
    network.add(pod, cni_path=ipam.cni_path).error()
    assert_nothing_left(node, pod)


def test_a_refusal_of_the_address_manager_is_passed_on(
    node: Node, pod: Sandbox, program: str, ipam: ScriptedIpam
) -> None:
    ipam.refuses("ADD", 123, "the pool is closed", "come back on Monday")
    error = Network(node, program, ipam=ipam.config).add(pod, cni_path=ipam.cni_path).error()
    assert (error["code"], error["msg"]) == (123, "the pool is closed")
    assert error["details"] == "come back on Monday"


@pytest.mark.parametrize(
    ("stdout", "code", "message"),
    [
        ("", 1, "netplugin failed with no error message"),
        ("not json", 1, 'netplugin failed but error parsing its diagnostic message "not json"'),
    ],
    ids=["silent", "garbage"],
)
def test_an_address_manager_that_breaks_is_reported(
    node: Node, pod: Sandbox, program: str, ipam: ScriptedIpam, stdout: str, code: int, message: str
) -> None:
    (ipam.folder / "ADD.json").write_text(stdout)
    (ipam.folder / "ADD.exit").write_text(str(code))
    error = Network(node, program, ipam=ipam.config).add(pod, cni_path=ipam.cni_path).error()
    assert message in error["msg"]


@where_the_reference_errs(NO_ROLLBACK)
def test_a_missing_address_manager_leaves_nothing(node: Node, pod: Sandbox, program: str) -> None:
    Network(node, program, ipam={"type": "no-such-ipam"}).add(pod).error()
    assert_nothing_left(node, pod)


def test_a_missing_address_manager_is_named(node: Node, pod: Sandbox, program: str) -> None:
    path = str(node.folder)
    error = Network(node, program, ipam={"type": "no-such-ipam"}).add(pod, cni_path=path).error()
    assert f'failed to find plugin "no-such-ipam" in path [{path}]' in error["msg"]


def test_an_address_manager_outside_the_path_is_refused(node: Node, pod: Sandbox, program: str) -> None:
    error = Network(node, program, ipam={"type": "../bin/sh"}).add(pod).error()
    assert "invalid plugin name: ../bin/sh" in error["msg"]


@where_the_reference_errs(NO_ROLLBACK)
def test_a_route_that_cannot_be_added_leaves_nothing(node: Node, pod: Sandbox, program: str) -> None:
    ipam = host_local(node, SUBNET, routes=[{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}])
    error = Network(node, program, macspoofchk=True, ipMasq=True, ipam=ipam).add(pod).error()
    assert "198.51.100.0" in error["msg"]
    assert_nothing_left(node, pod)


@where_the_reference_errs(NO_ROLLBACK)
def test_an_mtu_the_kernel_refuses_leaves_nothing(node: Node, pod: Sandbox, program: str) -> None:
    node.run("ip", "link", "add", "bridge0", "type", "bridge")
    ipam = host_local(node, "fd00::/64")
    # IPv6 wants 1280 at least; the link itself would do with less.
    Network(node, program, mtu=1000, ipam=ipam).add(pod).error()
    assert_nothing_left(node, pod)


def test_without_nft_a_guarded_port_is_made_or_nothing_is(node: Node, pod: Sandbox) -> None:
    empty = node.folder / "empty"
    empty.mkdir()
    network = Network(node, OURS, macspoofchk=True, ipam=host_local(node, SUBNET))
    outcome = network.add(pod, within=("/usr/bin/env", f"PATH={empty}"))
    if outcome.code == 0:
        port = outcome.json["interfaces"][1]["name"]
        assert port in ruleset(node)
    else:
        assert "nft" in outcome.error()["msg"]
        assert_nothing_left(node, pod)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_same_add_succeeds_once_the_obstacle_is_gone(
    node: Node, pod: Sandbox, ipam: ScriptedIpam, moment: str
) -> None:
    network = Network(node, OURS, macspoofchk=True, isGateway=moment == "after", ipam=ipam.config)
    if moment == "before":
        ipam.refuses("ADD", 11, "not now")
    else:
        node.run("ip", "link", "add", "bridge0", "type", "bridge")
        node.run("ip", "addr", "add", "10.9.9.1/8", "dev", "bridge0")
    network.add(pod, cni_path=ipam.cni_path).error()
    if moment == "before":
        answer = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.9/24", "gateway": "10.1.2.1"}]}
        ipam.answers("ADD", answer)
    else:
        node.run("ip", "addr", "del", "10.9.9.1/8", "dev", "bridge0")
    network.add(pod, cni_path=ipam.cni_path).ok()
    assert pod.addresses("eth0") == ["10.1.2.9/24"]


def test_an_address_manager_is_asked_to_release_what_it_gave(
    node: Node, pod: Sandbox, program: str, ipam: ScriptedIpam
) -> None:
    answer = {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.1.2.9/24"}],
        "routes": [{"dst": "10.0.0.0/8", "gw": "9.9.9.9"}],
    }
    ipam.answers("ADD", answer)
    Network(node, program, ipam=ipam.config).add(pod, cni_path=ipam.cni_path).error()
    assert ipam.commands == ["ADD", "DEL"]
    add, delete = ipam.calls
    assert add[1:4] == delete[1:4] == ("dummy-0", "eth0", pod.netns)
    assert add.config["bridge"] == "bridge0"


@where_the_reference_errs("it looks at the namespace after everything has been made")
def test_the_nodes_own_namespace_is_refused_before_anything_is_made(node: Node, program: str) -> None:
    error = Network(node, program).add(node).error()
    assert error["code"] == 8
    assert "plugin's netns and netns from CNI_NETNS should not be the same" in error["msg"]
    assert list(node.links()) == ["lo"]


def test_the_nodes_own_namespace_is_allowed_when_overridden(node: Node, program: str) -> None:
    network = Network(node, program)
    network.add(node, env={"CNI_NETNS_OVERRIDE": "1"}).ok()
    assert "eth0" in node.links()
    network.delete(node, env={"CNI_NETNS_OVERRIDE": "TRUE"}).ok()
    assert "eth0" not in node.links()


def test_a_delete_in_the_nodes_own_namespace_touches_nothing_there(node: Node) -> None:
    node.run("ip", "link", "add", "eth0", "type", "bridge")
    Network(node, OURS).delete(node).ok()
    assert "eth0" in node.links()


@pytest.mark.parametrize("path", ["/no/such/netns", "/etc/hostname"], ids=["missing", "plain-file"])
def test_a_namespace_that_cannot_be_opened_is_refused_by_path(node: Node, program: str, path: str) -> None:
    error = Network(node, program).add(path).error()
    assert path in error["msg"]
    assert ports(node) == []


# A bridge made without filtering ignores VLANs, whether the kernel could filter them or not.
@pytest.mark.parametrize("keys", [{"vlan": 33}, {"vlanTrunk": [{"id": 33}]}], ids=["vlan", "trunk"])
def test_a_vlan_on_a_bridge_that_does_not_filter_is_refused(
    node: Node, pod: Sandbox, keys: dict[str, Any]
) -> None:
    node.run("ip", "link", "add", "bridge0", "type", "bridge")
    error = Network(node, OURS, **keys).add(pod).error()
    assert "bridge bridge0 does not filter VLANs" in error["msg"]
    assert "vlan_filtering 1" in error["msg"]
    assert_nothing_left(node, pod)


def test_an_ipv6_address_of_another_pod_is_noticed(node: Node, program: str) -> None:
    addresses = [{"address": "2001:db8::5/64", "gateway": "2001:db8::1"}]
    ipam = {"type": "static", "addresses": addresses}
    network = Network(node, program, enabledad=True, ipam=ipam)
    holder = node.pod()
    network.with_(enabledad=False).add(holder).ok()
    error = network.add(node.pod(), container_id="dummy-1").error()
    assert "2001:db8::5" in error["msg"]
    assert "dad" in error["msg"].lower() or "duplicate" in error["msg"].lower()


def test_a_full_pool_is_reported_in_the_address_managers_words(node: Node, program: str) -> None:
    network = Network(node, program, ipam=host_local(node, "10.1.2.0/30"))
    network.add(node.pod()).ok()
    error = network.add(node.pod(), container_id="dummy-1").error()
    assert error["code"] == 999
    assert "no IP addresses available in range set: 10.1.2.1-10.1.2.2" in error["msg"]
    assert len(leases(node)) == 1
