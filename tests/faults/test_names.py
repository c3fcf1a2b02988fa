"""Interface names and paths that mean something to a shell, to nft or to a file system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.functional.bridge.bridge_network import ruleset
from tests.functional.crash.node_state import attachment_state
from tests.harness import Node, Sandbox

pytestmark = pytest.mark.alone

NAMES = [
    *(
        "eth0;reboot",
        '";}',
        "a'b",
        "{x}",
        "#x",
        "$x",
        "\\",
        "\\n",
        "`x`",
        "|x",
        "&x",
        "<x>",
        "*",
        "%d",
        "%s%n",
    ),
    *(
        "\x1b[31m",
        "\x07",
        "é",
        "ß" * 7,
        "all",
        "default",
        "-x",
        "--help",
        "lo0",
        "if.100",
        "..a",
        "~",
        "@none",
        "=",
    ),
    *("x" * 15, "x" * 16, ".", "..", "a/b", "a:b", "a b", "a\tb", "\u2028"),
]
CONFIGS: dict[str, dict[str, Any]] = {
    "cnv-bridge": {
        "bridge": "br0",
        "macspoofchk": True,
        "ipspoofchk": True,
        "dhcpGuard": True,
        "raGuard": True,
    },
    "masquerade": {"ports": [{"port": 80}]},
    "vm-bridge": {},
}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_a_name_everywhere(node: Node, name: str) -> None:
    pod = node.pod()
    config = {"cniVersion": "1.1.0", "name": "net", "type": "cnv-bridge", **CONFIGS["cnv-bridge"]}
    added = node.cni("cnv-bridge", "ADD", config, pod, ifname=name)
    if added.code == 0:
        assert name in pod.links()
        previous = {**config, "prevResult": added.json}
        node.cni("cnv-bridge", "CHECK", previous, pod, ifname=name).ok()
        bind(node, pod, name, added.json)
    else:
        assert added.error()["code"] in (4, 5, 7), added
    node.cni("cnv-bridge", "DEL", config, pod, ifname=name)
    assert list(pod.links()) == ["lo"]
    assert attachment_state(node, pod)._replace(leases=()) == ((), (), (), (), ())
    # Nothing but our own table is there, whatever the name would be as a statement.
    assert {line for line in ruleset(node).splitlines() if line.startswith("table")} <= {
        "table bridge cnv_bridge {"
    }


def bind(node: Node, pod: Sandbox, name: str, result: dict[str, Any]) -> None:
    """Both bindings on top of it, one after the other: they know the pod's interface by the same name."""
    for plugin in ("masquerade", "vm-bridge"):
        config = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": plugin,
            **CONFIGS[plugin],
            "prevResult": result,
        }
        before = pod.link(name)
        outcome = node.cni(plugin, "ADD", config, pod, ifname=name)
        if outcome.code:
            assert outcome.error()["code"] in (4, 5, 7, 11), outcome
        node.cni(plugin, "DEL", config, pod, ifname=name).ok()
        after = pod.link(name)
        assert before is not None
        assert after is not None
        assert (after["ifindex"], after["address"]) == (before["ifindex"], before["address"])


@pytest.fixture
def odd_places(tmp_path: Path) -> dict[str, str]:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    return {
        "fifo": str(tmp_path / "fifo"),
        "file": str(tmp_path / "file"),
        "loop": str(tmp_path / "loop"),
        "folder": str(tmp_path),
        "zero": "/dev/zero",
        "kmsg": "/proc/kmsg",
        "mount namespace": "/proc/self/ns/mnt",
        "own": "/proc/self/ns/net",
        "relative": "etc/passwd",
        "long": "/" + "x" * 5000,
    }


def test_a_netns_path_leads_to_a_namespace_or_to_an_error(node: Node, odd_places: dict[str, str]) -> None:
    config = {"cniVersion": "1.1.0", "name": "net", "type": "cnv-bridge", "bridge": "br0"}
    links = set(node.links()) | {"br0"}
    for what, path in odd_places.items():
        try:
            added = node.cni("cnv-bridge", "ADD", config, path, timeout=20)
        except subprocess.TimeoutExpired:
            pytest.fail(f"CNI_NETNS is {what}: the ADD hangs")
        assert added.error()["code"] in (4, 5, 7, 8), (what, added)
        node.cni("cnv-bridge", "DEL", config, path, timeout=20).ok()
    assert set(node.links()) <= links
