"""IPAMClaims: which one counts for an interface, what it asks for, and what is said in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnvnet.call_context import captured
from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import CNIError, InvalidConfig
from cnvnet.ipam.static_ip import claims
from cnvnet.ipam.static_ip.claims import ClaimReference, reference
from cnvnet.kube.resources import IPAM_CLAIMS, PODS, VM_LEASES
from cnvnet.vm import names
from cnvnet.vm.directory import Directory
from tests import kubevirt
from tests.fakes.api_server import ApiServer, Asked, drop, refuse
from tests.fakes.launchers import NAMESPACE, Launchers
from tests.unit.ipam.static_ip.test_cluster import IPAM, ClusterNode, leases

LAN = names.hashed("lan")
NETWORKS = "k8s.v1.cni.cncf.io/networks"
DEFAULT = "v1.multus-cni.io/default-network"
CLAIM = "vm-a.lan"
NAMED = f"annotation {NETWORKS}[0].ipam-claim-reference"
MACHINE = "6872abbb-50f2-46d8-a9ab-06adb435f608"

Document = dict[str, Any]


def networks(*elements: Document) -> dict[str, str]:
    return {NETWORKS: json.dumps(elements)}


def element(claim: str = CLAIM, interface: str = LAN) -> Document:
    return {"name": "tenants", "namespace": NAMESPACE, "interface": interface, "ipam-claim-reference": claim}


def machine(name: str, uid: str) -> Document:
    """A VM as the owner of a claim."""
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "name": name,
        "uid": uid,
        "controller": True,
    }


class Claims:
    """The claims in the server, as KubeVirt's IPAM controller makes them."""

    def __init__(self, server: ApiServer) -> None:
        self.objects = server.objects

    def create(self, name: str = CLAIM, *, status: Document | None = None, **more: Any) -> Document:
        document: Document = {
            "metadata": {"name": name, "ownerReferences": [machine("vm-a", MACHINE)]},
            "spec": {"network": "vms", "interface": ""},
        }
        document["metadata"] |= more.pop("metadata", {})
        document |= more
        if status is not None:
            document["status"] = status
        return self.objects.create(IPAM_CLAIMS, NAMESPACE, document)

    def status(self, name: str = CLAIM) -> Document:
        found: Document = self.objects.get(IPAM_CLAIMS, NAMESPACE, name).get("status", {})
        return found

    def condition(self, name: str = CLAIM) -> tuple[str, str, str]:
        (found,) = (each for each in self.status(name)["conditions"] if each["type"] == "IPsAllocated")
        return found["status"], found["reason"], found["message"]


@pytest.fixture
def made(server: ApiServer) -> Claims:
    return Claims(server)


@pytest.fixture
def node(tmp_path: Path, directory: Directory) -> ClusterNode:
    return ClusterNode(tmp_path, directory)


def start(launchers: Launchers, claim: str = CLAIM) -> PodRef:
    return launchers.start("vm-a", networks(element(claim)))


def refused(node: ClusterNode, pod: PodRef, **keys: Any) -> CNIError:
    with pytest.raises(CNIError) as caught:
        node.add(pod, **keys)
    return caught.value


# -- which one counts


@pytest.mark.parametrize(
    ("annotations", "ifname", "expected"),
    [
        ({}, LAN, None),
        (networks(element()), LAN, ClaimReference(CLAIM, NAMED, "")),
        (networks(element()), "eth0", None),
        # What Multus calls an interface without a name.
        (
            networks({"name": "a"}, {"name": "b", "ipam-claim-reference": "b"}),
            "net2",
            ClaimReference("b", f"annotation {NETWORKS}[1].ipam-claim-reference", ""),
        ),
        (
            {DEFAULT: json.dumps([{"name": "default", "ipam-claim-reference": "c"}])},
            "eth0",
            ClaimReference("c", f"annotation {DEFAULT}[0].ipam-claim-reference", ""),
        ),
        (
            networks(element(), element(interface="podother")),
            "podother",
            ClaimReference(CLAIM, f"annotation {NETWORKS}[1].ipam-claim-reference", LAN),
        ),
        # Multus' short form, and what it refuses itself.
        ({NETWORKS: "default/tenants@net1"}, "net1", None),
        ({NETWORKS: "[{"}, LAN, None),
        ({NETWORKS: "[1, null]"}, "net1", None),
        (networks(element(claim="")), LAN, None),
    ],
)
def test_a_claim_is_that_of_the_element_of_the_interface(
    annotations: dict[str, str], ifname: str, expected: ClaimReference | None
) -> None:
    assert reference(annotations, ifname) == expected


