"""What each call to an agent, behind its launcher, asks the API server for: counted in its audit log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnvnet.vm import names
from tests import harness
from tests.e2e.agent_nodes import AgentNode, running_node
from tests.e2e.agent_stores import AgentDesk, remove_leases
from tests.e2e.audit import counts
from tests.e2e.cnvnet_objects import AGENT, SYSTEM
from tests.e2e.control_plane import ControlPlane
from tests.e2e.kubevirt_objects import KubeVirt
from tests.unit.ipam.store.conformance import a_pool

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

ACCOUNT = f"system:serviceaccount:{SYSTEM}:{AGENT}"
LAN = names.hashed("lan")
MAC = "02:00:00:00:01:01"
READS = {"get pods": 1, "get virtualmachineinstances": 1, "get vmleases": 1}
TWO_FAMILIES: dict[str, Any] = {
    "type": "static-ip",
    "ranges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd00:7::/64"}]],
}
NONE: dict[str, Any] = {}


class Calls:
    """A runtime's calls on two nodes, and what each of them has cost."""

    def __init__(self, control_plane: ControlPlane, nodes: list[AgentNode], network: str) -> None:
        self._audit = control_plane.audit
        self._nodes = nodes
        self._network = network

    def ask(
        self,
        command: str,
        pod: dict[str, Any],
        container_id: str,
        *,
        on: int = 0,
        ipam: dict[str, Any] = TWO_FAMILIES,
    ) -> dict[str, int]:
        """One call; what the agents have asked meanwhile, by verb and resource."""
        node = self._nodes[on]
        sandbox = node.host.pod()
        with self._audit.calls(ACCOUNT) as calls:
            outcome = node.call(
                command,
                pod,
                sandbox,
                container_id=container_id,
                network=self._network,
                ifname=LAN,
                ipam=ipam,
            )
        outcome.ok()
        return dict(counts(each for each in calls if each.verb != "watch"))


@pytest.fixture
def calls(
    control_plane: ControlPlane, tenant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Calls]:
    # The agents of this test have credentials; the harness' own would have none.
    monkeypatch.setattr(harness, "through", "")
    with (
        running_node(control_plane, "node-1", tmp_path / "node-1") as one,
        running_node(control_plane, "node-2", tmp_path / "node-2") as two,
    ):
        made = Calls(control_plane, [one, two], tenant)
        # A network's first ADD makes its object, and a process looks at it once in a while.
        for number, node in enumerate(("node-1", "node-2")):
            pod = control_plane.create_pod(tenant, f"first-{number}", node)
            made.ask("ADD", pod, f"first-{number}", on=number)
        yield made
    remove_leases(control_plane)


def test_each_call_asks_the_api_as_little_as_it_can(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, calls: Calls
) -> None:
    machine = kubevirt.create_machine(tenant, "web", mac=MAC)
    running = kubevirt.start(machine, "node-1")
    # An address of each family, and the MAC.
    made = {"create vmleases": 1, "create ipreservations": 3}
    assert calls.ask("ADD", running.pod, "c1") == READS | made
    assert calls.ask("DEL", running.pod, "c1") == {"patch vmleases": 1}
    changed = {"patch vmleases": 1}
    assert calls.ask("ADD", running.pod, "c2") == READS | changed
    assert calls.ask("DEL", running.pod, "c2") == changed
    # The same VirtualMachineInstance in another sandbox, and another one, on the other node.
    assert calls.ask("ADD", running.pod, "c3") == READS | changed
    migrating = kubevirt.migrate(running, "node-2")
    assert calls.ask("ADD", migrating.target, "t1", on=1) == READS | changed
    assert calls.ask("DEL", migrating.target, "t1", on=1) == changed
    assert calls.ask("DEL", running.pod, "c3") == changed
    kubevirt.stop(running)
    again = kubevirt.start(machine, "node-2")
    assert calls.ask("ADD", again.pod, "c4", on=1) == READS | changed
    assert calls.ask("DEL", again.pod, "c4", on=1) == changed
    kubevirt.stop(again)
    kubevirt.delete(machine)


def test_a_pod_that_is_no_vm_costs_one_write_for_each_address(
    control_plane: ControlPlane, tenant: str, calls: Calls
) -> None:
    pod = control_plane.create_pod(tenant, "plain", "node-1")
    assert calls.ask("ADD", pod, "p1") == {"get pods": 1, "create ipreservations": 2}
    assert calls.ask("DEL", pod, "p1") == {"delete ipreservations": 2}


def test_a_network_without_addresses_costs_no_write(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, calls: Calls
) -> None:
    machine = kubevirt.create_machine(tenant, "web", mac=MAC)
    running = kubevirt.start(machine, "node-1")
    plain = control_plane.create_pod(tenant, "plain", "node-1")
    assert calls.ask("ADD", running.pod, "c1", ipam=NONE) == {
        "get pods": 1,
        "get virtualmachineinstances": 1,
    }
    assert calls.ask("DEL", running.pod, "c1", ipam=NONE) == {}
    assert calls.ask("ADD", plain, "p1", ipam=NONE) == {"get pods": 1}
    assert calls.ask("DEL", plain, "p1", ipam=NONE) == {}
    kubevirt.stop(running)
    kubevirt.delete(machine)


def test_no_add_lists_a_network_that_is_half_full(
    control_plane: ControlPlane, tenant: str, tmp_path: Path
) -> None:
    one, two = (AgentDesk(control_plane, tmp_path, f"node-{number}", tenant) for number in (1, 2))
    wide = a_pool("10.0.0.0/24")
    for number in range(126):
        two.attach("", f"there{number}", given=wide)
    with control_plane.audit.calls(ACCOUNT) as calls:
        for number in range(200):
            one.attach("", f"here{number}", given=wide)
            one.detach(f"here{number}")
    counted = counts(calls)
    assert [each for each in counted if each.startswith("list ")] == []
    # An ADD that meets an address that is taken looks at it, and tries another one.
    met = counted["get ipreservations"]
    assert counted["create ipreservations"] == 200 + met
    assert (met < 200, counted["delete ipreservations"]) == (True, 200)
