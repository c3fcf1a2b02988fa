"""cnvnet as it is installed in a cluster, its users, and objects of its kinds as agents write them."""

from __future__ import annotations

import hashlib
import ipaddress
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.api import Api, ApiError
from tests.e2e.control_plane import CLAIM_DEFINITION, DEFINITIONS, ControlPlane, running_control_plane
from tests.e2e.kubevirt_objects import MACHINE_DEFINITIONS, definitions
from tests.e2e.machine import eventually

Document = dict[str, Any]

KUSTOMIZE = Path(__file__).resolve().parents[2] / "conf/kustomize"
SYSTEM = "cnvnet-system"
AGENT = "cnvnet-agent"
CONTROLLER = "cnvnet-controller"
PLURALS = ("vmleases", "ipreservations", "ipnetworks")
LEASES = "/apis/cnvnet.io/v1alpha1/namespaces/{}/vmleases"
RESERVATIONS = "/apis/cnvnet.io/v1alpha1/ipreservations"
NETWORKS = "/apis/cnvnet.io/v1alpha1/ipnetworks"
FINALIZER = "cnvnet.io/in-use"


@contextmanager
def running_cluster(folder: Path, *nodes: str) -> Generator[ControlPlane]:
    """A Kubernetes without kubelets, on which cnvnet is installed; `nodes` are objects.

    KubeVirt's definitions are there, and those of IPAMClaims. It ends with the block.
    """
    with running_control_plane(folder) as running:
        running.define(*definitions(*MACHINE_DEFINITIONS), CLAIM_DEFINITION)
        install(running)
        for node in nodes:
            running.add_node(node)
        running.start_controllers()
        wait_for_policies(running)
        yield running


def install(control_plane: ControlPlane) -> None:
    """As docs/kubernetes.md has it."""
    control_plane.kubectl("apply", "-k", str(KUSTOMIZE / "base"))
    control_plane.kubectl("apply", "-k", str(KUSTOMIZE / "keep"))
    for plural in PLURALS:
        eventually(partial(control_plane.serves, f"{plural}.cnvnet.io"), f"{plural} are served")


def wait_for_policies(control_plane: ControlPlane) -> None:
    """A policy is in force some seconds after it was applied; all that are applied together at once."""
    kept, unbound = _refused_attempts(control_plane)
    eventually(lambda: _is_refused(kept), "definitions are kept")
    eventually(lambda: _is_refused(unbound), "agents need a token that names their node")


def remove_policies(control_plane: ControlPlane) -> None:
    """None is in force any more when this returns; `install` brings them back."""
    bindings = "validatingadmissionpolicybindings"
    control_plane.kubectl("delete", bindings, "-l", "app.kubernetes.io/part-of=cnvnet")
    attempts = _refused_attempts(control_plane)
    eventually(lambda: not any(map(_is_refused, attempts)), "no policy is in force")


def _refused_attempts(control_plane: ControlPlane) -> tuple[Callable[[], object], ...]:
    """What policies refuse: of `keep`, and of `base`."""
    admin = control_plane.api
    stranger = admin.of(control_plane.token(SYSTEM, AGENT))
    return (
        partial(admin.delete, f"{DEFINITIONS}/ipnetworks.cnvnet.io", dryRun=["All"]),
        partial(stranger.create, f"{RESERVATIONS}?dryRun=All", reservation("x", "10.0.0.1")),
    )


def _is_refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except ApiError as e:
        # Rights may take a moment, too; a policy says which it is.
        return "ValidatingAdmissionPolicy" in e.message
    return False


def free_leases(control_plane: ControlPlane, namespace: str) -> None:
    """Takes the finalizers from all leases of a namespace, as the controller does behind freed addresses."""
    leases = LEASES.format(namespace)
    for each in control_plane.api.get(leases)["items"]:
        try:
            control_plane.api.patch(
                f"{leases}/{each['metadata']['name']}", {"metadata": {"finalizers": None}}
            )
        except ApiError as e:
            if e.code != 404:  # the test's controller may have done it since
                raise


def refusal(attempt: Callable[[], object]) -> str:
    """The words with which the server forbids what is attempted; they are in the test's output."""
    with pytest.raises(ApiError) as caught:
        attempt()
    assert (caught.value.code, caught.value.reason) == (403, "Forbidden"), caught.value
    sys.stdout.write(f"refused: {caught.value.message}\n")
    return caught.value.message


