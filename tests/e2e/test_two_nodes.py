"""Two nodes with kubelets and all that a DaemonSet needs: controllers, ServiceAccounts, their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e import images
from tests.e2e.cnvnet_objects import (
    AGENT,
    LEASES,
    SYSTEM,
    holder,
    install,
    lease,
    refusal,
    wait_for_policies,
)
from tests.e2e.machine import eventually
from tests.e2e.testbed import Node, Testbed, running_testbed

DAEMON_SETS = f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets"
PODS = f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector=app=agent"
LABELS = {"app": "agent"}


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    with running_testbed(tmp_path_factory.mktemp("two"), nodes=2, complete=True) as running:
        install(running.control_plane)
        wait_for_policies(running.control_plane)
        yield running


def daemon_set() -> dict[str, Any]:
    """Pods of the agent's ServiceAccount that do nothing, with their token where a container has it."""
    token = {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}
    container = {
        "name": "idle",
        "image": images.IDLE,
        "imagePullPolicy": "Never",
        "volumeMounts": [{"name": "identity", "mountPath": "/identity"}],
    }
    pod = {
        "serviceAccountName": AGENT,
        "automountServiceAccountToken": False,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": "identity", "projected": {"sources": [token]}}],
    }
    template = {"metadata": {"labels": LABELS}, "spec": pod}
    spec = {"selector": {"matchLabels": LABELS}, "template": template}
    return {"metadata": {"name": "agent"}, "spec": spec}


def tokens(cluster: Testbed) -> dict[str, str]:
    """The token of the pod on each node, as the node's kubelet has written it."""
    found: dict[str, str] = {}
    for pod in cluster.api.get(PODS)["items"]:
        (node,) = (each for each in cluster.nodes if each.name == pod["spec"]["nodeName"])
        found[node.name] = token_on(node, pod["metadata"]["uid"])
    return found


def token_on(node: Node, uid: str) -> str:
    path = f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected/identity/token"
    return node.machine.inside("cat", path).stdout


def test_the_token_of_a_daemon_sets_pod_writes_for_its_own_node(cluster: Testbed) -> None:
    cluster.api.create(DAEMON_SETS, daemon_set())
    path = f"{DAEMON_SETS}/agent"
    eventually(lambda: cluster.api.get(path)["status"].get("numberReady") == 2, "both pods are ready")
    by_node = tokens(cluster)
    assert set(by_node) == {"node-1", "node-2"}
    leases = LEASES.format("default")
    for number, (node, token) in enumerate(sorted(by_node.items()), 1):
        document = lease("default", f"vm-{number}", f"10.0.0.{number}", a_eth0=holder(node))
        cluster.api.of(token).create(leases, document)
    foreign = lease("default", "vm-3", "10.0.0.3", a_eth0=holder("node-2"))
    text = refusal(lambda: cluster.api.of(by_node["node-1"]).create(leases, foreign))
    assert "an agent writes holders of its own node only: node-1 wrote a.eth0 of node-2" in text
    # What it owns ends with it, and with the pods their tokens.
    cluster.api.delete(path)
    eventually(lambda: cluster.api.get(PODS)["items"] == [], "its pods are gone")
