"""A node changes from the reference plugin to ours, or back, and its attachments live on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.functional.bridge.bridge_network import (
    OURS,
    REFERENCE,
    Network,
    host_local,
    leases,
    ports,
    ruleset,
)
from tests.harness import CHECKABLE, Node, Sandbox, executable

FEATURES: list[Any] = [
    pytest.param({}, id="plain"),
    pytest.param({"macspoofchk": True}, id="macspoofchk"),
    pytest.param({"ipMasq": True, "ipMasqBackend": "iptables"}, id="iptables"),
    pytest.param({"ipMasq": True, "ipMasqBackend": "nftables"}, id="nftables"),
    pytest.param({"macspoofchk": True, "ipMasq": True, "hairpinMode": True, "mtu": 1400}, id="all"),
]


def network(node: Node, program: str, keys: dict[str, Any], version: str = "1.1.0") -> Network:
    ipam = host_local(node, "10.1.2.0/24", "fd00::/64")
    return Network(node, program, version, isDefaultGateway=True, ipam=ipam, **keys)


@pytest.mark.parametrize("keys", FEATURES)
@pytest.mark.parametrize("with_result", [False, True], ids=["alone", "with-prevResult"])
def test_ours_deletes_everything_the_reference_made(
    node: Node, pod: Sandbox, keys: dict[str, Any], *, with_result: bool
) -> None:
    old = network(node, REFERENCE, keys)
    result = old.add(pod).ok()
    mac = result["interfaces"][2]["mac"]
    old.with_program(OURS).delete(pod, result if with_result else None).ok()
    assert pod.link("eth0") is None
    assert ports(node) == []
    assert leases(node) == []
    text = ruleset(node)
    assert "dummy-0" not in text
    assert "10.1.2.2" not in text
    assert mac not in text


@pytest.mark.parametrize("path", ["", "/no/such/netns"], ids=["none", "missing"])
def test_ours_deletes_what_the_reference_left_of_a_vanished_pod(node: Node, path: str) -> None:
    old = network(node, REFERENCE, {"macspoofchk": True, "ipMasq": True})
    pod = node.pod()
    result = old.add(pod).ok()
    pod.run("ip", "link", "del", "eth0")
    old.with_program(OURS).delete(path, result).ok()
    assert leases(node) == []
    text = ruleset(node)
    assert "dummy-0" not in text
    assert "10.1.2.2" not in text


def test_ours_deletes_only_its_own_attachment_among_the_references(node: Node) -> None:
    old = network(node, REFERENCE, {"macspoofchk": True, "ipMasq": True})
    pods = [node.pod(), node.pod()]
    results = [old.add(pod, container_id=f"vm-{n}").ok() for n, pod in enumerate(pods)]
    old.with_program(OURS).delete(pods[0], results[0], container_id="vm-0").ok()
    text = ruleset(node)
    assert "vm-0" not in text
    assert "macspoofchk-vm-1-eth0" in text
    assert "10.1.2.3" in text
    assert pods[1].link("eth0") is not None


@pytest.mark.parametrize("version", CHECKABLE)
@pytest.mark.parametrize("keys", FEATURES)
def test_ours_checks_what_the_reference_made(
    node: Node, pod: Sandbox, version: str, keys: dict[str, Any]
) -> None:
    old = network(node, REFERENCE, keys, version)
    result = old.add(pod).ok()
    assert old.with_program(OURS).check(pod, result).ok() is None
    pod.run("ip", "addr", "del", "10.1.2.2/24", "dev", "eth0")
    assert "10.1.2.2" in old.with_program(OURS).check(pod, result).error()["msg"]


@pytest.mark.parametrize("version", CHECKABLE)
@pytest.mark.parametrize("keys", FEATURES)
def test_the_reference_checks_and_deletes_what_ours_made(
    node: Node, pod: Sandbox, version: str, keys: dict[str, Any]
) -> None:
    new = network(node, OURS, keys, version)
    result = new.add(pod).ok()
    old = new.with_program(REFERENCE)
    assert old.check(pod, result).ok() is None
    old.delete(pod, result).ok()
    assert pod.link("eth0") is None
    assert ports(node) == []
    assert leases(node) == []


def test_what_a_downgrade_left_is_cleaned_when_ours_is_back(node: Node, pod: Sandbox) -> None:
    new = network(node, OURS, {"macspoofchk": True, "ipMasq": True})
    new.add(pod).ok()
    new.with_program(REFERENCE).delete(pod).ok()
    new.delete(pod).ok()
    text = ruleset(node)
    assert "veth" not in text
    assert "10.1.2.2" not in text
    assert list(node.rundir.rglob("attachments/*.json")) == []
    new.add(pod).ok()


def test_both_work_on_one_bridge_side_by_side(node: Node) -> None:
    old = network(node, REFERENCE, {"macspoofchk": True})
    pods = [node.pod(), node.pod()]
    old.add(pods[0], container_id="old").ok()
    old.with_program(OURS).add(pods[1], container_id="new").ok()
    assert pods[0].run("ping", "-qc1", "-w10", "10.1.2.3", check=False).returncode == 0
    assert pods[1].run("ping", "-qc1", "-w10", "10.1.2.1", check=False).returncode == 0
    old.delete(pods[0], container_id="old").ok()
    assert pods[1].run("ping", "-qc1", "-w10", "10.1.2.1", check=False).returncode == 0


# KubeVirt's cluster-network-addons-operator installs cnv-bridge and links `bridge` to it.
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_ours_works_through_a_link_called_bridge(node: Node, pod: Sandbox, *, relative: bool) -> None:
    folder = node.folder / "opt" / "cni" / "bin"
    folder.mkdir(parents=True)
    if relative:
        (folder / "cnv-bridge").symlink_to(executable(OURS))
        (folder / "bridge").symlink_to("cnv-bridge")
    else:
        (folder / "bridge").symlink_to(executable(OURS))
    linked = network(node, str(folder / "bridge"), {"type": "bridge", "macspoofchk": True})
    result = linked.add(pod).ok()
    assert linked.check(pod, result).ok() is None
    linked.with_program(OURS).check(pod, result).ok()
    linked.delete(pod).ok()
    assert ports(node) == []
    assert node.cni(str(folder / "bridge"), "VERSION", {"cniVersion": "1.1.0"}).ok()["supportedVersions"]
