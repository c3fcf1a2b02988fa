"""Whose an attachment is stands in its record, whichever plugin has written it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Node, Sandbox

BRIDGE: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net1", "type": "cnv-bridge", "bridge": "br0"}
LONGEST = ".".join(["v" * 63] * 3 + ["v" * 61])  # 253 characters
ARGS = (
    "IgnoreUnknown=true;K8S_POD_NAMESPACE=prod;"
    f"K8S_POD_NAME={LONGEST};K8S_POD_INFRA_CONTAINER_ID=dummy-0;K8S_POD_UID=3f6b2c1e-1111-4222-8333-444455556666"
)
POD = {"namespace": "prod", "name": LONGEST, "uid": "3f6b2c1e-1111-4222-8333-444455556666"}


def addressed(node: Node, pod: Sandbox, args: str) -> Any:
    ipam = {
        "type": "static-ip",
        "nodeLocal": True,
        "subnet": "10.1.2.0/24",
        "dataDir": str(node.folder / "l"),
    }
    return node.cni("cnv-bridge", "ADD", {**BRIDGE, "ipam": ipam}, pod, args=args).ok()


def recorded(node: Node, plugin: str) -> dict[str, Any]:
    (path,) = Path(node.rundir, "attachments").glob(f"{plugin}-*.json")
    document: dict[str, Any] = json.loads(path.read_text())
    return document


@pytest.mark.parametrize("plugin", ["masquerade", "vm-bridge"])
def test_a_record_names_the_pod_by_which_it_was_made(node: Node, plugin: str) -> None:
    pod = node.pod()
    result = addressed(node, pod, ARGS)
    binding = {"cniVersion": "1.1.0", "name": "net1", "type": plugin, "prevResult": result}
    node.cni(plugin, "ADD", binding, pod, args=ARGS).ok()
    assert recorded(node, "cnv-bridge")["pod"] == POD
    assert recorded(node, plugin)["pod"] == POD
    node.cni(plugin, "CHECK", binding, pod, args=ARGS).ok()
    for name in (plugin, "cnv-bridge"):
        node.cni(name, "DEL", {**BRIDGE, "type": name}, pod, args=ARGS).ok()
    assert not list(Path(node.rundir, "attachments").iterdir())


def test_a_record_names_the_vm_outside_kubernetes(node: Node) -> None:
    addressed(node, node.pod(), f"VM_NAME={LONGEST};VM_NAMESPACE=tenant-a")
    record = recorded(node, "cnv-bridge")
    assert record["vm"] == {"namespace": "tenant-a", "name": LONGEST, "role": "active"}
    assert "pod" not in record
