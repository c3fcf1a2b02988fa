"""Which VM a pod is, as a real API server says it of a real KubeVirt's objects."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnvnet.ipam.lease import Lease
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.vm import names
from tests import harness
from tests.e2e.audit import counts
from tests.e2e.control_plane import ControlPlane
from tests.e2e.kubevirt_objects import STAGES, KubeVirt
from tests.functional.agent.own_agent import running_agent
from tests.harness import Node, Outcome

pytestmark = pytest.mark.xdist_group("control_plane")

LAN = names.hashed("lan")
ACCOUNT = "reader"
RIGHTS: list[dict[str, Any]] = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    {"apiGroups": ["kubevirt.io"], "resources": ["virtualmachineinstances"], "verbs": ["get"]},
]
MAC = "02:00:00:00:01:01"


class Reader(NamedTuple):
    """A node whose plugins have credentials; `user` is what the API server calls them."""

    node: Node
    user: str
    kubeconfig: Path
    agent: bool

    def call(self, command: str, pod: dict[str, Any], sandbox: str = "first", **keys: Any) -> Outcome:
        metadata = pod["metadata"]
        args = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": metadata["namespace"],
            "K8S_POD_NAME": metadata["name"],
            "K8S_POD_UID": metadata["uid"],
        }
        ipam = {"type": "static-ip", "subnet": "10.1.0.0/24", "nodeLocal": True, **keys}
        environment = {"CNVNET_AGENT": "auto"} if self.agent else self._own()
        return self.node.cni(
            "static-ip",
            command,
            {"cniVersion": "1.1.0", "name": "vms", "type": "macvlan", "ipam": ipam},
            "/run/netns/nowhere",
            container_id=f"{metadata['uid']}-{sandbox}",
            ifname=LAN,
            args=";".join(f"{key}={value}" for key, value in args.items()),
            env=environment,
        )

    def _own(self) -> dict[str, str]:
        return {"CNVNET_AGENT": "off", "CNVNET_KUBECONFIG": str(self.kubeconfig)}

    def lease(self) -> Lease:
        (lease,) = Sqlite(str(self.node.statedir)).look(lambda ledger: list(ledger.leases()))
        return lease


@pytest.fixture(params=["executable", "agent"])
def reader(
    request: pytest.FixtureRequest,
    control_plane: ControlPlane,
    tenant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Reader]:
    # The agent of this test has credentials; the harness' own would have none.
    monkeypatch.setattr(harness, "through", "")
    control_plane.api.create(f"/api/v1/namespaces/{tenant}/serviceaccounts", {"metadata": {"name": ACCOUNT}})
    control_plane.grant(tenant, ACCOUNT, RIGHTS)
    kubeconfig = control_plane.kubeconfig(control_plane.token(tenant, ACCOUNT))
    with ExitStack() as undo:
        # Static-ip changes nothing outside of its folders, and the server is in the namespace of the tests.
        node = Node(f"/proc/{os.getpid()}/ns/net", tmp_path, undo)
        if request.param == "agent":
            options = ("--metrics-address", "", "--kubeconfig", str(kubeconfig), "--node-name", "node-1")
            undo.enter_context(running_agent(node, *options))
        user = f"system:serviceaccount:{tenant}:{ACCOUNT}"
        yield Reader(node, user, kubeconfig, request.param == "agent")


def test_a_vm_has_its_lease_over_a_restart_and_a_plain_pod_its_own(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, reader: Reader
) -> None:
    wanted = {"cnvnet.io/ip_address.lan": "10.1.0.77"}
    machine = kubevirt.create_machine(tenant, "web", mac=MAC, annotations=wanted)
    running = kubevirt.start(machine, "node-1")
    with control_plane.audit.calls(reader.user) as calls:
        result = reader.call("ADD", running.pod, release="vm-deleted").ok()
    assert [each["address"] for each in result["ips"]] == ["10.1.0.77/24"]
    assert counts(calls) == {"get pods": 1, "get virtualmachineinstances": 1}
    lease = reader.lease()
    assert (lease.key.namespace, lease.key.vm, lease.key.interface) == (tenant, "web", LAN)
    assert (lease.vm_uid, lease.mac) == (machine["metadata"]["uid"], MAC)
    assert lease.holders[0].pod_uid == running.pod["metadata"]["uid"]
    assert lease.holders[0].node == ("node-1" if reader.agent else "")
    with control_plane.audit.calls(reader.user) as calls:
        reader.call("DEL", running.pod).ok()
    assert calls == []
    kubevirt.stop(running)
    again = kubevirt.start(machine, "node-1")
    assert again.instance["metadata"]["uid"] != running.instance["metadata"]["uid"]
    assert reader.call("ADD", again.pod, release="vm-deleted").ok()["ips"] == result["ips"]
    gone = reader.call("ADD", running.pod, "late").error()
    assert gone["code"] == 11
    assert running.pod["metadata"]["uid"] in gone["msg"]
    plain = control_plane.create_pod(tenant, "plain", "node-1")
    with control_plane.audit.calls(reader.user) as calls:
        reader.call("ADD", plain).ok()
    assert counts(calls) == Counter({"get pods": 1})
    kubevirt.stop(again)
    kubevirt.delete(machine)


def test_a_migrations_target_is_one_until_the_vm_is_there(
    kubevirt: KubeVirt, tenant: str, reader: Reader
) -> None:
    """An annotation that no network of the VM can meet counts where the pod is none: it shows the role."""
    mistyped = {"cnvnet.io/ip_address.lna": "10.1.0.7"}
    machine = kubevirt.create_machine(tenant, "web", mac=MAC, annotations=mistyped)
    running = kubevirt.start(machine, "node-1")
    refused = reader.call("ADD", running.pod).error()
    assert (refused["code"], "annotation cnvnet.io/ip_address.lna" in refused["msg"]) == (7, True)
    migrating = kubevirt.migrate(running, "node-2")
    outcomes = {}
    for stage in STAGES:
        kubevirt.advance(migrating, stage)
        outcome = reader.call("ADD", migrating.target, stage)
        assert ("is migrating and keeps what it has" in outcome.stderr) == (stage != STAGES[-1])
        outcomes[stage] = outcome.code
        reader.call("DEL", migrating.target, stage).ok()
    assert outcomes == dict.fromkeys(STAGES[:-1], 0) | {STAGES[-1]: 1}
    kubevirt.stop(running)
    kubevirt.delete(machine)
