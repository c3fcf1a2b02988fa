"""What admission refuses, and to which user: each attack with the words of the refusal."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.e2e.api import Api, ApiError
from tests.e2e.cnvnet_objects import (
    AGENT,
    CONTROLLER,
    KUSTOMIZE,
    LEASES,
    NETWORKS,
    RESERVATIONS,
    SYSTEM,
    agent,
    claim,
    holder,
    lease,
    network,
    pod_of,
    refusal,
    reservation,
    user,
)
from tests.e2e.control_plane import ControlPlane
from tests.e2e.kubevirt_objects import CLAIMS, INSTANCES, LAUNCHERS, KubeVirt, Running
from tests.e2e.machine import eventually

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

Document = dict[str, Any]

MIGRATION = "kubevirt.io/migrationJobUID"
NODES = "/api/v1/nodes"
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:{AGENT}"


@pytest.fixture
def running(kubevirt: KubeVirt, tenant: str) -> Iterator[Running]:
    """A VM of the tenant's that runs on node-1."""
    machine = kubevirt.create_machine(tenant, "web")
    made = kubevirt.start(machine, "node-1")
    yield made
    kubevirt.stop(made)
    kubevirt.delete(machine)


@pytest.fixture
def namespace_admin(control_plane: ControlPlane, tenant: str) -> Api:
    """All rights in the tenant's namespace, in Kubernetes' own sense."""
    return user(control_plane, tenant, "boss", "admin", within=tenant)


@pytest.fixture
def node_1(control_plane: ControlPlane) -> Api:
    return agent(control_plane, "node-1")


@pytest.fixture
def node_2(control_plane: ControlPlane) -> Api:
    return agent(control_plane, "node-2")


def copy_of(pod: Document, name: str) -> Document:
    """All that a pod's author can copy of a launcher: owner, labels, annotations, spec."""
    metadata = {
        key: pod["metadata"][key] for key in ("ownerReferences", "labels", "annotations", "namespace")
    }
    return {"metadata": {**metadata, "name": name}, "spec": pod["spec"]}


def plain(namespace: str, name: str) -> Document:
    containers = [{"name": "c", "image": "registry.test/app:1"}]
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"containers": containers}}


# -- launchers


def test_a_namespaces_admin_cannot_forge_a_launcher(
    control_plane: ControlPlane, kubevirt: KubeVirt, running: Running, namespace_admin: Api
) -> None:
    pods = LAUNCHERS.format(running.namespace)
    text = (
        "ValidatingAdmissionPolicy 'cnvnet-launchers' with binding 'cnvnet-launchers' denied request: "
        "only KubeVirt (system:serviceaccount:kubevirt:kubevirt-controller) makes pods of a "
        "VirtualMachineInstance, and says which of them are targets of a migration; "
        f"system:serviceaccount:{running.namespace}:boss does not"
    )
    forged = copy_of(running.pod, "forged")
    assert text in refusal(lambda: namespace_admin.create(pods, forged))
    target = copy_of(kubevirt.migrate(running, "node-2").target, "target")
    assert text in refusal(lambda: namespace_admin.create(pods, target))
    # The label alone, and the owner alone.
    labelled = plain(running.namespace, "labelled")
    labelled["metadata"]["labels"] = {MIGRATION: "1"}
    assert text in refusal(lambda: namespace_admin.create(pods, labelled))
    owned = plain(running.namespace, "owned")
    owned["metadata"]["ownerReferences"] = running.pod["metadata"]["ownerReferences"]
    assert text in refusal(lambda: namespace_admin.create(pods, owned))
    # A pod of their own that becomes one afterwards.
    namespace_admin.create(pods, plain(running.namespace, "own"))
    for metadata in (
        {"ownerReferences": forged["metadata"]["ownerReferences"]},
        {"labels": {MIGRATION: "1"}},
    ):
        assert text in refusal(partial(namespace_admin.patch, f"{pods}/own", {"metadata": metadata}))
    # And the real one, whose role would change.
    real = f"{pods}/{running.pod['metadata']['name']}"
    assert text in refusal(lambda: namespace_admin.patch(real, {"metadata": {"labels": {MIGRATION: "1"}}}))


def test_a_migrations_target_keeps_its_label(
    kubevirt: KubeVirt, running: Running, namespace_admin: Api
) -> None:
    target = kubevirt.migrate(running, "node-2").target
    path = f"{LAUNCHERS.format(running.namespace)}/{target['metadata']['name']}"
    text = refusal(lambda: namespace_admin.patch(path, {"metadata": {"labels": {MIGRATION: None}}}))
    assert "only KubeVirt" in text


