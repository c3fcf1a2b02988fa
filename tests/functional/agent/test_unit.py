"""The agent as its systemd unit runs it: nothing is in the way of the calls, nor of what they start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.agent.launcher_calls import AUTO, CONFIG, Ipam, cni, launcher
from tests.functional.agent.own_agent import (
    RunningAgent,
    capabilities_of_the_unit,
    running_agent,
    within_capabilities,
)
from tests.functional.vm_bridge.vm_bridge_pod import a_lab
from tests.harness import Node

pytestmark = pytest.mark.alone

WITHIN = within_capabilities(capabilities_of_the_unit())
STATIC: dict[str, Any] = {"nodeLocal": True, "subnet": "10.9.0.0/24", "gateway": "10.9.0.1"}


@pytest.fixture
def agent(node: Node) -> Iterator[RunningAgent]:
    with running_agent(node, within=WITHIN) as made:
        yield made


def ran(agent: RunningAgent) -> int:
    """How many calls the agent has run itself."""
    numbers = agent.metrics()
    return int(sum(value for name, value in numbers.items() if name.startswith("cnvnet_cni_calls_total")))


@pytest.mark.parametrize("ipam", ["static-ip", "host-local"])
def test_a_guarded_port_with_an_address(node: Node, agent: RunningAgent, ipam: str) -> None:
    keys = STATIC if ipam == "static-ip" else {"subnet": "10.9.0.0/24", "dataDir": f"{node.folder}/leases"}
    switches = dict.fromkeys(("macspoofchk", "ipspoofchk", "isGateway", "ipMasq"), True)
    config = {**switches, "ipam": {"type": ipam, **keys}}
    pod = node.pod()
    result = cni(node, "ADD", pod, config=config).ok()
    cni(node, "CHECK", pod, config={**config, "prevResult": result}).ok()
    cni(node, "DEL", pod, config=config).ok()
    assert ran(agent) == 3


def test_an_address_manager_of_another_mount_namespace(
    node: Node, agent: RunningAgent, tmp_path: Path
) -> None:
    ipam = Ipam(tmp_path)
    pod = node.pod()
    call = {"CNI_COMMAND": "ADD", "CNI_NETNS": pod.netns, "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0"}
    env = node.environment(**call, **AUTO, **ipam.path)
    # As Multus thick calls from the mounts of its container.
    command = ("unshare", "--mount", "--propagation", "private", launcher("c"))
    done = node.run(*command, input=json.dumps({**CONFIG, **ipam.keys}), env=env, check=False)
    assert done.returncode == 0, done.stdout
    assert ran(agent) == 1
    cni(node, "DEL", pod, config=ipam.keys, env=ipam.path, container_id="c").ok()


@pytest.mark.parametrize("plugin", ["vm-bridge", "masquerade"])
def test_a_virtual_machine_is_wired_and_served(tmp_path: Path, plugin: str) -> None:
    with a_lab(tmp_path) as lab, running_agent(lab.node, within=WITHIN) as agent:
        lab.network()
        config: dict[str, Any] = {"name": "vms", "type": plugin, "guestServices": {}}
        cni(lab.node, "ADD", lab.pod, config=config, ifname="net1").ok()
        assert agent.serves() == 1
        checked = {**config, "prevResult": {"cniVersion": CONFIG["cniVersion"]}}
        cni(lab.node, "CHECK", lab.pod, config=checked, ifname="net1").ok()
        cni(lab.node, "DEL", lab.pod, config=config, ifname="net1").ok()
        assert ran(agent) == 3