def test_kubevirts_own_annotations_are_understood() -> None:
    pod, _ = kubevirt.started("vm-twice")
    first, second = (each["interface"] for each in json.loads(pod["metadata"]["annotations"][NETWORKS]))
    written = json.loads(pod["metadata"]["annotations"][NETWORKS])
    both = networks(*({**each, "ipam-claim-reference": "vm-twice.x"} for each in written))
    assert [reference(both, each) for each in (first, second)] == [
        ClaimReference("vm-twice.x", NAMED, ""),
        ClaimReference("vm-twice.x", f"annotation {NETWORKS}[1].ipam-claim-reference", first),
    ]


@pytest.mark.parametrize("claim", ["other/vm-a.lan", 7])
def test_a_reference_leads_to_no_other_namespace(claim: Any) -> None:
    with pytest.raises(InvalidConfig, match="not the name of an IPAMClaim in the pod's namespace"):
        reference(networks(element(claim)), LAN)


def test_a_claim_for_a_second_interface_is_refused(
    node: ClusterNode, launchers: Launchers, made: Claims
) -> None:
    made.create()
    pod = launchers.start("vm-a", networks(element(interface="podfirst"), element()))
    error = refused(node, pod)
    assert error.code == 7
    assert "keeps the addresses of one interface, and podfirst has it" in error.msg


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        (
            {"metadata": {"ownerReferences": [machine("db", "u2")]}},
            7,
            f"{NAMED}: IPAMClaim default/vm-a.lan belongs to VirtualMachine default/db with the UID u2, not "
            "to VM default/vm-a",
        ),
        (
            {"metadata": {"ownerReferences": [machine("vm-a", "u1")]}},
            11,
            "still belongs to the former VirtualMachine default/vm-a with the UID u1, and goes with it",
        ),
        ({"spec": {"network": "other", "interface": ""}}, 7, "is for network other, and this one is vms"),
        (
            {"status": {"ips": ["10.1.0.300/24"]}},
            7,
            'status.ips[0]: "10.1.0.300/24" is not in CIDR notation',
        ),
        ({"status": {"ips": ["10.2.0.5/24"]}}, 7, "status.ips[0]: 10.2.0.5 is in no range of network vms"),
    ],
)
def test_a_claim_that_is_not_this_interfaces_is_refused(
    node: ClusterNode, launchers: Launchers, made: Claims, changes: Document, code: int, text: str
) -> None:
    made.create(**changes)
    error = refused(node, start(launchers))
    assert (error.code, text in error.msg) == (code, True), error.msg
    assert leases_of(node) == []


def leases_of(node: ClusterNode) -> list[Any]:
    assert node.directory is not None
    return list(node.directory.api.list(VM_LEASES).items)


def test_a_claim_that_is_not_there_is_waited_for(
    node: ClusterNode, launchers: Launchers, server: ApiServer
) -> None:
    pod = start(launchers)
    for is_undefined in (False, True):
        server.undefined = {IPAM_CLAIMS} if is_undefined else set()
        error = refused(node, pod)
        assert (error.code, f"{NAMED}: IPAMClaim default/{CLAIM} is not there" in error.msg) == (11, True)


def test_a_claim_without_an_owner_is_for_any_vm(
    node: ClusterNode, launchers: Launchers, made: Claims
) -> None:
    made.create(metadata={"ownerReferences": []})
    node.add(start(launchers))
    assert made.condition()[0] == "True"


# -- allocate, keep, move