def invalid(attempt: Callable[[], object]) -> str:
    """The words with which the server says what is wrong with an object."""
    with pytest.raises(ApiError) as caught:
        attempt()
    assert (caught.value.code, caught.value.reason) == (422, "Invalid"), caught.value
    return caught.value.message


def agent(control_plane: ControlPlane, node: str) -> Api:
    """The API as the agent of a node sees it: with a token that is bound to a pod there."""
    path = f"/api/v1/namespaces/{SYSTEM}/pods"
    pod = control_plane.api.find(f"{path}/agent-{node}")
    if pod is None:
        pod = control_plane.create_pod(SYSTEM, f"agent-{node}", node, AGENT)
    return control_plane.api.of(control_plane.token(SYSTEM, AGENT, pod))


def user(control_plane: ControlPlane, namespace: str, name: str, *roles: str, within: str = "") -> Api:
    """The API as a ServiceAccount with these ClusterRoles sees it; it has them in one namespace or all."""
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    control_plane.api.create(accounts, {"metadata": {"name": name}})
    for role in roles:
        control_plane.bind(namespace, name, role, within=within)
    return control_plane.api.of(control_plane.token(namespace, name))


def holder(node: str, role: str = "active", container: str = "0123456789abc") -> Document:
    return {
        "container": container,
        "ifname": "eth0",
        "node": node,
        "pod": "tenant/virt-launcher-web",
        "podUID": "9d2c",
        "role": role,
        "since": 1_700_000_000,
        "netns": "/run/netns/cni-1",
        "inode": 4_026_532_000,
        "bootID": "b1",
    }


def lease(namespace: str, vm: str, *ips: str, **holders: Document) -> Document:
    """A VMLease of `vm`; the keys of holders have an underscore where theirs have a dot."""
    held = {key.replace("_", "."): each for key, each in holders.items()}
    digits = hashlib.sha256("\0".join(("vms", namespace, vm, "eth0")).encode()).hexdigest()[:16]
    return {
        "apiVersion": "cnvnet.io/v1alpha1",
        "kind": "VMLease",
        "metadata": {
            "name": f"{vm}-{digits}",
            "namespace": namespace,
            "finalizers": [FINALIZER],
            "labels": {"cnvnet.io/network": "vms"},
        },
        "spec": {
            "network": "vms",
            "vm": vm,
            "vmUID": "77aa",
            "interface": "eth0",
            "ips": list(ips),
            "mac": "0a:58:0a:00:00:05",
            "release": "vm-deleted",
            "cooldown": 0,
            "source": "",
            "since": 1_700_000_000,
            "nonce": "n1",
            "pending": [],
            "cooling": [],
        },
        "status": {
            "holders": held,
            "roles": {key: each["role"] for key, each in held.items()},
            "active": "",
        },
    }


def network(name: str, *namespaces: str) -> Document:
    """The IPNetwork for the pods of these namespaces."""
    metadata, spec = {"name": name}, {"namespaces": list(namespaces)}
    return {"apiVersion": "cnvnet.io/v1alpha1", "kind": "IPNetwork", "metadata": metadata, "spec": spec}


def claim(name: str) -> Document:
    """An IPAMClaim for an interface in the network of `lease`."""
    metadata, spec = {"name": name}, {"network": "vms", "interface": "eth0"}
    return {
        "apiVersion": "k8s.cni.cncf.io/v1alpha1",
        "kind": "IPAMClaim",
        "metadata": metadata,
        "spec": spec,
    }


def reservation(of_network: str, address: str, node: str = "", **of: Document) -> Document:
    """The IPReservation of an address, made by a node, of a `lease` or a `pod`."""
    digits = hashlib.sha256(of_network.encode()).hexdigest()[:10]
    written = address if address.count(":") == 5 else ipaddress.ip_address(address).exploded
    return {
        "apiVersion": "cnvnet.io/v1alpha1",
        "kind": "IPReservation",
        "metadata": {"name": f"{of_network}-{digits}-{written.replace('.', '-').replace(':', '-')}"},
        "spec": {
            "network": of_network,
            "address": address,
            "nonce": "n1",
            **({"node": node} if node else {}),
            **(of or {"lease": {"namespace": "tenant", "name": "web-0123456789abcdef", "uid": "u1"}}),
        },
    }


def pod_of(node: str) -> Document:
    """What a reservation says of a pod that is no VM."""
    return {
        "namespace": "tenant",
        "name": "db",
        "uid": "p1",
        "node": node,
        "container": "c1",
        "ifname": "eth0",
    }
