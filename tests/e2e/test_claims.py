"""IPAMClaims of a real API server, as KubeVirt's IPAM controller makes them, from first ADD to last."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.e2e.audit import counts
from tests.e2e.cnvnet_objects import LEASES
from tests.e2e.control_plane import ControlPlane
from tests.e2e.kubevirt_objects import CLAIMS, KubeVirt, Running, claim_of
from tests.e2e.machine import eventually
from tests.e2e.static_ip import ACCOUNT, LAN, StaticIpNode, leases, reserved

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

Document = dict[str, Any]

MAC = "02:00:00:00:01:01"


def is_marked(control_plane: ControlPlane, path: str) -> bool:
    """Whether an object waits for its finalizers."""
    return "deletionTimestamp" in control_plane.api.get(path)["metadata"]


class Claimed:
    """A VM whose `lan` has a claim."""

    def __init__(self, control_plane: ControlPlane, kubevirt: KubeVirt, namespace: str, name: str) -> None:
        self.api = control_plane.api
        self.kubevirt = kubevirt
        mac = f"02:00:00:{uuid.uuid4().hex[:2]}:{uuid.uuid4().hex[:2]}:{uuid.uuid4().hex[:2]}"
        self.machine = kubevirt.create_machine(namespace, name, mac=mac)
        self.claim = kubevirt.create_claim(self.machine, namespace)
        self.path = f"{CLAIMS.format(namespace)}/{claim_of(self.machine)}"

    def start(self, node: str, claim: str = "") -> Running:
        return self.kubevirt.start(self.machine, node, claim=claim or claim_of(self.machine))

    def status(self) -> Document:
        found: Document = self.api.get(self.path).get("status", {})
        return found

    def condition(self) -> tuple[str, str]:
        (condition,) = self.status()["conditions"]
        return condition["status"], condition["reason"]

    def end(self) -> None:
        """The machine is deleted, and its claim after it."""
        self.kubevirt.delete(self.machine)
        self.kubevirt.release_claim(self.machine)


@pytest.mark.usefixtures("controller")
def test_a_vm_has_its_claims_addresses_from_its_first_start_to_its_deletion(
    control_plane: ControlPlane,
    kubevirt: KubeVirt,
    tenant: str,
    nodes: tuple[StaticIpNode, StaticIpNode],
) -> None:
    one, two = nodes
    vm = Claimed(control_plane, kubevirt, tenant, "web")
    running = vm.start("node-1")
    with control_plane.audit.calls(ACCOUNT) as calls:
        ips = one.add(running.pod, allowPersistentIPs=True)
    assert {each: number for each, number in counts(calls).items() if "ipamclaims" in each} == {
        "get ipamclaims": 1,
        "patch ipamclaims/status": 1,
    }
    assert vm.status()["ips"] == ips
    assert vm.status()["ownerPod"] == {"name": running.pod["metadata"]["name"]}
    assert vm.condition() == ("True", "SuccessfulAllocation")
    (lease,) = leases(control_plane, tenant)
    (owner,) = lease["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("IPAMClaim", vm.claim["metadata"]["uid"])
    # It moves, and starts again on the other node.
    migrating = kubevirt.migrate(running, "node-2")
    with control_plane.audit.calls(ACCOUNT) as calls:
        assert two.add(migrating.target) == ips
    assert not any("ipamclaims" in each for each in counts(calls))
    one.delete(running.pod)
    two.delete(migrating.target)
    kubevirt.stop(running)
    again = vm.start("node-2")
    with control_plane.audit.calls(ACCOUNT) as calls:
        assert two.add(again.pod) == ips
    asked = counts(calls)
    assert (asked["get ipamclaims"], asked["patch ipamclaims/status"]) == (1, 1)
    assert vm.status()["ownerPod"] == {"name": again.pod["metadata"]["name"]}
    with control_plane.audit.calls(ACCOUNT) as calls:
        two.add(again.pod)
    assert counts(calls)["patch ipamclaims/status"] == 0
    two.delete(again.pod)
    kubevirt.stop(again)
    # The machine is gone; the claim keeps the addresses for as long as it is there.
    kubevirt.delete(vm.machine)
    eventually(lambda: is_marked(control_plane, vm.path), "the claim is marked")
    assert ips[0].partition("/")[0] in reserved(control_plane, tenant)
    kubevirt.release_claim(vm.machine)
    eventually(lambda: not reserved(control_plane, tenant), "the addresses are free")
    eventually(lambda: not leases(control_plane, tenant), "the lease is gone")


@pytest.mark.usefixtures("controller")
def test_a_claim_that_is_deleted_and_made_anew_keeps_a_running_vms_address_until_it_stops(
    control_plane: ControlPlane,
    kubevirt: KubeVirt,
    tenant: str,
    nodes: tuple[StaticIpNode, StaticIpNode],
) -> None:
    one, _ = nodes
    vm = Claimed(control_plane, kubevirt, tenant, "web")
    running = vm.start("node-1")
    ips = one.add(running.pod)
    control_plane.api.delete(vm.path)
    kubevirt.release_claim(vm.machine)
    eventually(lambda: control_plane.api.find(vm.path) is None, "the claim is gone")
    (lease,) = leases(control_plane, tenant)
    path = f"{LEASES.format(tenant)}/{lease['metadata']['name']}"
    eventually(lambda: is_marked(control_plane, path), "the garbage collector has seen it")
    assert reserved(control_plane, tenant) == {ips[0].partition("/")[0]}
    kubevirt.create_claim(vm.machine, tenant)
    kubevirt.stop(running)
    again = vm.start("node-1")
    code, text = one.refused(again.pod)
    assert (code, f"still has {ips[0].partition('/')[0]}" in text) == (11, True), text
    one.delete(running.pod)
    eventually(lambda: one.call("ADD", again.pod).code == 0, "a new lease is made")
    (lease,) = leases(control_plane, tenant)
    (owner,) = lease["metadata"]["ownerReferences"]
    assert owner["uid"] == control_plane.api.get(vm.path)["metadata"]["uid"]
    one.delete(again.pod)
    kubevirt.stop(again)
    vm.end()


def test_what_a_claim_cannot_have_is_refused_and_said_in_it(
    control_plane: ControlPlane,
    kubevirt: KubeVirt,
    tenant: str,
    nodes: tuple[StaticIpNode, StaticIpNode],
) -> None:
    one, _ = nodes
    web, db = (Claimed(control_plane, kubevirt, tenant, name) for name in ("web", "db"))
    first = web.start("node-1")
    (ip,) = one.add(first.pod)
    # Another VM's claim.
    stranger = db.start("node-1", claim_of(web.machine))
    code, text = one.refused(stranger.pod)
    assert code == 7
    assert f"IPAMClaim {tenant}/web.lan belongs to VirtualMachine {tenant}/web" in text
    assert f"not to VM {tenant}/db" in text
    kubevirt.stop(stranger)
    other = db.start("node-1", f"{tenant}/web.lan")
    assert "not the name of an IPAMClaim in the pod's namespace" in one.refused(other.pod)[1]
    kubevirt.stop(other)
    missing = db.start("node-1", "nowhere")
    assert one.refused(missing.pod) == (
        11,
        "annotation k8s.v1.cni.cncf.io/networks[0].ipam-claim-reference: IPAMClaim "
        f"{tenant}/nowhere is not there",
    )
    kubevirt.stop(missing)
    # A claim that asks for what another one has, as after a restore.
    control_plane.api.patch(f"{db.path}/status", {"status": {"ips": [ip]}})
    second = db.start("node-1")
    code, text = one.refused(second.pod)
    address = ip.partition("/")[0]
    pod = f"pod {tenant}/{first.pod['metadata']['name']}"
    assert code == 7
    assert text.startswith(f"IPAMClaim {tenant}/db.lan status.ips[0]: {address} is held by VM {tenant}/web ")
    assert text.endswith(f"in {pod}")
    assert db.condition() == ("False", "IPAddressConflict")
    assert text in db.status()["conditions"][0]["message"]
    # Its remedy: a claim that asks for nothing.
    control_plane.api.patch(f"{db.path}/status", {"status": {"ips": []}})
    (given,) = one.add(second.pod)
    assert (db.status()["ips"], db.condition()) == ([given], ("True", "SuccessfulAllocation"))
    # The same claim for another network.
    assert f"is for network {tenant}, and this one is other" in one.refused(first.pod, network="other")[1]
    for running in (first, second):
        one.delete(running.pod)
        kubevirt.stop(running)
    for vm in (web, db):
        vm.end()


def test_one_network_twice_has_one_claim_for_the_first_of_both(
    control_plane: ControlPlane,
    kubevirt: KubeVirt,
    tenant: str,
    nodes: tuple[StaticIpNode, StaticIpNode],
) -> None:
    """KubeVirt's IPAM controller writes the same reference into both elements."""
    one, _ = nodes
    vm = Claimed(control_plane, kubevirt, tenant, "web")
    both = [
        {"name": "tenants", "namespace": tenant, "interface": interface} for interface in (LAN, "podsecond")
    ]
    annotations = vm.machine["spec"]["template"]["metadata"]["annotations"]
    annotations["k8s.v1.cni.cncf.io/networks"] = json.dumps(both)
    running = vm.start("node-1")
    one.add(running.pod)
    code, text = one.refused(running.pod, ifname="podsecond")
    assert code == 7
    assert f"IPAMClaim {tenant}/web.lan keeps the addresses of one interface, and {LAN} has it" in text
    one.delete(running.pod)
    kubevirt.stop(running)
    vm.end()


def test_persist_ip_decides_where_the_network_does_not(
    control_plane: ControlPlane,
    kubevirt: KubeVirt,
    tenant: str,
    nodes: tuple[StaticIpNode, StaticIpNode],
) -> None:
    one, _ = nodes
    machine = kubevirt.create_machine(tenant, "web", mac=MAC)
    running = kubevirt.start(machine, "node-1")
    said: Document = {"args": {"cni": {"persistIP": False, "logicNetworkName": "lan"}}}
    one.add(running.pod, **said)
    one.delete(running.pod, **said)
    # By the network itself: the pod's word does not count.
    kept = one.call("ADD", running.pod, ipam={"release": "vm-deleted"}, **said)
    kept.ok()
    assert "args.cni.persistIP: false ignored: ipam.release: vm-deleted" in kept.stderr
    one.delete(running.pod)
    (lease,) = leases(control_plane, tenant)
    assert (lease["spec"]["release"], lease["status"].get("holders", {})) == ("vm-deleted", {})
    kubevirt.stop(running)
    kubevirt.delete(machine)
