"""What tenants try with networks of others, through real executables, and how each is refused."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cnvnet_objects import NETWORKS, network, refusal, user
from tests.e2e.control_plane import ControlPlane
from tests.e2e.kubevirt_objects import KubeVirt
from tests.e2e.static_ip import StaticIpNode, leases, reserved

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

Document = dict[str, Any]
Nodes = tuple[StaticIpNode, StaticIpNode]


@pytest.fixture
def victim(control_plane: ControlPlane) -> Iterator[str]:
    """A network of the cluster's administrator; it is called as no namespace is."""
    name = f"victim-{uuid.uuid4().hex[:8]}"
    yield name
    if control_plane.api.find(f"{NETWORKS}/{name}"):
        control_plane.api.delete(f"{NETWORKS}/{name}")


def give(control_plane: ControlPlane, name: str, *namespaces: str, **spec: Any) -> None:
    """The administrator gives namespaces the network."""
    document = network(name, *namespaces)
    document["spec"] |= spec
    control_plane.api.create(NETWORKS, document)


def test_a_network_of_another_namespace_gives_nothing(
    control_plane: ControlPlane, tenant: str, victim: str, nodes: Nodes
) -> None:
    """Its NetworkAttachmentDefinition has the other network's name and subnet."""
    give(control_plane, victim, "owners")
    pod = control_plane.create_pod(tenant, "intruder", "node-1")
    code, text = nodes[0].refused(pod, network=victim)
    assert code == 7
    assert f"IPNetwork {victim}" in text
    assert tenant in text
    assert reserved(control_plane, victim) == set()
    boss = user(control_plane, tenant, "boss", "admin", within=tenant)
    for attempt in (
        lambda: boss.patch(f"{NETWORKS}/{victim}", {"spec": {"namespaces": [tenant]}}),
        lambda: boss.create(NETWORKS, network(f"{victim}-too", tenant)),
        lambda: boss.delete(f"{NETWORKS}/{victim}"),
    ):
        assert f'User "system:serviceaccount:{tenant}:boss" cannot' in refusal(attempt)


def test_ranges_that_the_network_does_not_give_out_give_nothing(
    control_plane: ControlPlane, tenant: str, victim: str, nodes: Nodes
) -> None:
    give(control_plane, victim, tenant, ranges=["10.1.0.0/28"])
    pod = control_plane.create_pod(tenant, "greedy", "node-1")
    code, text = nodes[0].refused(pod, network=victim, ipam={"subnet": "10.99.0.0/24"})
    assert (code, f"IPNetwork {victim} does not give out 10.99.0." in text) == (7, True), text
    assert nodes[0].add(pod, network=victim, ipam={"subnet": "10.1.0.0/28"})
    nodes[0].delete(pod, network=victim)


def test_stopped_vms_of_one_namespace_fill_no_pool(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, victim: str, nodes: Nodes
) -> None:
    give(control_plane, victim, tenant, "default", maxPerNamespace=2)
    hoard: list[Document] = []
    for number in range(3):
        machine = kubevirt.create_machine(tenant, f"hoard-{number}", mac=f"02:00:00:00:03:0{number}")
        running = kubevirt.start(machine, "node-1")
        hoard.append(machine)
        if number < 2:
            nodes[0].add(running.pod, network=victim)
            nodes[0].delete(running.pod, network=victim)
        else:
            code, text = nodes[0].refused(running.pod, network=victim)
            assert code == 11
            assert f"namespace {tenant} has 2 of 2 addresses" in text
            assert "maxPerNamespace" in text
        kubevirt.stop(running)
    assert len(leases(control_plane, tenant)) == 2
    # Others have their share.
    pod = control_plane.create_pod("default", f"neighbour-of-{victim}", "node-1")
    assert nodes[0].add(pod, network=victim)
    nodes[0].delete(pod, network=victim)
    control_plane.api.delete(f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}")
    for machine in hoard:
        kubevirt.delete(machine)
