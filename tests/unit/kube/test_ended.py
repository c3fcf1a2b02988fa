"""When a pod of another node counts as ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cnvnet.kube.client import Client
from cnvnet.kube.ended import reason_to_keep
from cnvnet.kube.resources import NODES, PODS
from tests.fakes.api_server import running_api_server

TAINT = "node.kubernetes.io/out-of-service"


@pytest.fixture
def client() -> Iterator[Client]:
    """A cluster with a node and a static pod there, which the runtime knows by another UID."""
    with running_api_server() as server:
        made = server.client()
        made.create(NODES, {"metadata": {"name": "n1"}})
        mirror = {"kubernetes.io/config.mirror": "of-the-file"}
        made.create(PODS, {"metadata": {"name": "static", "annotations": mirror}}, "default")
        yield made


@pytest.mark.parametrize(
    ("pod", "uid", "node", "reason"),
    [
        ("default/static", "of-the-file", "n1", "pod default/static is there"),
        ("default/static", "of-another", "n1", f"node n1 is there without the taint {TAINT}"),
        ("default/static", "of-another", "n2", ""),
        ("default/gone", "u", "n2", ""),
        ("default/gone", "", "n2", "nothing names its pod with a UID, and its node"),
        ("", "u", "n2", "nothing names its pod with a UID, and its node"),
        ("default/gone", "u", "", "nothing names its pod with a UID, and its node"),
    ],
)
def test_a_pod_is_kept_while_it_or_its_node_is_there(
    client: Client, pod: str, uid: str, node: str, reason: str
) -> None:
    assert reason_to_keep(client, pod, uid, node) == reason


def test_a_node_that_is_tainted_as_out_of_service_runs_nothing(client: Client) -> None:
    taints: list[dict[str, Any]] = [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]
    client.patch(NODES, "n1", {"spec": {"taints": taints}})
    assert reason_to_keep(client, "default/gone", "u", "n1").startswith("node n1 is there")
    client.patch(NODES, "n1", {"spec": {"taints": [*taints, {"key": TAINT, "effect": "NoExecute"}]}})
    assert reason_to_keep(client, "default/gone", "u", "n1") == ""
    assert reason_to_keep(client, "default/static", "of-the-file", "n1") != ""