def test_the_claim_owns_the_lease_and_says_what_the_vm_has(
    node: ClusterNode, launchers: Launchers, made: Claims, server: ApiServer
) -> None:
    claim = made.create(status={"ips": [], "conditions": [{"type": "Other", "status": "True"}]})
    pod = start(launchers)
    server.requests.clear()
    (ip,) = node.add(pod).result.ips
    asked = [f"{each.asked.verb} {each.asked.plural}" for each in server.requests]
    assert [each for each in asked if each.endswith(" ipamclaims")] == ["get ipamclaims", "patch ipamclaims"]
    assert made.status()["ips"] == [str(ip.address)]
    assert made.status()["ownerPod"] == {"name": pod.name}
    assert made.status()["conditions"][0] == {"type": "Other", "status": "True"}
    text = f"{ip.address} for pod {pod.name} (node node1)"
    assert made.condition() == ("True", "SuccessfulAllocation", text)
    (owner,) = leases_of(node)[0]["metadata"]["ownerReferences"]
    assert owner == {
        "apiVersion": "k8s.cni.cncf.io/v1alpha1",
        "kind": "IPAMClaim",
        "name": CLAIM,
        "uid": claim["metadata"]["uid"],
    }


def test_nothing_is_written_where_the_claim_says_so_already(
    node: ClusterNode, launchers: Launchers, made: Claims, server: ApiServer
) -> None:
    made.create()
    pod = start(launchers)
    node.add(pod)
    server.requests.clear()
    node.add(pod)
    assert server.count("get", "ipamclaims") == 1
    assert server.count("patch", "ipamclaims") == 0


def test_a_lease_is_stronger_than_what_a_claims_status_says(
    node: ClusterNode, launchers: Launchers, made: Claims, server: ApiServer
) -> None:
    made.create()
    pod = start(launchers)
    (ip,) = node.add(pod).result.ips
    node.delete(pod)
    server.objects.patch(IPAM_CLAIMS, NAMESPACE, CLAIM, {"status": {"ips": ["10.1.0.99/24"]}})
    with captured() as lines:
        assert node.add(pod).result.ips == (ip,)
    assert f"IPAMClaim default/{CLAIM} had 10.1.0.99/24: its VM has {ip.address}" in lines
    assert made.status()["ips"] == [str(ip.address)]


def test_without_a_lease_a_claims_status_is_a_request(
    node: ClusterNode, launchers: Launchers, made: Claims
) -> None:
    """A cluster that was restored, or a network that OVN-Kubernetes has served before."""
    made.create(status={"ips": ["10.1.0.77/24"]})
    (ip,) = node.add(start(launchers)).result.ips
    assert str(ip.address) == "10.1.0.77/24"
    assert leases_of(node)[0]["spec"]["source"] == "IPAMClaim"


def test_an_annotation_moves_the_vm_and_the_claim_follows(
    node: ClusterNode, launchers: Launchers, made: Claims, server: ApiServer
) -> None:
    made.create()
    pod = start(launchers)
    node.add(pod)
    node.delete(pod)
    annotate(server, node, pod, {"cnvnet.io/ip_address.lan": "10.1.0.50"})
    node.add(pod)
    assert made.status()["ips"] == ["10.1.0.50/24"]


def annotate(server: ApiServer, node: ClusterNode, pod: PodRef, annotations: dict[str, str]) -> None:
    """As in another pod of the VM: what was read of this one is forgotten."""
    server.objects.patch(PODS, NAMESPACE, pod.name, {"metadata": {"annotations": annotations}})
    assert node.directory is not None
    node.directory = Directory(node.directory.api)


def test_a_claim_that_was_made_anew_takes_the_lease_of_its_vm_over(
    node: ClusterNode, launchers: Launchers, made: Claims, server: ApiServer
) -> None:
    made.create()
    pod = start(launchers)
    (ip,) = node.add(pod).result.ips
    node.delete(pod)
    server.objects.delete(IPAM_CLAIMS, NAMESPACE, CLAIM, {})
    again = made.create()
    assert node.add(pod).result.ips == (ip,)
    (owner,) = leases_of(node)[0]["metadata"]["ownerReferences"]
    assert owner["uid"] == again["metadata"]["uid"]
    assert made.status()["ips"] == [str(ip.address)]


