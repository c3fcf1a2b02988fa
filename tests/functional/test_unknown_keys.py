"""Mistyped keys: ADD says which and what was meant, `strict` refuses them, nothing else is troubled."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness import Node, Outcome, Sandbox

IPAM = {"type": "static-ip", "subnet": "10.1.0.0/24"}
BRIDGE = {"type": "cnv-bridge", "bridge": "br0"}


def meant(path: str, key: str) -> str:
    return f'{path}: no such key, did you mean "{key}"?'


MISTYPED: list[tuple[dict[str, Any], str]] = [
    ({**BRIDGE, "macspoofcheck": True}, meant("macspoofcheck", "macspoofchk")),
    ({**BRIDGE, "vlanTrunks": []}, meant("vlanTrunks", "vlanTrunk")),
    (
        {**BRIDGE, "ipam": {**IPAM, "excludes": ["10.1.0.2"]}},
        meant("ipam.excludes", "exclude"),
    ),
    (
        {**BRIDGE, "ipam": {"type": "static-ip", "range": "10.1.0.0/24", "range_strat": "10.1.0.9"}},
        meant("ipam.range_strat", "range_start"),
    ),
    ({"type": "masquerade", "port": [{"port": 80}]}, meant("port", "ports")),
    (
        {"type": "masquerade", "guestServices": {"enabled": False, "nameserver": []}},
        meant("guestServices.nameserver", "nameservers"),
    ),
    ({"type": "vm-bridge", "landhpc": True}, meant("landhpc", "lanDHCP")),
    ({"type": "static-ip", "ipam": {**IPAM, "excludes": []}}, meant("ipam.excludes", "exclude")),
]


def call(node: Node, command: str, pod: Sandbox, keys: dict[str, Any], **options: Any) -> Outcome:
    config = {"cniVersion": "1.1.0", "name": "net", **keys}
    return node.cni(config["type"], command, config, pod, unknown_keys=True, **options)


def a_pod(node: Node, keys: dict[str, Any]) -> Sandbox:
    """With an interface for a binding."""
    pod = node.pod()
    if keys["type"] in ("masquerade", "vm-bridge"):
        pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "uplink")
        pod.run("ip", "addr", "add", "10.7.0.2/24", "dev", "eth0")
        pod.run("ip", "link", "set", "eth0", "up")
    return pod


@pytest.mark.parametrize(("keys", "line"), MISTYPED, ids=lambda value: str(value)[:60])
def test_an_add_says_what_was_meant(node: Node, keys: dict[str, Any], line: str) -> None:
    pod = a_pod(node, keys)
    done = call(node, "ADD", pod, keys)
    result = done.ok()
    assert [text for text in done.stderr.splitlines() if "no such key" in text] == [
        f"{keys['type']}: {line}"
    ]
    for command, more in (("CHECK", {"prevResult": result}), ("DEL", {"prevResult": result})):
        done = call(node, command, pod, {**keys, **more})
        done.ok()
        assert "no such key" not in done.stderr


@pytest.mark.parametrize(("keys", "line"), MISTYPED, ids=lambda value: str(value)[:60])
def test_strict_refuses_before_anything_is_made(node: Node, keys: dict[str, Any], line: str) -> None:
    pod = a_pod(node, keys)
    before = pod.links(), set(node.links())
    strict = (
        {**keys, "ipam": {**keys["ipam"], "strict": True}} if "ipam" in keys else {**keys, "strict": True}
    )
    error = call(node, "ADD", pod, {**keys, **strict}).error()
    assert (error["code"], error["msg"]) == (7, f"{line} (strict)")
    assert (pod.links(), set(node.links())) == before
    assert not (node.statedir / "leases.db").exists()
    call(node, "DEL", pod, {**keys, **strict}).ok()


def test_an_attachment_whose_network_becomes_strict_goes_on_working(node: Node) -> None:
    pod, keys = node.pod(), {**BRIDGE, "ipam": {**IPAM, "excludes": "10.1.0.2"}, "vlann": 3}
    result = call(node, "ADD", pod, keys).ok()
    strict = {**keys, "strict": True, "prevResult": result}
    call(node, "CHECK", pod, strict).ok()
    call(node, "STATUS", pod, strict).ok()
    kept = {"cni.dev/valid-attachments": [{"containerID": "dummy-0", "ifname": "eth0"}]}
    call(node, "GC", pod, {**strict, **kept}).ok()
    assert "eth0" in pod.links()
    call(node, "DEL", pod, strict).ok()
    assert "eth0" not in pod.links()


def test_a_small_mtu_and_ipv6_are_refused_before_a_bridge_is_made(node: Node) -> None:
    ranges = {"type": "static-ip", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}
    error = call(node, "ADD", node.pod(), {**BRIDGE, "mtu": 1279, "ipam": ranges}).error()
    assert (error["code"], error["msg"]) == (7, "mtu: 1279 is less than 1280, which an IPv6 range needs")
    assert "br0" not in node.links()
    pod = node.pod()
    for good in ({**BRIDGE, "mtu": 1280, "ipam": ranges}, {**BRIDGE, "mtu": 1000, "ipam": IPAM}):
        call(node, "ADD", pod, good).ok()
        call(node, "DEL", pod, good).ok()
