"""What KubeVirt writes into the API for a virtual machine, recorded from a real one; names and UIDs are new.

The author is real, too: KubeVirt's objects are made with a token of its controller's ServiceAccount, because
admission tells a launcher from a forged one by nothing else.
"""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.api import Api
from tests.e2e.control_plane import ControlPlane
from tests.e2e.machine import eventually

Document = dict[str, Any]

DATA = Path(__file__).resolve().parents[1] / "data/kubevirt"
NAMESPACE = "kubevirt"
CONTROLLER = "kubevirt-controller"
MACHINES = "/apis/kubevirt.io/v1/namespaces/{}/virtualmachines"
INSTANCES = "/apis/kubevirt.io/v1/namespaces/{}/virtualmachineinstances"
MIGRATIONS = "/apis/kubevirt.io/v1/namespaces/{}/virtualmachineinstancemigrations"
LAUNCHERS = "/api/v1/namespaces/{}/pods"
CLAIMS = "/apis/k8s.cni.cncf.io/v1alpha1/namespaces/{}/ipamclaims"
MACHINE_DEFINITIONS = ("virtualmachines", "virtualmachineinstances", "virtualmachineinstancemigrations")
STAGES = ("1-scheduling", "2-target-running", "3-target-ready", "4-running", "5-end")
"""Of a migration: what its objects are at that moment."""

_NETWORKS = "k8s.v1.cni.cncf.io/networks"
# In the recording.
_MAC = "02:00:00:00:00:0a"
_INSTANCE_UID = "91cab18b-9bfc-4f20-9359-5552755a545a"
_MACHINE_UID = "6872abbb-50f2-46d8-a9ab-06adb435f608"
_MIGRATION_UID = "d8977b59-3967-4e23-aa47-b890a9b1745f"
_SOURCE_POD = ("virt-launcher-vm-a-ckmh4", "171d807f-e531-4067-a7b3-cf2e11b82a38")
# Characters of a label's value, and of a pod's hostname.
_LONGEST_LABEL = 63
_TARGET_POD = "virt-launcher-vm-a-j5fxc"