def test_launchers_stay_usable_and_other_pods_are_no_concern(
    control_plane: ControlPlane, running: Running, namespace_admin: Api
) -> None:
    pods = LAUNCHERS.format(running.namespace)
    real = f"{pods}/{running.pod['metadata']['name']}"
    namespace_admin.patch(real, {"metadata": {"annotations": {"a.test/b": "c"}, "labels": {"d": "e"}}})
    namespace_admin.create(pods, plain(running.namespace, "app"))
    # An owner that does not control the pod makes it no launcher: KubeVirt's own attachment pods have none.
    friend = plain(running.namespace, "friend")
    (owner,) = running.pod["metadata"]["ownerReferences"]
    friend["metadata"]["ownerReferences"] = [{**owner, "controller": False, "blockOwnerDeletion": False}]
    namespace_admin.create(pods, friend)
    # An administrator of the cluster has no policy above.
    control_plane.api.create(pods, copy_of(running.pod, "by-the-cluster-admin"))


def test_the_garbage_collector_takes_the_owner_from_a_launcher(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str
) -> None:
    """`kubectl delete vmi --cascade=orphan`: it is an UPDATE of the pod, by Kubernetes' own account."""
    machine = kubevirt.create_machine(tenant, "web")
    running = kubevirt.start(machine, "node-1")
    pod = f"{LAUNCHERS.format(tenant)}/{running.pod['metadata']['name']}"
    instance = f"{INSTANCES.format(tenant)}/{running.name}"
    control_plane.api.patch(instance, {"metadata": {"finalizers": None}})
    control_plane.api.delete(instance, propagationPolicy="Orphan")
    eventually(lambda: "ownerReferences" not in control_plane.api.get(pod)["metadata"], "the owner is gone")
    control_plane.api.delete(pod, gracePeriodSeconds=0)
    kubevirt.delete(machine)


def test_a_broken_policy_stops_no_pod_that_is_no_launcher(
    control_plane: ControlPlane, kubevirt: KubeVirt, running: Running, namespace_admin: Api
) -> None:
    """It fails closed for launchers, KubeVirt's own included, and is out of the way of all others."""
    pods = LAUNCHERS.format(running.namespace)
    path = f"{POLICIES}/cnvnet-launchers"
    before = control_plane.api.get(path)["spec"]
    broken = [{"name": "kubevirt", "expression": "object.spec.nothing.like.this"}, *before["variables"][1:]]
    try:
        control_plane.api.patch(path, {"spec": {"variables": broken}})
        launcher = copy_of(running.pod, "launcher")
        dry = f"{pods}?dryRun=All"
        eventually(lambda: _fails(kubevirt.api, dry, launcher), "the policy is broken")
        namespace_admin.create(pods, plain(running.namespace, "app"))
        control_plane.api.create(pods, copy_of(running.pod, "by-the-cluster-admin"))
    finally:
        control_plane.api.patch(path, {"spec": {"variables": before["variables"]}})
    eventually(lambda: not _fails(kubevirt.api, dry, launcher), "the policy is whole again")


def _fails(api: Api, path: str, pod: Document) -> bool:
    """Whether the broken policy refuses the pod."""
    try:
        api.create(path, pod)
    except ApiError as e:
        return "no such key: nothing" in e.message
    return False


def test_on_openshift_another_account_makes_launchers_and_plugins_have_another_folder(
    control_plane: ControlPlane,
) -> None:
    base, openshift = (
        control_plane.kubectl("kustomize", str(KUSTOMIZE / folder)).stdout.splitlines()
        for folder in ("base", "openshift")
    )
    differ = [(ours, theirs) for ours, theirs in zip(base, openshift, strict=True) if ours != theirs]
    expression = "  - expression: '\"system:serviceaccount:{}:kubevirt-controller\"'"
    assert sorted(differ) == [
        ("          path: /opt/cni/bin", "          path: /var/lib/cni/bin"),
        (expression.format("kubevirt"), expression.format("openshift-cnv")),
    ]


# -- tenants and administrators of the network


