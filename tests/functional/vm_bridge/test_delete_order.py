"""The DELs of a binding and of the plugin below it, in either order: nothing stays of either."""

from __future__ import annotations

from typing import Any

import pytest

from tests.functional.masquerade.test_calls import lower
from tests.functional.vm_bridge.test_calls import records
from tests.functional.vm_bridge.vm_bridge_pod import difference, snapshot
from tests.harness import Node


@pytest.mark.parametrize("binding_first", [True, False], ids=["binding first", "what is below first"])
@pytest.mark.parametrize("ifname", ["eth0", "pod16477688c0e"], ids=["default network", "secondary network"])
@pytest.mark.parametrize("which", ["bridge", "cnv-bridge", "ptp"])
@pytest.mark.parametrize("binding", ["vm-bridge", "masquerade"])
def test_two_networks_go_in_any_order(
    node: Node, binding: str, which: str, ifname: str, binding_first: bool
) -> None:
    pod = node.pod()
    before = snapshot(pod)
    network: dict[str, Any] = {"cniVersion": "1.0.0", "name": "net", **lower(node, which)}
    result = node.cni(which, "ADD", network, pod, ifname=ifname).ok()
    links = set(node.links())
    # A network of its own, which KubeVirt asks for by the logical name of the other.
    logical = {"args": {"cni": {"logicNetworkName": "blue" if ifname != "eth0" else "default"}}}
    bound = {"cniVersion": "1.0.0", "name": "vm", "type": binding, **logical}
    node.cni(binding, "ADD", bound, pod, ifname="net1").ok()
    calls = [
        (binding, bound, "net1"),
        (which, {**network, "prevResult": result}, ifname),
    ]
    for plugin, config, name in calls if binding_first else reversed(calls):
        node.cni(plugin, "DEL", config, pod, ifname=name).ok()
    assert difference(pod, before) == ""
    assert records(node) == []
    assert {name for name in links & set(node.links()) if name.startswith("veth")} == set()
    for plugin, config, name in calls:
        node.cni(plugin, "DEL", config, pod, ifname=name).ok()
    assert difference(pod, before) == ""