class Running(NamedTuple):
    """A virtual machine, its instance and the pod that it runs in, as the API has them."""

    machine: Document
    instance: Document
    pod: Document

    @property
    def name(self) -> str:
        return str(self.machine["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.machine["metadata"]["namespace"])


class Migrating(NamedTuple):
    """A migration of `source` to `target`, the second pod."""

    source: Running
    target: Document
    migration: Document


def definitions(*plurals: str) -> list[Document]:
    """KubeVirt's CustomResourceDefinitions with these plurals (v1.9)."""
    lines = lzma.decompress((DATA / "crds.jsonl.xz").read_bytes()).splitlines()
    known = {loaded["spec"]["names"]["plural"]: loaded for loaded in map(json.loads, lines)}
    return [known[plural] for plural in plurals]


class KubeVirt:
    """KubeVirt's controller in a cluster, but for what it decides: a test says what happens to a machine."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._admin = control_plane.api
        self._token = ""

    def install(self) -> None:
        """Its controller's ServiceAccount with its rights; MACHINE_DEFINITIONS have to be there."""
        self._control_plane.add_namespace(NAMESPACE)
        accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
        self._admin.create(accounts, {"metadata": {"name": CONTROLLER}})
        rights = [
            {"apiGroups": [""], "resources": ["pods", "pods/status", "pods/finalizers"], "verbs": ["*"]},
            {"apiGroups": ["kubevirt.io"], "resources": ["*"], "verbs": ["*"]},
        ]
        self._control_plane.grant(NAMESPACE, CONTROLLER, rights)

    @property
    def api(self) -> Api:
        """The API as KubeVirt's controller sees it."""
        if not self._token:
            self._token = self._control_plane.token(NAMESPACE, CONTROLLER)
        return self._admin.of(self._token)

    def create_machine(
        self, namespace: str, name: str, *, mac: str = _MAC, annotations: dict[str, str] | None = None
    ) -> Document:
        """A VirtualMachine as its author writes it: `annotations` are for its pod."""
        document = _recorded("vm-r-core", {r"\br-core\b": name, "02:00:00:00:10:0a": mac}, namespace)
        document["spec"]["template"]["metadata"]["annotations"].update(annotations or {})
        created: Document = self._admin.create(MACHINES.format(namespace), document)
        return created

    def create_claim(self, machine: Document, network: str) -> Document:
        """The IPAMClaim for the machine's `lan`, as KubeVirt's IPAM controller makes it."""
        metadata = machine["metadata"]
        owner = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "controller": True}
        body = {
            "apiVersion": "k8s.cni.cncf.io/v1alpha1",
            "kind": "IPAMClaim",
            "metadata": {
                "name": claim_of(machine),
                "labels": {"kubevirt.io/vm": metadata["name"]},
                "finalizers": ["kubevirt.io/persistent-ipam"],
                "ownerReferences": [{**owner, "name": metadata["name"], "uid": metadata["uid"]}],
            },
            "spec": {"network": network, "interface": ""},
        }
        created: Document = self._admin.create(CLAIMS.format(metadata["namespace"]), body)
        return created

    def release_claim(self, machine: Document) -> None:
        """What it does when nothing of the machine runs any more: the claim can go."""
        path = f"{CLAIMS.format(machine['metadata']['namespace'])}/{claim_of(machine)}"
        self._admin.patch(path, {"metadata": {"finalizers": None}})

    def start(
        self, machine: Document, node: str, spec: Document | None = None, *, claim: str = ""
    ) -> Running:
        """The machine's instance and its launcher pod, as they are before the pod's network is made.

        `spec` is what the pod is to run, where a kubelet runs it: KubeVirt's own images are not there.
        `claim` is the IPAMClaim that its webhook writes into the pod's networks.
        """
        namespace, name = machine["metadata"]["namespace"], machine["metadata"]["name"]
        annotations = machine["spec"]["template"]["metadata"]["annotations"]
        interface = machine["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][1]
        known = {
            _MACHINE_UID: machine["metadata"]["uid"],
            _MAC: interface["macAddress"],
            r"\bvm-a\b": name,
            r"\bnode1\b": node,
        }
        document = _recorded("vmi-vm-a", known, namespace)
        document["metadata"]["annotations"].update(annotations)
        instance = self.api.create(INSTANCES.format(namespace), document)
        known[_INSTANCE_UID] = instance["metadata"]["uid"]
        pod = self._create_pod("pod-source-vm-a", known, namespace, annotations, spec, claim)
        active = {"activePods": {_SOURCE_POD[1]: None, pod["metadata"]["uid"]: node}}
        instance = self.api.patch(f"{INSTANCES.format(namespace)}/{name}", {"status": active})
        return Running(machine, instance, pod)

    def migrate(self, running: Running, node: str) -> Migrating:
        """A migration whose target pod is there, on another node; the instance knows nothing of it yet."""
        path = MIGRATIONS.format(running.namespace)
        body = _recorded("mig-vm-a-1-scheduling", {r"\bvm-a\b": running.name}, running.namespace, "vmim")
        body["metadata"].pop("name")
        body["metadata"]["generateName"] = "migration-"
        migration: Document = self.api.create(path, body)
        known = self._known(running, migration, node)
        annotations = running.machine["spec"]["template"]["metadata"]["annotations"]
        pod = self._create_pod("pod-migration-target-vm-a", known, running.namespace, annotations)
        made = Migrating(running, pod, migration)
        self.advance(made, STAGES[0])
        return made

    def advance(self, migrating: Migrating, stage: str) -> Document:
        """The instance and the migration as they were recorded at a stage of STAGES. The instance."""
        running = migrating.source
        namespace, name = running.namespace, migrating.migration["metadata"]["name"]
        node = migrating.target["spec"]["nodeName"]
        known = self._known(running, migrating.migration, node)
        known[_TARGET_POD] = migrating.target["metadata"]["name"]
        instance = _recorded(f"mig-vm-a-{stage}", known, namespace, "vmi")
        migration = _recorded(f"mig-vm-a-{stage}", known, namespace, "vmim")
        self.api.patch(f"{MIGRATIONS.format(namespace)}/{name}/status", {"status": migration["status"]})
        return self._patch_instance(running, instance)

    def _patch_instance(self, running: Running, recorded: Document) -> Document:
        labels = dict(recorded["metadata"]["labels"])
        changes = {"metadata": {"labels": labels}, "status": recorded["status"]}
        path = f"{INSTANCES.format(running.namespace)}/{running.name}"
        patched: Document = self.api.patch(path, changes)
        return patched

    def _known(self, running: Running, migration: Document, node: str) -> dict[str, str]:
        pod = running.pod
        return {
            _MACHINE_UID: running.machine["metadata"]["uid"],
            _INSTANCE_UID: running.instance["metadata"]["uid"],
            _MIGRATION_UID: migration["metadata"]["uid"],
            r"\bmig-a\b": migration["metadata"]["name"],
            _MAC: running.instance["spec"]["domain"]["devices"]["interfaces"][1]["macAddress"],
            _SOURCE_POD[0]: pod["metadata"]["name"],
            _SOURCE_POD[1]: pod["metadata"]["uid"],
            r"\bvm-a\b": running.name,
            r"\bnode1\b": pod["spec"]["nodeName"],
            r"\bnode2\b": node,
        }

    def _create_pod(
        self,
        recorded: str,
        known: dict[str, str],
        namespace: str,
        annotations: dict[str, str],
        spec: Document | None = None,
        claim: str = "",
    ) -> Document:
        document = _recorded(recorded, known, namespace)
        document["spec"] = spec or document["spec"]
        # The server makes the rest of the name.
        del document["metadata"]["name"]
        document["metadata"]["annotations"].update(annotations)
        if claim:
            networks = json.loads(document["metadata"]["annotations"][_NETWORKS])
            named = [{**each, "ipam-claim-reference": claim} for each in networks]
            document["metadata"]["annotations"][_NETWORKS] = json.dumps(named)
        created: Document = self.api.create(LAUNCHERS.format(namespace), document)
        return created

    def stop(self, running: Running) -> None:
        """The instance and its pods end; the machine stays."""
        selector = f"labelSelector=kubevirt.io/created-by={running.instance['metadata']['uid']}"
        pods = LAUNCHERS.format(running.namespace)
        for pod in self.api.get(f"{pods}?{selector}")["items"]:
            # No kubelet would end it.
            self.api.delete(f"{pods}/{pod['metadata']['name']}", gracePeriodSeconds=0)
        self._delete(f"{INSTANCES.format(running.namespace)}/{running.name}")

    def delete(self, machine: Document) -> None:
        """The machine goes, as after `kubectl delete vm`; its instance has to be stopped."""
        self._delete(f"{MACHINES.format(machine['metadata']['namespace'])}/{machine['metadata']['name']}")

    def _delete(self, path: str) -> None:
        self.api.delete(path)
        # What KubeVirt's finalizers wait for has happened.
        self.api.patch(path, {"metadata": {"finalizers": None}})
        eventually(lambda: self.api.find(path) is None, f"{path} is gone")


def claim_of(machine: Document) -> str:
    """The name of the IPAMClaim for the machine's `lan`."""
    return f"{machine['metadata']['name']}.lan"


def _recorded(name: str, known: dict[str, str], namespace: str, part: str = "") -> Document:
    """A recorded document, in which patterns give way to what is known in the test's cluster."""
    loaded = json.loads((DATA / f"captured/{name}.json").read_text())
    text = json.dumps(loaded[part] if part else loaded)
    # Its networks are in its own namespace.
    text = text.replace(r"\"namespace\":\"default\"", rf"\"namespace\":\"{namespace}\"")
    text = text.replace(r"\"--namespace\", \"default\"", rf"\"--namespace\", \"{namespace}\"")
    # The longest first: the names of pods contain that of their machine.
    for pattern, replacement in sorted(known.items(), key=lambda each: -len(each[0])):
        text = re.sub(pattern, replacement, text)
    document: Document = json.loads(text)
    metadata = document["metadata"]
    for key in ("uid", "resourceVersion", "creationTimestamp", "generation"):
        metadata.pop(key, None)
    metadata["namespace"] = namespace
    # As KubeVirt cuts the names of machines where they may not be as long.
    labels = metadata.get("labels", {})
    labels |= {key: value[:_LONGEST_LABEL].rstrip("-.") for key, value in labels.items()}
    if prefix := metadata.get("generateName"):
        metadata["generateName"] = prefix[:_LONGEST_LABEL]
    if hostname := document["spec"].get("hostname"):
        document["spec"]["hostname"] = hostname.split(".")[0][:_LONGEST_LABEL].rstrip("-")
    if document["kind"] == "VirtualMachine":
        document.pop("status", None)
    return document