def test_a_tenant_reads_leases_and_cannot_write_them(
    control_plane: ControlPlane, tenant: str, namespace_admin: Api
) -> None:
    leases = LEASES.format(tenant)
    made = control_plane.api.create(leases, lease(tenant, "web", "10.0.0.5"))
    path = f"{leases}/{made['metadata']['name']}"
    eventually(lambda: _may_read(namespace_admin, path), "the role view has leases")
    text = refusal(lambda: namespace_admin.patch(path, {"spec": {"ips": ["10.0.0.6"]}}))
    assert 'cannot patch resource "vmleases"' in text
    # With all rights on them, too, as a generous administrator may have given.
    rights = [
        {
            "apiGroups": ["cnvnet.io"],
            "resources": ["*"],
            "verbs": ["get", "create", "update", "patch", "delete"],
        }
    ]
    trusted = user(control_plane, tenant, "trusted")
    control_plane.grant(tenant, "trusted", rights)
    account = f"system:serviceaccount:{tenant}:trusted"
    words = (
        "denied request: addresses of VMs are written by cnvnet, not by "
        f"{account} (cnvctl leases releases and reserves them, with the ClusterRole cnvnet-admin)"
    )
    own = reservation("vms", "10.0.0.5", lease={"namespace": tenant, "name": "x", "uid": "y"})
    held = control_plane.api.create(RESERVATIONS, reservation("vms", "10.7.0.5"))
    reserved = f"{RESERVATIONS}/{held['metadata']['name']}"
    for attempt in (
        lambda: trusted.patch(path, {"spec": {"ips": ["10.0.0.6"]}}),
        lambda: trusted.patch(path, {"status": {"holders": {"a.eth0": holder("node-1")}}}),
        lambda: trusted.create(leases, lease(tenant, "db", "10.0.0.7")),
        lambda: trusted.create(RESERVATIONS, own),
        lambda: trusted.patch(reserved, {"spec": {"lease": {"uid": "other"}}}),
        lambda: trusted.delete(reserved),
    ):
        assert words in refusal(attempt)
    # Metadata is theirs: labels, and what the garbage collector does.
    trusted.patch(path, {"metadata": {"labels": {"team": "a"}}})
    assert control_plane.api.get(path)["spec"] == made["spec"]
    control_plane.api.delete(reserved)


def _may_read(api: Api, path: str) -> bool:
    try:
        return bool(api.get(path))
    except ApiError:
        return False


def test_an_administrator_of_the_network_imports_and_releases(
    control_plane: ControlPlane, tenant: str
) -> None:
    """With the role cnvnet-admin and without system:masters."""
    admin = user(control_plane, tenant, "operator", "cnvnet-admin")
    leases = LEASES.format(tenant)
    imported = admin.create(leases, lease(tenant, "web", "10.8.0.5"))
    path = f"{leases}/{imported['metadata']['name']}"
    of = {"namespace": tenant, "name": imported["metadata"]["name"], "uid": imported["metadata"]["uid"]}
    reserved = admin.create(RESERVATIONS, reservation("vms", "10.8.0.5", lease=of))
    admin.patch(path, {"spec": {"ips": []}})
    admin.delete(f"{RESERVATIONS}/{reserved['metadata']['name']}")
    admin.delete(path)
    assert "deletionTimestamp" in admin.get(path)["metadata"]
    admin.patch(path, {"metadata": {"finalizers": None}})
    assert admin.find(path) is None
    admin.create(NETWORKS, network(tenant, "*"))
    admin.delete(f"{NETWORKS}/{tenant}")
    # In one namespace alone the role is no administrator's: an address concerns all of them.
    local = user(control_plane, tenant, "local", "cnvnet-admin", within=tenant)
    text = refusal(lambda: local.create(leases, lease(tenant, "web", "10.8.0.6")))
    assert "addresses of VMs are written by cnvnet" in text


def test_system_masters_pass(control_plane: ControlPlane, running: Running, tenant: str) -> None:
    """Who could delete the policies themselves: all but the keeping of definitions is open to them."""
    admin = control_plane.api
    forged = admin.create(LAUNCHERS.format(tenant), copy_of(running.pod, "forged"))
    assert forged["metadata"]["ownerReferences"] == running.pod["metadata"]["ownerReferences"]
    leases = LEASES.format(tenant)
    made = admin.create(leases, lease(tenant, "other", "10.8.0.7", b_eth0=holder("node-2")))
    path = f"{leases}/{made['metadata']['name']}"
    admin.patch(path, {"spec": {"ips": []}, "status": {"holders": {"b.eth0": None}}})
    of = {"namespace": tenant, "name": made["metadata"]["name"], "uid": made["metadata"]["uid"]}
    reserved = admin.create(RESERVATIONS, reservation("vms", "10.8.0.7", lease=of))
    admin.delete(f"{RESERVATIONS}/{reserved['metadata']['name']}")