def test_a_vm_that_came_to_claims_later_changes_the_owner_at_its_next_start(
    tmp_path: Path, directory: Directory, launchers: Launchers, made: Claims, server: ApiServer
) -> None:
    """But not while another node has it: that is not for this one to decide."""
    first, second = ClusterNode(tmp_path / "n1", directory), ClusterNode(tmp_path / "n2", directory)
    pod = launchers.start("vm-a")
    first.add(pod)
    claim = made.create()
    target = launchers.migrate("vm-a", networks(element()))
    server.requests.clear()
    second.add(target)
    assert server.count(plural="ipamclaims") == 0
    (owner,) = leases_of(first)[0]["metadata"]["ownerReferences"]
    assert owner["kind"] == "VirtualMachine"
    second.delete(target)
    first.delete(pod)
    annotate(server, first, pod, networks(element()))
    first.add(pod)
    (owner,) = leases_of(first)[0]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("IPAMClaim", claim["metadata"]["uid"])


# -- refused


def test_an_address_that_is_taken_is_said_in_the_claim(
    node: ClusterNode, launchers: Launchers, made: Claims
) -> None:
    node.add(launchers.start("vm-br"), args={"cni": {"ips": ["10.1.0.77"]}})
    made.create(status={"ips": ["10.1.0.77/24"]})
    error = refused(node, start(launchers))
    where = f"IPAMClaim default/{CLAIM} status.ips[0]"
    assert (error.code, error.msg.startswith(f"{where}: 10.1.0.77 is held by VM default/vm-br")) == (7, True)
    assert made.condition() == ("False", "IPAddressConflict", f"{error.msg} (node node1)")
    assert made.status()["ips"] == ["10.1.0.77/24"]


def test_other_reasons_are_those_of_ovn_kubernetes(
    node: ClusterNode, launchers: Launchers, made: Claims, server: ApiServer
) -> None:
    small = {"ipam": {**IPAM, "subnet": "10.1.0.0/30"}}
    node.add(launchers.add_pod("web"), **small)
    made.create()
    pod = start(launchers)
    assert refused(node, pod, **small).code == 11
    assert made.condition()[:2] == ("False", "SubnetExhausted")
    assert made.status()["ips"] == []
    wrong = {"args": {"cni": {"ips": ["10.9.0.5"]}}}
    assert refused(node, pod, **wrong).code == 7
    assert made.condition()[:2] == ("False", "InternalError")
    began = made.status()["conditions"][0]["lastTransitionTime"]
    assert len(began) == len("2026-12-01T10:00:00Z")
    # What cannot be said hides no error.
    server.inject(refuse(403), verb="patch", plural="ipamclaims")
    with captured() as lines:
        assert "no range" not in refused(node, pod, args={"cni": {"ips": ["10.1.0.0"]}}).msg
    assert any("its status does not say what has become of the ADD" in each for each in lines)


def test_a_mac_that_is_taken_is_said_in_the_claim(
    node: ClusterNode, launchers: Launchers, made: Claims
) -> None:
    node.add(launchers.start("vm-br"), args={"cni": {"mac": "02:00:00:00:00:0a"}})
    made.create()
    error = refused(node, start(launchers))
    assert "macAddress of interface lan: 02:00:00:00:00:0a is held by VM default/vm-br" in error.msg
    assert made.condition()[:2] == ("False", "MACAddressConflict")


# -- what others do meanwhile, and failures


def test_another_writer_of_the_claim_is_no_trouble(
    node: ClusterNode, launchers: Launchers, made: Claims, server: ApiServer
) -> None:
    made.create()

    def add_condition(_: ApiServer, __: Asked) -> None:
        other = {"status": {"ips": [], "conditions": [{"type": "Other", "status": "True"}]}}
        server.objects.patch(IPAM_CLAIMS, NAMESPACE, CLAIM, other)

    server.inject(add_condition, verb="patch", plural="ipamclaims")
    node.add(start(launchers))
    assert [each["type"] for each in made.status()["conditions"]] == ["Other", "IPsAllocated"]


def recreated(server: ApiServer, made: Claims) -> Callable[[ApiServer, Asked], None]:
    def action(_: ApiServer, __: Asked) -> None:
        server.objects.delete(IPAM_CLAIMS, NAMESPACE, CLAIM, {})
        made.create()

    return action


