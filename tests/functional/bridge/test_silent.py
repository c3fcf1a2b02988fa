"""What the reference takes and what then does nothing: refused at ADD, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.functional.bridge.bridge_network import OURS, Network, host_local
from tests.harness import Node, Sandbox

EFFECTLESS: list[tuple[dict[str, Any], str]] = [
    ({"ipMasq": True}, "ipMasq: without ipam there are no addresses to masquerade"),
    ({"vlanTrunk": [{}]}, "vlanTrunk[0]: neither id nor minID and maxID"),
    ({"vlanTrunk": [{"id": 7}, {"x": 1}]}, "vlanTrunk[1]: neither id nor minID and maxID"),
]


def goes_on(node: Node, pod: Sandbox, ours: Network, result: Mapping[str, Any]) -> None:
    """All commands but ADD work on an attachment whose configuration an ADD would refuse."""
    ours.check(pod, result).ok()
    node.cni(OURS, "STATUS", ours.config).ok()
    kept = {"cni.dev/valid-attachments": [{"containerID": "dummy-0", "ifname": "eth0"}]}
    node.cni(OURS, "GC", {**ours.config, **kept}).ok()
    assert "eth0" in pod.links()
    ours.delete(pod, result).ok()
    assert list(pod.links()) == ["lo"]


@pytest.mark.parametrize(("keys", "message"), EFFECTLESS, ids=lambda value: str(value)[:40])
def test_what_has_no_effect_is_refused(node: Node, pod: Sandbox, keys: dict[str, Any], message: str) -> None:
    error = Network(node, OURS, **keys).add(pod, unknown_keys=True).error()
    assert (error["code"], error["msg"]) == (7, message)
    assert "bridge0" not in node.links()
    assert list(pod.links()) == ["lo"]


def test_an_attachment_of_the_reference_with_such_a_key_goes_on_working(node: Node, pod: Sandbox) -> None:
    network = Network(node, "bridge", ipMasq=True)
    result = network.add(pod).ok()
    goes_on(node, pod, network.with_program(OURS), result)


@pytest.mark.parametrize("whose", ["bridge0", "uplink"])
@pytest.mark.parametrize("source", ["runtimeConfig", "args.cni", "CNI_ARGS"])
def test_a_mac_of_the_host_is_refused(node: Node, pod: Sandbox, whose: str, source: str) -> None:
    node.run("ip", "link", "add", "bridge0", "address", "02:00:00:00:00:aa", "type", "bridge")
    node.run("ip", "link", "add", "uplink", "master", "bridge0", "type", "veth", "peer", "name", "wire")
    mac = str(node.links()[whose]["address"])
    keys: dict[str, Any] = {}
    if source != "CNI_ARGS":
        keys = (
            {"runtimeConfig": {"mac": mac}} if source == "runtimeConfig" else {"args": {"cni": {"mac": mac}}}
        )
    args = f"MAC={mac}" if source == "CNI_ARGS" else ""
    error = Network(node, OURS, **keys).add(pod, args=args).error()
    of = "bridge bridge0" if whose == "bridge0" else "uplink on bridge0"
    assert (error["code"], error["msg"]) == (
        7,
        f"mac {mac}: {of} has it, so that no frame would come to the container",
    )
    assert list(pod.links()) == ["lo"]
    assert not list((node.rundir / "attachments").glob("*.json"))
    # What is known from behind a port is not the host's.
    far = str(node.links()["wire"]["address"])
    network = Network(node, OURS, runtimeConfig={"mac": far})
    network.add(pod).ok()
    network.delete(pod).ok()


def test_an_attachment_of_the_reference_with_the_bridges_mac_goes_on_working(
    node: Node, pod: Sandbox
) -> None:
    mac = "02:00:00:00:00:aa"
    node.run("ip", "link", "add", "bridge0", "address", mac, "type", "bridge")
    network = Network(node, "bridge", runtimeConfig={"mac": mac})
    result = network.add(pod).ok()
    goes_on(node, pod, network.with_program(OURS), result)


OF_THE_OLDER: list[Any] = [
    {"ipMasq": True},
    # That version took it for a trunk without VLANs.
    pytest.param({"vlanTrunk": [dict[str, int]()]}, marks=pytest.mark.vlan),
    {"runtimeConfig": {"mac": "02:00:00:00:00:aa"}},
    {"macspoofcheck": True, "excludes": []},
]


@pytest.mark.alone
@pytest.mark.parametrize("keys", OF_THE_OLDER, ids=str)
def test_an_attachment_of_the_older_version_goes_on_working(
    node: Node, pod: Sandbox, older_programs: Path, keys: dict[str, Any]
) -> None:
    """With keys that an ADD refuses today, and with unknown ones under `strict`."""
    filtering = ("vlan_filtering", "1") if "vlanTrunk" in keys else ()
    node.run("ip", "link", "add", "bridge0", "address", "02:00:00:00:00:aa", "type", "bridge", *filtering)
    older = Network(node, str(older_programs / OURS), **keys).with_(type=OURS)
    result = older.add(pod).ok()
    ours = older.with_program(OURS).with_(type=OURS, strict=True)
    refused = ours.add(node.pod(), container_id="other", unknown_keys=True).error()
    assert refused["code"] == 7
    goes_on(node, pod, ours, result)
    assert not list((node.rundir / "attachments").glob("*.json"))


def test_another_gateway_on_the_bridge_is_named_with_its_remedy(node: Node, pod: Sandbox) -> None:
    node.run("ip", "link", "add", "bridge0", "type", "bridge")
    node.run("ip", "addr", "add", "10.40.0.1/24", "dev", "bridge0")
    network = Network(node, OURS, isGateway=True, ipam=host_local(node, "10.44.0.0/24"))
    error = network.add(pod).error()
    assert error["msg"].endswith('"bridge0" already has an IP address different from 10.44.0.1/24')
    remedy = "forceAddress: true replaces it, or take another bridge"
    assert error["details"] == f"bridge0 has 10.40.0.1/24 ({remedy})"


@pytest.mark.parametrize(
    ("item", "details"),
    [
        ({"minID": 200, "maxID": 100}, "vlanTrunk[1]: minID 200 is greater than maxID 100"),
        ({"minID": 0, "maxID": 100}, "vlanTrunk[1].minID: 0 is not between 1 and 4094"),
        ({"minID": 1, "maxID": 5000}, "vlanTrunk[1].maxID: 5000 is not between 1 and 4094"),
        ({"minID": 1}, "vlanTrunk[1].maxID: required"),
        ({"id": 4095}, "vlanTrunk[1].id: 4095 is not between 1 and 4094"),
    ],
)
def test_a_wrong_trunk_is_named_by_its_place(
    node: Node, pod: Sandbox, item: dict[str, Any], details: str
) -> None:
    error = Network(node, OURS, vlanTrunk=[{"id": 7}, item]).add(pod).error()
    assert (error["code"], error["details"]) == (7, details)
