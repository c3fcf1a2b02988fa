"""Launcher pods and VirtualMachineInstances of a recorded KubeVirt, in the API server of the tests."""

from __future__ import annotations

from typing import Any

from cnvnet.cni.conventions import PodRef
from cnvnet.kube.resources import INSTANCES, PODS
from tests import kubevirt
from tests.fakes.api_server import ApiServer

NAMESPACE = "default"


class Launchers:
    """What is in the server, under UIDs of its own."""

    def __init__(self, server: ApiServer) -> None:
        self._objects = server.objects

    def start(self, machine: str, annotations: dict[str, str] | None = None, **edits: Any) -> PodRef:
        """A VM's instance and its pod; `edits` are of the instance's status."""
        pod, vmi = kubevirt.started(machine)
        vmi["status"] |= edits
        created = self._objects.create(INSTANCES, NAMESPACE, vmi)
        return self._add(pod, created["metadata"]["uid"], annotations or {})

    def migrate(self, machine: str, annotations: dict[str, str] | None = None) -> PodRef:
        """The target pod of a migration of a VM that runs."""
        instance = self._objects.get(INSTANCES, NAMESPACE, machine)
        status = kubevirt.migration(machine, "1-scheduling")["status"]
        self._objects.patch(INSTANCES, NAMESPACE, machine, {"status": status})
        pod = kubevirt.captured(f"pod-migration-target-{machine}")
        return self._add(pod, instance["metadata"]["uid"], annotations or {})

    def add_pod(self, name: str, annotations: dict[str, str] | None = None) -> PodRef:
        """A pod that is no VM's."""
        pod = {"metadata": {"name": name, "annotations": annotations or {}}, "spec": {"nodeName": "node1"}}
        return ref(self._objects.create(PODS, NAMESPACE, pod))

    def _add(self, pod: dict[str, Any], owner: str, annotations: dict[str, str]) -> PodRef:
        pod["metadata"]["ownerReferences"][0]["uid"] = owner
        pod["metadata"]["annotations"] |= annotations
        return ref(self._objects.create(PODS, NAMESPACE, pod))


def ref(pod: dict[str, Any]) -> PodRef:
    """The pod as its runtime names it."""
    metadata = pod["metadata"]
    return PodRef(metadata["namespace"], metadata["name"], metadata["uid"])


def cni_args(pod: PodRef) -> str:
    """The CNI_ARGS of a call for it, as a kubelet's runtime has them."""
    return (
        f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name};"
        f"K8S_POD_INFRA_CONTAINER_ID=0b8a;K8S_POD_UID={pod.uid}"
    )