# -- agents


def test_an_agent_writes_holders_of_its_own_node_only(tenant: str, node_1: Api, node_2: Api) -> None:
    leases = LEASES.format(tenant)
    made = node_2.create(leases, lease(tenant, "web", "10.0.0.5", b_eth0=holder("node-2")))
    path = f"{leases}/{made['metadata']['name']}"

    def holders(**changes: Document | None) -> Document:
        return {"status": {"holders": {key.replace("_", "."): each for key, each in changes.items()}}}

    wrote = "denied request: an agent writes holders of its own node only: node-1 wrote "
    removed = (
        "denied request: an agent removes holders of its own node only: node-1 removed b.eth0 of node-2"
    )
    foreign = lease(tenant, "db", "10.0.0.6", a_eth0=holder("node-2"))
    for attempt, text in (
        (lambda: node_1.create(leases, foreign), f"{wrote}a.eth0 of node-2"),
        # Changes it, takes it over, adds another in its name.
        (lambda: node_1.patch(path, holders(b_eth0={"role": "target"})), f"{wrote}b.eth0 of node-2"),
        (lambda: node_1.patch(path, holders(b_eth0={"node": "node-1"})), f"{wrote}b.eth0 of node-2"),
        (lambda: node_1.patch(path, holders(c_eth0=holder("node-2"))), f"{wrote}c.eth0 of node-2"),
        # Removes it, or all there is.
        (lambda: node_1.patch(path, holders(b_eth0=None)), removed),
        (lambda: node_1.patch(path, {"status": {"holders": None}}), removed),
        (lambda: node_1.patch(path, {"status": None}), removed),
        (lambda: node_1.delete(path), removed),
    ):
        assert text in refusal(attempt)
    # Its own: added, given away (not), changed, removed without a look.
    node_1.patch(path, holders(a_eth0=holder("node-1", "target")))
    gives_away = refusal(lambda: node_1.patch(path, holders(a_eth0={"node": "node-2"})))
    assert f"{wrote}a.eth0 of node-2" in gives_away
    node_1.patch(path, holders(a_eth0={"role": "active"}))
    node_1.patch(path, holders(a_eth0=None))
    assert list(node_1.get(path)["status"]["holders"]) == ["b.eth0"]


def test_a_vm_that_is_on_another_node_keeps_its_addresses_and_owner(
    tenant: str, node_1: Api, node_2: Api
) -> None:
    leases = LEASES.format(tenant)
    made = node_2.create(leases, lease(tenant, "web", "10.0.0.5", b_eth0=holder("node-2")))
    path = f"{leases}/{made['metadata']['name']}"
    text = (
        "denied request: the addresses and the owner of a VM stay while it is on another node: "
        "node-1 changed those of b.eth0 of node-2"
    )
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "0"}
    attempts: list[Document] = [
        {"spec": {"ips": []}},
        {"spec": {"mac": "0a:58:0a:00:00:06"}},
        {"spec": {"vmUID": "other"}},
        {"metadata": {"ownerReferences": [owner]}},
        {"metadata": {"finalizers": None}},
    ]
    for changes in attempts:
        assert text in refusal(partial(node_1.patch, path, changes))
    # What an ADD of a migration's target writes.
    added = {"a.eth0": holder("node-1", "target")}
    node_1.patch(path, {"spec": {"release": "never"}, "status": {"holders": added}})
    # When the last of the others has left, the addresses follow the VM's next ADD.
    node_2.patch(path, {"status": {"holders": {"b.eth0": None}}})
    node_1.patch(path, {"spec": {"ips": ["10.0.0.9"]}})


def test_an_agents_lease_has_a_finalizer(tenant: str, node_1: Api) -> None:
    bare = lease(tenant, "web", "10.0.0.5")
    del bare["metadata"]["finalizers"]
    text = refusal(lambda: node_1.create(LEASES.format(tenant), bare))
    assert "a VMLease has the finalizer cnvnet.io/in-use: its addresses are freed before it goes" in text


