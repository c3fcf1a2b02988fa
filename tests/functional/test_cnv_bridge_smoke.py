"""cnv-bridge at a glance: ADD, CHECK and DEL of every kind, our own address manager too, and many at once.

What it owes the reference bridge in detail is in tests/functional/bridge.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.harness import Node, Outcome, Sandbox, executable, namespace

pytestmark = pytest.mark.every_way

BRIDGE = "cnv-bridge"
KINDS: dict[str, dict[str, Any]] = {
    "l2": {},
    "l2-guarded": {"macspoofchk": True, "dhcpGuard": True, "raGuard": True},
    "host-local": {"isDefaultGateway": True, "ipam": {"type": "host-local", "subnet": "10.1.2.0/24"}},
    "static-ip": {"isDefaultGateway": True, "ipam": {"type": "static-ip", "subnet": "10.1.2.0/24"}},
    "everything": {
        "isDefaultGateway": True,
        "macspoofchk": True,
        "ipspoofchk": True,
        "ipMasq": True,
        "hairpinMode": True,
        "portIsolation": True,
        "mtu": 1400,
        "ipam": {"type": "static-ip", "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]},
    },
}


def configuration(node: Node, **keys: Any) -> dict[str, Any]:
    config = {"cniVersion": "1.1.0", "name": "net1", "type": BRIDGE, "bridge": "br0", **keys}
    if "ipam" in keys:
        config["ipam"] = {**keys["ipam"], "dataDir": str(node.folder / "leases")}
    return config


def left(node: Node) -> list[str]:
    """Everything on the node that belongs to attachments."""
    ports = [name for name in node.links() if name.startswith("veth")]
    records = [path.name for path in node.rundir.glob("attachments/*")]
    elements = node.run("nft", "list", "ruleset").stdout
    return ports + records + [line for line in elements.splitlines() if "veth" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_an_attachment_comes_is_checked_and_goes(node: Node, kind: str) -> None:
    config = configuration(node, **KINDS[kind])
    pod = node.pod()
    result = node.cni(BRIDGE, "ADD", config, pod).ok()
    bridge, host, container = (interface["name"] for interface in result["interfaces"])
    assert (bridge, container) == ("br0", "eth0")
    assert (node.link(host) or {})["master"] == "br0"
    assert (pod.link("eth0") or {})["operstate"] == "UP"
    if "ipam" in config:
        assert pod.addresses("eth0") == [result["ips"][0]["address"]]
        node.run("ping", "-c1", "-w10", result["ips"][0]["address"].split("/")[0])
        pod.run("ping", "-c1", "-w10", "10.1.2.1")
    node.cni(BRIDGE, "CHECK", {**config, "prevResult": result}, pod).ok()
    assert node.cni(BRIDGE, "DEL", {**config, "prevResult": result}, pod).ok() is None
    assert left(node) == []
    assert list(pod.links()) == ["lo"]
    node.cni(BRIDGE, "DEL", config, pod).ok()


def test_two_pods_talk_and_a_spoofed_mac_does_not_get_through(node: Node) -> None:
    config = configuration(node, **KINDS["everything"] | {"portIsolation": False})
    pods = [node.pod(), node.pod()]
    for number, pod in enumerate(pods):
        node.cni(BRIDGE, "ADD", config, pod, container_id=f"vm-{number}").ok()
    (address,) = (a.split("/")[0] for a in pods[1].addresses("eth0"))
    pods[0].run("ping", "-c1", "-w10", address)
    pods[0].run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
    assert pods[0].run("ping", "-c1", "-W1", address, check=False).returncode != 0


def test_called_as_bridge_it_is_the_same_program(node: Node, tmp_path: Any) -> None:
    alias = tmp_path / "bridge"
    alias.symlink_to(executable(BRIDGE))
    pod = node.pod()
    config = configuration(node, type="bridge")
    node.cni(str(alias), "ADD", config, pod).ok()
    node.cni(str(alias), "DEL", config, pod).ok()
    assert left(node) == []


def test_fifty_at_once_on_a_bridge_that_is_not_there_yet(node: Node) -> None:
    config = configuration(node, **KINDS["everything"])
    with ExitStack() as held:
        pods = [Sandbox(held.enter_context(namespace())) for _ in range(50)]

        def add(number: int) -> Outcome:
            return node.cni(BRIDGE, "ADD", config, pods[number], container_id=f"vm-{number}", timeout=120)

        def delete(number: int) -> Outcome:
            return node.cni(BRIDGE, "DEL", config, pods[number], container_id=f"vm-{number}", timeout=120)

        with ThreadPoolExecutor(16) as pool:
            added = [outcome.ok() for outcome in pool.map(add, range(50))]
            assert len({ip["address"] for result in added for ip in result["ips"]}) == 100
            assert len({result["interfaces"][0]["mac"] for result in added}) == 1
            for outcome in pool.map(delete, range(50)):
                outcome.ok()
    assert left(node) == []
