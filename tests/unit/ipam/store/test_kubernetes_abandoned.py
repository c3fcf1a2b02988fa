"""Holds whose pods ended without a DEL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnvnet.ipam import allocator
from cnvnet.ipam.allocation import AllocationRequest, Policy
from cnvnet.ipam.lease import VM_DELETED, Holder, LeaseKey
from cnvnet.ipam.store import kubernetes_abandoned
from cnvnet.ipam.store.holds import HELD
from cnvnet.ipam.store.protocol import Ledger
from cnvnet.kube.resources import PODS
from cnvnet.vm.identity import ACTIVE
from tests.fakes.api_server import ApiServer, refuse
from tests.fakes.kubernetes_store import disagreements
from tests.unit.ipam.store.conformance import PREFIX, a_pool
from tests.unit.ipam.store.nodes import Node, leases, reserved


class Sandbox:
    """A pod of the API, and a file in the place of its namespace."""

    def __init__(self, server: ApiServer, folder: Path, container: str, pod: str = "p") -> None:
        self.path = folder / container
        self.path.touch()
        self.container = container
        self.pod = pod
        if not any(each["metadata"]["name"] == pod for each in server.documents(PODS)):
            server.objects.create(PODS, "default", {"metadata": {"name": pod}})
        self.uid = str(server.objects.get(PODS, "default", pod)["metadata"]["uid"])

    def attach(self, node: Node, vm: str = "") -> None:
        key = LeaseKey("net", "default", vm, "eth0") if vm else LeaseKey("net", "", self.container, "eth0")
        inode = self.path.stat().st_ino
        pod = f"default/{self.pod}"
        holder = Holder(
            self.container, "eth0", ACTIVE, str(self.path), inode, "boot", node.now, "n1", pod, self.uid
        )
        policy = Policy(PREFIX, VM_DELETED, 0)
        request = AllocationRequest(key, "", holder, a_pool(), policy, (), "", "", node.now)

        def acquire(ledger: Ledger) -> None:
            allocator.acquire(ledger, request, lambda _: False)

        node.store.run(acquire)


def held(node: Node) -> list[str]:
    return sorted(each.container_id for each in node.holds.all() if each.state == HELD)


@pytest.mark.parametrize("vm", ["", "vm1"])
def test_a_hold_ends_whose_namespace_and_pod_are_gone(
    server: ApiServer, node: Node, tmp_path: Path, vm: str
) -> None:
    sandbox = Sandbox(server, tmp_path, "c1")
    sandbox.attach(node, vm)
    sandbox.path.unlink()
    server.objects.delete(PODS, "default", "p", {})
    node.store.drain()
    assert held(node) == ["c1"]
    node.store.drain()
    assert node.holds.all() == []
    assert [each.lease.holders for each in leases(server) if each.lease] == ([()] if vm else [])
    assert len(reserved(server)) == (2 if vm else 0)
    assert disagreements(server) == []


def test_a_sandbox_that_was_replaced_leaves_the_pods_new_one_alone(
    server: ApiServer, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Sandbox(server, tmp_path, "c1"), Sandbox(server, tmp_path, "c2")
    old.attach(node)
    old.path.unlink()
    for _ in range(9):
        node.store.drain()
    # Its pod is there, and nothing else says that it has ended. That is asked once in a while.
    assert (held(node), server.count("get", "pods")) == (["c1"], 1)
    new.attach(node)
    monkeypatch.setattr(kubernetes_abandoned, "_PAUSE", 0.0)
    for _ in range(2):
        node.store.drain()
    assert held(node) == ["c2"]
    assert len(reserved(server)) == 1


@pytest.mark.parametrize("gone", ["namespace", "pod", "folder"])
def test_a_hold_stays_while_anything_speaks_for_it(
    server: ApiServer, node: Node, tmp_path: Path, gone: str
) -> None:
    folder = tmp_path / "netns"
    folder.mkdir()
    sandbox = Sandbox(server, folder, "c1")
    sandbox.attach(node)
    if gone != "pod":
        sandbox.path.unlink()
    if gone != "namespace":
        server.objects.delete(PODS, "default", "p", {})
    if gone == "folder":
        # The agent does not see where namespaces are.
        folder.rmdir()
    for _ in range(3):
        node.store.drain()
    assert held(node) == ["c1"]


def test_an_api_that_does_not_answer_ends_nothing(server: ApiServer, node: Node, tmp_path: Path) -> None:
    sandbox = Sandbox(server, tmp_path, "c1")
    sandbox.attach(node)
    sandbox.path.unlink()
    server.objects.delete(PODS, "default", "p", {})
    server.inject(refuse(503), verb="get", plural="pods")
    node.store.drain()
    drained: Any = node.store.drain()
    assert ("503" in drained.left[0], held(node)) == (True, ["c1"])
    node.store.drain()
    assert node.holds.all() == []