def test_an_agent_changes_reservations_of_its_own_node_only(node_1: Api, node_2: Api) -> None:
    documents = [
        reservation("own", "10.1.0.1", "node-2"),
        reservation("own", "10.1.0.2", pod=pod_of("node-2")),
        reservation("own", "fd00::1", "node-2"),
        reservation("own", "0a:58:0a:01:00:01", "node-2"),
    ]
    only = "denied request: an agent changes and deletes reservations of its own node only: "
    made = "denied request: an agent makes reservations of its own node only: "
    for document in documents:
        text = refusal(partial(node_1.create, RESERVATIONS, document))
        assert f"{made}node-1 made one of node-2" in text
        path = f"{RESERVATIONS}/{node_2.create(RESERVATIONS, document)['metadata']['name']}"
        is_pods = "pod" in document["spec"]
        given = {"pod": {"node": "node-1"}} if is_pods else {"node": "node-1"}
        theirs = {"pod": {"uid": "other"}} if is_pods else {"lease": {"uid": "other"}}
        for attempt in (
            partial(node_1.delete, path),
            partial(node_1.patch, path, {"spec": given}),
            partial(node_1.patch, path, {"spec": theirs}),
            partial(node_1.patch, path, {"spec": {"cooling": {"until": 1}}}),
            *([partial(node_1.patch, path, {"spec": {"nonce": "other"}})] if is_pods else []),
        ):
            assert f"{only}node-1 did it to one of node-2" in refusal(attempt)
        node_2.patch(path, {"spec": {"nonce": "n2", "cooling": {"until": 1}}})
        text = refusal(partial(node_2.patch, path, {"spec": given}))
        assert f"{made}node-2 made one of node-1" in text
        node_2.delete(path)


def test_an_agent_confirms_the_reservation_of_a_vm_that_has_come_to_its_node(
    node_1: Api, node_2: Api
) -> None:
    """The first ADD, on another node, was not done, or the address had begun to cool down."""
    document = reservation("own", "10.1.0.3", "node-2")
    path = f"{RESERVATIONS}/{node_2.create(RESERVATIONS, document)['metadata']['name']}"
    node_2.patch(path, {"spec": {"cooling": {"until": 1}}})
    node_1.patch(path, {"spec": {"nonce": "n3", "cooling": None, "lease": document["spec"]["lease"]}})
    assert node_1.get(path)["spec"] == {**document["spec"], "nonce": "n3"}
    refusal(lambda: node_1.delete(path))
    node_2.delete(path)


def test_a_reservation_of_no_node_is_the_controllers(control_plane: ControlPlane, node_1: Api) -> None:
    controller = control_plane.api.of(control_plane.token(SYSTEM, CONTROLLER))
    path = (
        f"{RESERVATIONS}/{node_1.create(RESERVATIONS, reservation('own', '10.1.0.9'))['metadata']['name']}"
    )
    text = "node-1 did it to one of no node"
    assert text in refusal(lambda: node_1.delete(path))
    controller.delete(path)


def test_an_agent_writes_bridges_of_its_own_node_only(control_plane: ControlPlane, node_1: Api) -> None:
    bridge = {"bridge.network.kubevirt.io/br1": "1000"}
    resources = {"status": {"capacity": bridge, "allocatable": bridge}}
    node_1.patch(f"{NODES}/node-1/status", resources)
    assert control_plane.api.get(f"{NODES}/node-1")["status"]["capacity"] == {
        "bridge.network.kubevirt.io/br1": "1k"
    }
    text = refusal(lambda: node_1.patch(f"{NODES}/node-2/status", resources))
    assert "denied request: an agent writes its own Node only: node-1 wrote node-2" in text
    text = refusal(lambda: node_1.patch(f"{NODES}/node-1/status", {"status": {"capacity": {"cpu": "99"}}}))
    assert "of its Node an agent writes bridge.network.kubevirt.io/* only, not cpu" in text
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    labels = {"metadata": {"labels": {"zone": "a"}}}
    for changes in (ready, labels):
        text = refusal(partial(node_1.patch, f"{NODES}/node-1/status", changes))
        assert "only, in status.capacity and status.allocatable" in text
    assert 'cannot patch resource "nodes"' in refusal(lambda: node_1.patch(f"{NODES}/node-1", labels))
    node_1.patch(
        f"{NODES}/node-1/status",
        {"status": {"capacity": dict.fromkeys(bridge), "allocatable": dict.fromkeys(bridge)}},
    )


