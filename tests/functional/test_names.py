"""Names as long as Kubernetes lets them be, all in one label, through every executable."""

from __future__ import annotations

from typing import Any

import pytest

from tests.functional.test_unknown_keys import a_pod, call
from tests.harness import Node

LONGEST = "a" * 253
IPAM = {"type": "static-ip", "subnet": "10.1.0.0/24", "nodeLocal": True}
PLUGINS: list[dict[str, Any]] = [
    {"type": "cnv-bridge", "bridge": "br0", "ipam": IPAM},
    {"type": "static-ip", "ipam": IPAM},
    {"type": "masquerade"},
    {"type": "vm-bridge"},
]
ARGS = {
    "vm": f"VM_NAMESPACE={'n' * 63};VM_NAME={LONGEST};VM_UID=u1",
    "pod": f"K8S_POD_NAMESPACE={'n' * 63};K8S_POD_NAME={LONGEST};K8S_POD_UID=u1;IgnoreUnknown=1",
}


@pytest.mark.parametrize("args", ARGS.values(), ids=ARGS)
@pytest.mark.parametrize("keys", PLUGINS, ids=lambda keys: keys["type"])
def test_a_name_may_have_253_characters_in_one_label(node: Node, keys: dict[str, Any], args: str) -> None:
    pod = a_pod(node, keys)
    before = set(pod.links())
    result = call(node, "ADD", pod, keys, args=args).ok()
    call(node, "CHECK", pod, {**keys, "prevResult": result}, args=args).ok()
    call(node, "DEL", pod, {**keys, "prevResult": result}, args=args).ok()
    assert set(pod.links()) == before
