"""Objects that are written by other means than an agent's: what is wrong with one is said at once."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest

from cnvnet.ipam.store import objects
from tests.e2e.cnvnet_objects import (
    LEASES,
    NETWORKS,
    RESERVATIONS,
    agent,
    holder,
    invalid,
    lease,
    network,
    pod_of,
    reservation,
)
from tests.e2e.control_plane import ControlPlane

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

Document = dict[str, Any]

RELEASES = 'supported values: "vm-deleted", "never", "pod"'
NEITHER = "neither an address of IP as it is usually written nor a MAC: "
ENDS = (
    "metadata.name: the reservation of 10.0.0.6 ends with that address, with - for . and : (IPv6 with all "
    "digits); another name would not keep it from being given twice"
)
ONE = "a reservation names either the lease or the pod that has the address"
NAMED = "metadata.name: a VMLease is named after its VM, network and interface, as agents and cnvctl do"
NOT_IP = "no address of IP as it is usually written: "
NOT_MAC = "no MAC of a host in small letters, such as 0a:58:0a:00:00:05: "
STAYS = "a VMLease is named after its VM, network and interface: none of them changes"


def changed(document: Document, path: str, value: object) -> Document:
    """The document with another value at a path, keys apart by blanks; None takes it away."""
    copy: Document = deepcopy(document)
    *parents, last = path.split()
    place: Any = copy
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("metadata name", "web", NAMED),
        ("spec ips", ["10.0.0.300"], f"{NOT_IP}10.0.0.300"),
        ("spec ips", ["10.0.0.5/24"], f"{NOT_IP}10.0.0.5/24"),
        ("spec ips", ["FD00::5"], f"{NOT_IP}FD00::5"),
        ("spec ips", ["10.0.0.5", "10.0.0.5"], "an address stands there twice"),
        ("spec ips", None, "spec.ips: Required value"),
        ("spec mac", "0A:58:0A:00:00:05", f"{NOT_MAC}0A:58:0A:00:00:05"),
        ("spec mac", "01:00:5e:00:00:01", f"{NOT_MAC}01:00:5e:00:00:01"),
        ("spec network", "", "spec.network in body should be at least 1 chars long"),
        ("spec vm", None, "spec.vm: Required value"),
        ("spec interface", "a-very-long-interface", "Too long: may not be more than 15 bytes"),
        (
            "spec release",
            "soon",
            f'spec.release: Unsupported value: "soon": {RELEASES}',
        ),
        ("spec cooldown", -1, "spec.cooldown in body should be greater than or equal to 0"),
        ("spec cooling", [{"ip": "x", "until": 1}], f"{NOT_IP}x"),
        ("spec routers", {"10.0.0.1": "me"}, f"{NOT_MAC}me"),
        ("status holders a.eth0 node", None, "status.holders.a.eth0.node: Required value"),
        ("status roles", {"a.eth0": "boss"}, 'status.roles.a.eth0: Unsupported value: "boss"'),
        ("status holders a.eth0 role", "boss", 'role: Unsupported value: "boss"'),
    ],
)
def test_a_lease_that_is_wrong_is_refused_with_the_reason(
    control_plane: ControlPlane, tenant: str, path: str, value: object, text: str
) -> None:
    good = lease(tenant, "web", "10.0.0.5", "fd00::5", a_eth0=holder("node-1"))
    leases = f"{LEASES.format(tenant)}?dryRun=All"
    control_plane.api.create(leases, good)
    assert text in invalid(lambda: control_plane.api.create(leases, changed(good, path, value)))


def test_what_a_lease_is_named_after_stays(control_plane: ControlPlane, tenant: str) -> None:
    made = control_plane.api.create(LEASES.format(tenant), lease(tenant, "web", "10.0.0.5"))
    path = f"{LEASES.format(tenant)}/{made['metadata']['name']}"
    for key in ("network", "vm", "interface"):
        changes = {"spec": {key: "other"}}
        assert STAYS in invalid(partial(control_plane.api.patch, path, changes))


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (
            "spec address",
            "10.0.0.300",
            f"{NEITHER}10.0.0.300",
        ),
        ("spec address", "10.0.0.6", ENDS),
        ("spec address", "fd00::5", "the reservation of fd00::5 ends with that address"),
        ("metadata name", "other", "the reservation of 10.0.0.5 ends with that address"),
        (
            "spec pod",
            pod_of("node-1"),
            "a reservation names either the lease or the pod that has the address",
        ),
        ("spec lease", None, ONE),
        ("spec lease uid", None, "spec.lease.uid: Required value"),
        ("spec cooling", {"since": 1}, "spec.cooling.until: Required value"),
    ],
)
def test_a_reservation_that_is_wrong_is_refused_with_the_reason(
    control_plane: ControlPlane, path: str, value: object, text: str
) -> None:
    good = reservation("objects", "10.0.0.5", "node-1")
    reservations = f"{RESERVATIONS}?dryRun=All"
    control_plane.api.create(reservations, good)
    assert text in invalid(lambda: control_plane.api.create(reservations, changed(good, path, value)))


@pytest.mark.parametrize("address", ["fd00::5", "2001:db8:0:1::ffff", "0a:58:0a:00:00:05", "10.255.0.1"])
def test_each_kind_of_address_can_be_reserved_once(control_plane: ControlPlane, address: str) -> None:
    made = control_plane.api.create(RESERVATIONS, reservation("objects", address, pod=pod_of("node-1")))
    path = f"{RESERVATIONS}/{made['metadata']['name']}"
    other = {"spec": {"address": "10.0.0.9"}}
    text = invalid(lambda: control_plane.api.patch(path, other))
    assert "a reservation is named after its network and address: neither changes" in text
    control_plane.api.delete(path)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("spec namespaces", ["Team A"], 'neither a namespace nor "*": Team A'),
        ("spec namespaces", ["*", "team-a"], '"*" means all namespaces, and stands alone'),
        ("spec namespaces", None, "spec.namespaces: Required value"),
        ("spec ranges", ["10.0.0.0"], "neither a subnet nor FIRST-LAST: 10.0.0.0"),
        ("spec ranges", ["10.0.0.1-x"], "neither a subnet nor FIRST-LAST: 10.0.0.1-x"),
        ("spec maxPerNamespace", 0, "should be greater than or equal to 1"),
    ],
)
def test_a_network_that_is_wrong_is_refused_with_the_reason(
    control_plane: ControlPlane, path: str, value: object, text: str
) -> None:
    good = network("objects", "team-a", "team-b")
    good["spec"] |= {"ranges": ["10.0.0.0/24", "fd00::1-fd00::ff"], "maxPerNamespace": 4}
    networks = f"{NETWORKS}?dryRun=All"
    control_plane.api.create(networks, good)
    assert text in invalid(lambda: control_plane.api.create(networks, changed(good, path, value)))


def test_operators_read_tables(control_plane: ControlPlane, tenant: str) -> None:
    control_plane.api.create(
        LEASES.format(tenant), lease(tenant, "web", "10.0.0.5", "fd00::5", a_eth0=holder("node-1"))
    )
    stopped = lease(tenant, "idle", "10.0.0.6", a_eth0=holder("node-1"))
    path = f"{LEASES.format(tenant)}/{stopped['metadata']['name']}"
    control_plane.api.create(LEASES.format(tenant), stopped)
    agent(control_plane, "node-1").patch(path, objects.release_patch("a.eth0", uid="", now=1))
    moving = lease(tenant, "move", "10.0.0.7", a_eth0=holder("node-1"), b_eth0=holder("node-2", "target"))
    control_plane.api.create(LEASES.format(tenant), moving)
    shown = control_plane.kubectl("get", "vml", "-n", tenant).stdout
    header, idle, _, web = (line.split() for line in shown.splitlines())
    assert header == ["NAME", "VM", "INTERFACE", "NETWORK", "IPS", "MAC", "NODE", "ROLE", "AGE"]
    # A VM that is stopped has neither node nor role.
    assert idle[1:-1] == ["idle", "eth0", "vms", '["10.0.0.6"]', "0a:58:0a:00:00:05"]
    both = '["10.0.0.5","fd00::5"]'
    assert web[1:-1] == ["web", "eth0", "vms", both, "0a:58:0a:00:00:05", "node-1", "active"]
    wide = control_plane.kubectl("get", "vml", "-n", tenant, moving["metadata"]["name"], "-o", "wide").stdout
    assert '{"a.eth0":"active","b.eth0":"target"}' in wide
    document = reservation("objects", "10.0.0.77", "node-1")
    document["metadata"]["labels"] = {"cnvnet.io/namespace": tenant, "table": "shown"}
    made = control_plane.api.create(RESERVATIONS, document)
    header, row = (
        line.split() for line in control_plane.kubectl("get", "ipr", "-l", "table=shown").stdout.splitlines()
    )
    assert header == ["NAME", "NETWORK", "ADDRESS", "NAMESPACE", "LEASE", "POD", "NODE", "AGE"]
    assert row[1:6] == ["objects", "10.0.0.77", tenant, "web-0123456789abcdef", "node-1"]
    control_plane.api.delete(f"{RESERVATIONS}/{made['metadata']['name']}")