def test_a_token_that_names_no_node_writes_nothing(control_plane: ControlPlane, tenant: str) -> None:
    """Such as `kubectl create token cnvnet-agent` gives, or a Secret of the ServiceAccount."""
    stranger = control_plane.api.of(control_plane.token(SYSTEM, AGENT))
    control_plane.api.create(CLAIMS.format(tenant), claim("web"))
    bridge = {"status": {"capacity": {"bridge.network.kubevirt.io/b": "1"}}}
    ips = {"status": {"ips": ["10.0.0.5/24"]}}
    for attempt in (
        lambda: stranger.create(LEASES.format(tenant), lease(tenant, "web", "10.0.0.5")),
        lambda: stranger.create(RESERVATIONS, reservation("own", "10.1.0.1")),
        lambda: stranger.create(NETWORKS, network(tenant)),
        lambda: stranger.patch(f"{NODES}/node-1/status", bridge),
        lambda: stranger.patch(f"{CLAIMS.format(tenant)}/web/status", ips),
    ):
        assert "denied request: the agent's token is not bound to a pod on a node" in refusal(attempt)


def test_only_agents_answer_claims_and_no_agent_makes_or_changes_one(
    control_plane: ControlPlane, tenant: str, namespace_admin: Api, node_1: Api
) -> None:
    claims = CLAIMS.format(tenant)
    control_plane.api.create(claims, claim("web"))
    answer = {"status": {**answered("node-1"), "ownerPod": {"name": "p"}}}
    text = refusal(lambda: namespace_admin.patch(f"{claims}/web/status", answer))
    assert 'cannot patch resource "ipamclaims/status"' in text
    node_1.patch(f"{claims}/web/status", answer)
    assert 'cannot patch resource "ipamclaims"' in refusal(
        lambda: node_1.patch(f"{claims}/web", {"metadata": {"labels": {"a": "b"}}})
    )
    assert 'cannot create resource "ipamclaims"' in refusal(lambda: node_1.create(claims, claim("db")))
    # The status' subresource changes nothing else of a claim.
    node_1.patch(f"{claims}/web/status", {"spec": {"network": "other"}})
    assert control_plane.api.get(f"{claims}/web")["spec"]["network"] == "vms"


def answered(node: str, kind: str = "IPsAllocated") -> Document:
    """The status of a claim that the agent of a node has answered."""
    condition = {
        "type": kind,
        "status": "True",
        "reason": "SuccessfulAllocation",
        "message": f"10.0.0.5/24 for pod p (node {node})",
        "lastTransitionTime": "2026-12-01T10:00:00Z",
    }
    return {"ips": ["10.0.0.5/24"], "conditions": [condition]}


def test_an_agent_signs_what_it_says_in_a_claim_and_leaves_what_others_say(
    control_plane: ControlPlane, tenant: str, node_1: Api, node_2: Api
) -> None:
    control_plane.api.create(CLAIMS.format(tenant), claim("web"))
    path = f"{CLAIMS.format(tenant)}/web/status"
    other = answered("node-1", "Other")
    control_plane.api.patch(path, {"status": other})
    mine = [*other["conditions"], *answered("node-1")["conditions"]]
    signed = "an agent answers an IPAMClaim with the condition IPsAllocated, whose message ends "
    theirs = "denied request: of the conditions of an IPAMClaim an agent writes IPsAllocated only"
    statuses: list[tuple[Document, str]] = [
        ({"ips": ["10.0.0.6/24"]}, f"{signed}with (node node-2)"),
        ({"ownerPod": {"name": "forged"}}, f"{signed}with (node node-2)"),
        ({"conditions": mine}, f"{signed}with (node node-2)"),
        ({"conditions": answered("node-2")["conditions"]}, theirs),
        ({"conditions": None}, theirs),
    ]
    for status, text in statuses:
        assert text in refusal(partial(node_2.patch, path, {"status": status}))
    node_1.patch(path, {"status": {"ips": ["10.0.0.6/24"], "conditions": mine}})
    # The VM has come to the other node.
    moved = [*other["conditions"], *answered("node-2")["conditions"]]
    node_2.patch(path, {"status": {"ownerPod": {"name": "q"}, "conditions": moved}})


def test_an_agent_makes_networks_and_changes_none(
    control_plane: ControlPlane, tenant: str, node_1: Api
) -> None:
    node_1.create(NETWORKS, network(tenant, tenant))
    path = f"{NETWORKS}/{tenant}"
    text = refusal(lambda: node_1.patch(path, {"spec": {"namespaces": ["*"]}}))
    assert 'cannot patch resource "ipnetworks"' in text
    assert 'cannot delete resource "ipnetworks"' in refusal(lambda: node_1.delete(path))
    control_plane.api.delete(path)
