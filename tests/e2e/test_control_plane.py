"""The test bed without kubelets has what tests of the Kubernetes store need."""

from __future__ import annotations

import http.client
import re
import ssl
from urllib.parse import urlsplit

import pytest

from tests.e2e.api import ApiError
from tests.e2e.audit import Call, counts
from tests.e2e.control_plane import ControlPlane
from tests.e2e.kubevirt_objects import INSTANCES, STAGES, KubeVirt
from tests.e2e.machine import eventually

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")


def test_a_machine_that_migrates_has_the_objects_that_kubevirt_writes(
    kubevirt: KubeVirt, tenant: str
) -> None:
    machine = kubevirt.create_machine(tenant, "web", mac="02:00:00:00:01:01", annotations={"a.test/b": "c"})
    running = kubevirt.start(machine, "node-1")
    (owner,) = running.pod["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("VirtualMachineInstance", "web", True)
    assert owner["uid"] == running.instance["metadata"]["uid"]
    (owner,) = running.instance["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("VirtualMachine", machine["metadata"]["uid"])
    assert running.instance["status"]["activePods"] == {running.pod["metadata"]["uid"]: "node-1"}
    annotations = running.pod["metadata"]["annotations"]
    assert '"mac":"02:00:00:00:01:01"' in annotations["k8s.v1.cni.cncf.io/networks"]
    assert annotations["a.test/b"] == "c"
    migrating = kubevirt.migrate(running, "node-2")
    target = migrating.target["metadata"]
    assert migrating.target["spec"]["nodeName"] == "node-2"
    assert target["labels"]["kubevirt.io/migrationJobUID"] == migrating.migration["metadata"]["uid"]
    assert target["ownerReferences"] == running.pod["metadata"]["ownerReferences"]
    seen = [kubevirt.advance(migrating, stage) for stage in STAGES]
    assert [each["status"]["nodeName"] for each in seen] == ["node-1"] * 4 + ["node-2"]
    assert "migrationState" not in seen[0]["status"]
    state = seen[-1]["status"]["migrationState"]
    assert (state["sourcePod"], state["targetPod"]) == (running.pod["metadata"]["name"], target["name"])
    assert state["migrationUid"] == migrating.migration["metadata"]["uid"]
    names = str([running, migrating, seen])
    assert re.findall(r"\b(?:vm-a|r-core|node1|node2|91cab18b|d8977b59)\b.{,40}", names) == []
    kubevirt.stop(running)
    kubevirt.delete(machine)


def test_a_pods_token_names_its_node(control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str) -> None:
    pod = control_plane.create_pod(tenant, "agent", "node-2")
    api = control_plane.api.of(control_plane.token(tenant, "default", pod))
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    user = api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)["status"]["userInfo"]
    assert user["username"] == f"system:serviceaccount:{tenant}:default"
    assert user["extra"]["authentication.kubernetes.io/node-name"] == ["node-2"]
    with pytest.raises(ApiError) as refused:
        api.get(INSTANCES.format(tenant))
    assert (refused.value.code, refused.value.reason) == (403, "Forbidden")


def test_requests_are_counted_by_user_verb_and_resource(control_plane: ControlPlane, tenant: str) -> None:
    maps = f"/api/v1/namespaces/{tenant}/configmaps"
    account = f"system:serviceaccount:{tenant}:default"
    api = control_plane.api.of(control_plane.token(tenant, "default"))
    with control_plane.audit.calls(account) as own, control_plane.audit.calls("admin") as admins:
        control_plane.api.create(maps, {"metadata": {"name": "a"}})
        control_plane.api.patch(f"{maps}/a", {"data": {"x": "y"}})
        with pytest.raises(ApiError):
            api.get(f"{maps}/a")
    assert own == [Call(account, "get", "configmaps", 403)]
    # The controllers are this administrator, too, and end what other tests have left.
    assert counts(each for each in admins if each.resource == "configmaps") == {
        "create configmaps": 1,
        "patch configmaps": 1,
    }


def test_what_is_owned_ends_with_its_owner(control_plane: ControlPlane, tenant: str) -> None:
    maps = f"/api/v1/namespaces/{tenant}/configmaps"
    owner = control_plane.api.create(maps, {"metadata": {"name": "owner"}})["metadata"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"]}
    for name, owners in (("owned", [reference]), ("free", [])):
        control_plane.api.create(maps, {"metadata": {"name": name, "ownerReferences": owners}})
    control_plane.api.delete(f"{maps}/owner")
    eventually(lambda: control_plane.api.find(f"{maps}/owned") is None, "the owned one is gone")
    assert control_plane.api.find(f"{maps}/free")


def test_a_client_outside_of_it_can_verify_the_server(control_plane: ControlPlane) -> None:
    server = urlsplit(control_plane.url)
    trust = ssl.create_default_context(cafile=str(control_plane.authority))
    connection = http.client.HTTPSConnection(str(server.hostname), server.port, context=trust, timeout=30)
    headers = {"Authorization": f"Bearer {control_plane.api.token}"}
    # One connection takes many requests.
    for path in ("/readyz", "/api/v1/namespaces/default"):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
    connection.close()
    assert control_plane.kubectl("get", "nodes", "-o", "name").stdout.split() == [
        "node/node-1",
        "node/node-2",
    ]
