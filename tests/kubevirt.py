"""Objects as KubeVirt 1.9 has written them into the API of a real server (tests/data/kubevirt/captured).

Pods of launchers at rest, as a migration's target and with a hot-plugged NIC or volume, their
VirtualMachineInstances, and the instance at the five stages of a migration. Those that no end-to-end test
needs are in one compressed file.
"""

from __future__ import annotations

import json
import lzma
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "data/kubevirt/captured"
# The VirtualMachines of which there are an instance and a launcher pod.
MACHINES = (
    "vm-a",
    "vm-br",
    "vm-plugin",
    "vm-primary",
    "vm-primary-br",
    "vm-sidecar",
    "vm-twice",
    "dotted.vm.name",
)


@cache
def _objects() -> dict[str, Any]:
    lines = lzma.decompress((_FOLDER / "more.jsonl.xz").read_bytes()).splitlines()
    objects = {each["name"]: each["object"] for each in map(json.loads, lines)}
    return objects | {path.stem: json.loads(path.read_text()) for path in _FOLDER.glob("*.json")}


def captured(name: str) -> dict[str, Any]:
    """A copy of an object, which the test may change."""
    return deepcopy(_objects()[name])


def started(machine: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod in which a VM has started, and its VirtualMachineInstance."""
    return captured(f"pod-source-{machine}"), captured(f"vmi-{machine}")


def migration(machine: str, stage: str) -> dict[str, Any]:
    """The VirtualMachineInstance at a stage of its migration, such as "1-scheduling"."""
    instance: dict[str, Any] = captured(f"mig-{machine}-{stage}")["vmi"]
    return instance
