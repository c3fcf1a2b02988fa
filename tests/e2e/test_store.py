"""The Kubernetes store as agents of two nodes use it: with their own tokens, and all policies in force."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.lease import POD, VM_DELETED, Holder, Lease, LeaseKey
from cnvnet.ipam.store import object_names, objects
from cnvnet.ipam.store.lease_owner import LeaseOwner
from cnvnet.vm.identity import ACTIVE, TARGET
from tests.e2e.agent_stores import AgentDesk, reserved
from tests.e2e.audit import counts
from tests.e2e.cnvnet_objects import AGENT, CONTROLLER, LEASES, RESERVATIONS, SYSTEM
from tests.e2e.control_plane import ControlPlane
from tests.unit.ipam.store.conformance import a_pool

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

ACCOUNT = f"system:serviceaccount:{SYSTEM}:{AGENT}"


@pytest.fixture
def desks(control_plane: ControlPlane, tmp_path: Path, tenant: str) -> tuple[AgentDesk, AgentDesk]:
    one, two = (AgentDesk(control_plane, tmp_path, f"node-{number}", tenant) for number in (1, 2))
    return one, two


def test_a_vm_moves_between_nodes_with_its_addresses(
    control_plane: ControlPlane, tenant: str, desks: tuple[AgentDesk, AgentDesk]
) -> None:
    one, two = desks
    first = one.attach("web", "c1")
    target = two.attach("web", "c2", role=TARGET)
    assert (target.ips, target.mac) == (first.ips, first.mac)
    one.detach("c1")
    (document,) = control_plane.api.get(LEASES.format(tenant))["items"]
    assert list(document["status"]["roles"].values()) == ["active"]
    two.detach("c2")
    restarted = two.attach("web", "c3")
    assert (restarted.ips, restarted.mac) == (first.ips, first.mac)
    assert reserved(control_plane, tenant) == {str(first.ips[0]): "node-1", first.mac: "node-1"}
    (document,) = control_plane.api.get(LEASES.format(tenant))["items"]
    assert [each["node"] for each in document["status"]["holders"].values()] == ["node-2"]
    # The server's record of who wrote which field.
    assert "managedFields" not in document["metadata"]


def test_each_call_asks_the_api_as_little_as_it_can(
    control_plane: ControlPlane, desks: tuple[AgentDesk, AgentDesk]
) -> None:
    one, two = desks
    wide = a_pool("10.16.0.0/16")
    # A process looks at a network's object once in a while.
    one.attach("one", "c0", given=wide)
    two.attach("two", "c0", given=wide)
    with control_plane.audit.calls(ACCOUNT) as first:
        one.attach("web", "c1", given=wide)
    with control_plane.audit.calls(ACCOUNT) as ended:
        one.detach("c1")
    with control_plane.audit.calls(ACCOUNT) as again:
        two.attach("web", "c2", given=wide)
    assert counts(first) == {"get vmleases": 1, "create vmleases": 1, "create ipreservations": 2}
    assert counts(ended) == {"patch vmleases": 1}
    assert counts(again) == {"get vmleases": 1, "patch vmleases": 1}


def test_a_pod_that_is_no_vm_leaves_nothing(
    control_plane: ControlPlane, tenant: str, desks: tuple[AgentDesk, AgentDesk]
) -> None:
    one, _ = desks
    lease = one.attach("", "c1")
    assert reserved(control_plane, tenant) == {str(lease.ips[0]): "node-1"}
    one.detach("c1")
    assert reserved(control_plane, tenant) == {}


def test_what_another_node_has_reserved_is_left_to_the_controller(
    control_plane: ControlPlane, tenant: str, desks: tuple[AgentDesk, AgentDesk]
) -> None:
    """The address that a VM gives up on the other node counts as taken until the controller frees it."""
    one, two = desks
    one.attach("web", "c1", ips=("10.0.0.5",))
    one.detach("c1")
    moved = two.attach("web", "c2", ips=("10.0.0.6",))
    assert moved.ips == (ip_address("10.0.0.6"),)
    assert reserved(control_plane, tenant) == {
        "10.0.0.5": "node-1",
        "10.0.0.6": "node-2",
        moved.mac: "node-1",
    }
    name = object_names.reservation_name(tenant, "10.0.0.5")
    controller = control_plane.api.of(control_plane.token(SYSTEM, CONTROLLER))
    controller.delete(f"{RESERVATIONS}/{name}")
    assert two.attach("db", "c3", ips=("10.0.0.5",)).ips == (ip_address("10.0.0.5"),)


def test_schemas_have_every_field_that_the_store_writes(control_plane: ControlPlane, tenant: str) -> None:
    """The server drops others without a word, unless it is asked to be strict."""
    holder = Holder("c1", "eth0", ACTIVE, "/run/netns/c1", 7, "boot", 5, "node-1", f"{tenant}/p", "p-uid")
    key = LeaseKey(tenant, tenant, "web", "eth0")
    ips = (ip_address("10.0.0.5"), ip_address("fd00::5"))
    lease = Lease(key, ips, "0a:58:0a:00:00:05", "uid", "args.cni.ips", VM_DELETED, 60, 4, (holder,))
    owner = LeaseOwner("v1", "ConfigMap", "x", "u")
    document = objects.lease_document(lease, nonce="n", pending=("10.0.0.5",), owner=owner)
    strict = "dryRun=All&fieldValidation=Strict"
    made = control_plane.api.create(f"{LEASES.format(tenant)}?{strict}", document)
    assert {key: made[key] for key in ("spec", "status")} == {
        key: document[key] for key in ("spec", "status")
    }
    pod = Lease(LeaseKey(tenant, "", "c1", "eth0"), ips[:1], release=POD, holders=(holder,))
    for address in ("10.0.0.5", "fd00::5", "0a:58:0a:00:00:05"):
        for uid, of in (("u", None), ("", pod)):
            document = objects.reservation_document(
                key, address, nonce="n", node="node-1", lease_uid=uid, pod=of
            )
            made = control_plane.api.create(f"{RESERVATIONS}?{strict}", document)
            assert made["spec"] == document["spec"]


def test_an_add_that_asks_for_an_address_left_to_the_controller_says_so(
    desks: tuple[AgentDesk, AgentDesk],
) -> None:
    one, two = desks
    one.attach("web", "c1", ips=("10.0.0.5",))
    one.detach("c1")
    two.attach("web", "c2", ips=("10.0.0.6",))
    with pytest.raises(CNIError, match=r"10\.0\.0\.5 .*until the controller frees it"):
        two.attach("db", "c3", ips=("10.0.0.5",))
    # Any other address is free.
    assert two.attach("db", "c3").ips