def test_an_add_whose_claim_cannot_say_so_leaves_nothing(
    node: ClusterNode, launchers: Launchers, made: Claims, server: ApiServer
) -> None:
    made.create()
    pod = start(launchers)
    for fault, text in (
        (refuse(403, "Forbidden", "no"), "no"),
        (recreated(server, made), "was deleted and made anew in the meantime"),
    ):
        server.inject(fault, verb="patch", plural="ipamclaims")
        error = refused(node, pod)
        assert (error.code, text in error.msg) == (11, True), error.msg
        assert leases_of(node) == []
        assert leases(server) == []
        server.clear_faults()
    node.add(pod)


def test_a_claim_that_was_made_anew_meanwhile_is_left_as_it_is(
    node: ClusterNode, launchers: Launchers, made: Claims, server: ApiServer
) -> None:
    """Neither what the ADD has got nor that it has failed is for the new one."""
    made.create()

    def recreate(_: ApiServer, __: Asked) -> None:
        server.objects.delete(IPAM_CLAIMS, NAMESPACE, CLAIM, {})
        made.create(status={"ips": ["10.1.0.99/24"]})

    server.inject(recreate, verb="patch", plural="ipamclaims")
    refused(node, start(launchers))
    assert made.status() == {"ips": ["10.1.0.99/24"]}


def test_an_add_that_is_killed_before_its_claim_says_so_is_made_good_by_the_next(
    node: ClusterNode, launchers: Launchers, made: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.create()
    pod = start(launchers)

    class Killed(BaseException):
        """Nothing else is done."""

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(claims.ClaimedAddresses, "report", kill)
        with pytest.raises(Killed):
            node.add(pod)
    assert made.status() == {}
    (lease,) = leases_of(node)
    (ip,) = node.add(pod).result.ips
    assert [str(ip.address.ip)] == lease["spec"]["ips"]
    assert made.status()["ips"] == [str(ip.address)]


def test_an_answer_that_is_lost_is_no_failure(
    node: ClusterNode, launchers: Launchers, made: Claims, server: ApiServer
) -> None:
    made.create()
    server.inject(drop, verb="patch", plural="ipamclaims", after=True)
    node.add(start(launchers))
    assert made.condition()[0] == "True"


def test_an_add_that_is_undone_takes_back_what_the_claim_says(
    node: ClusterNode, launchers: Launchers, made: Claims
) -> None:
    made.create(status={"ips": ["10.1.0.77/24"], "ownerPod": {"name": "before"}})
    first = start(launchers)
    request = node.request(first, args={"cni": {"ips": ["10.1.0.78"]}})
    assignment = node.plugin.assign(request)
    assert made.status()["ips"] == ["10.1.0.78/24"]
    node.plugin.revert(request, assignment)
    assert made.status()["ips"] == ["10.1.0.77/24"]
    assert made.condition()[:2] == ("False", "InternalError")
    # A restart that fails leaves the addresses where they are.
    node.add(first)
    request = node.request(first)
    node.plugin.revert(request, node.plugin.assign(request))
    assert made.condition()[0] == "True"


# -- networks without claims


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"ipam": {**IPAM, "nodeLocal": True}}, "the leases of this network are each node's own"),
        ({"allowPersistentIPs": False}, "the network has allowPersistentIPs: false"),
    ],
)
def test_a_network_without_claims_says_so(
    node: ClusterNode, launchers: Launchers, server: ApiServer, keys: Document, why: str
) -> None:
    pod = start(launchers)
    with captured() as lines:
        node.add(pod, **keys)
    assert f"{NAMED}: {CLAIM} ignored: {why}" in lines
    assert server.count(plural="ipamclaims") == 0


def test_a_pod_without_a_claim_asks_for_none(
    node: ClusterNode, launchers: Launchers, server: ApiServer
) -> None:
    node.add(launchers.start("vm-a"), allowPersistentIPs=True)
    assert server.count(plural="ipamclaims") == 0


def test_a_long_reason_is_cut(node: ClusterNode, launchers: Launchers, made: Claims) -> None:
    document = made.create()
    assert node.directory is not None
    claim = claims.ClaimedAddresses(node.directory.api, document, "pod", "node1")
    claim.refuse(InvalidConfig("x" * 5000))
    assert made.condition()[2] == f"{'x' * 1024} (node node1)"
