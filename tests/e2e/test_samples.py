"""The commands of conf/README.md as they stand there, on a real API server with KubeVirt's own definitions.

Only nmstate's is missing: a definition without a schema takes its place, so that the command runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.control_plane import DEFINITIONS, NADS
from tests.e2e.kubevirt_objects import definitions
from tests.e2e.machine import eventually
from tests.e2e.testbed import Testbed
from tests.harness import peer

# One cluster for all of them.
pytestmark = pytest.mark.xdist_group("testbed")

CHECKOUT = Path(__file__).resolve().parents[2]
CONF = CHECKOUT / "conf"
KUBEVIRT = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt"
MACHINES = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
OTHERS_BINDING = {
    "sidecarImage": "registry.test/network-passt-binding:v1",
    "migration": {"method": "link-refresh"},
}
# What a cluster may have in it, applied as KubeVirt's documentation has it.
OWN: dict[str, Any] = {
    "apiVersion": "kubevirt.io/v1",
    "kind": "KubeVirt",
    "metadata": {"name": "kubevirt", "namespace": "kubevirt"},
    "spec": {
        "certificateRotateStrategy": {},
        "configuration": {
            "developerConfiguration": {"featureGates": ["Sidecar", "HotplugNICs"]},
            "migrations": {"network": "migration-network", "parallelMigrationsPerCluster": 7},
            "permittedHostDevices": {
                "pciHostDevices": [{"pciVendorSelector": "10DE:1EB8", "resourceName": "nvidia.com/TU104GL"}]
            },
            "network": {
                "defaultNetworkInterface": "masquerade",
                "binding": {"passt": OTHERS_BINDING},
            },
        },
        "imagePullPolicy": "IfNotPresent",
        "workloadUpdateStrategy": {"workloadUpdateMethods": ["LiveMigrate"]},
    },
}
POLICIES: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "nodenetworkconfigurationpolicies.nmstate.io"},
    "spec": {
        "group": "nmstate.io",
        "scope": "Cluster",
        "names": {"plural": "nodenetworkconfigurationpolicies", "kind": "NodeNetworkConfigurationPolicy"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                },
            }
        ],
    },
}


def documented(section: str) -> list[str]:
    """The commands of kubectl in a section of conf/README.md, in their order."""
    text = (CONF / "README.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("kubectl ")]


class Administrator:
    """An administrator of the cluster, in a shell in the checkout."""

    def __init__(self, testbed: Testbed, home: Path) -> None:
        self.api = testbed.api
        self._machine = testbed.nodes[0].machine
        self._home = home

    def run(self, command: str, stdin: str = "") -> None:
        environment = f"HOME={self._home} KUBECONFIG={self._machine.folder}/var/lib/kubeconfig"
        path = f"PATH={Path(peer('kubectl')).parent}:$PATH"
        done = self._machine.run(
            "sh", "-c", f"cd {CHECKOUT}; {path} {environment} {command}", input=stdin, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def kubevirt(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.api.get(KUBEVIRT)["spec"]
        return spec

    def bindings(self) -> dict[str, Any]:
        found: dict[str, Any] = self.kubevirt()["configuration"]["network"]["binding"]
        return found


@pytest.fixture
def administrator(testbed: Testbed, tmp_path: Path) -> Iterator[Administrator]:
    """In a cluster with KubeVirt's definitions and its object, which are gone at the end."""
    made = Administrator(testbed, tmp_path)
    with ExitStack() as undo:
        for definition in (*definitions("kubevirts", "virtualmachines"), POLICIES):
            made.api.create(DEFINITIONS, definition)
            undo.callback(_take_away, made, f"{DEFINITIONS}/{definition['metadata']['name']}")
        eventually(lambda: made.api.find(MACHINES), "VirtualMachines are known")
        # Without a controller manager no namespace ends: this one stays, empty.
        if not made.api.find("/api/v1/namespaces/kubevirt"):
            made.api.create("/api/v1/namespaces", {"metadata": {"name": "kubevirt"}})
        eventually(lambda: _applied(made), "KubeVirt's object is there")
        yield made
        for namespace in ("default", "kubevirt"):
            made.api.delete(NADS.replace("/default/", f"/{namespace}/"))


def _take_away(administrator: Administrator, path: str) -> None:
    """A definition goes once all its objects have."""
    administrator.api.delete(path)
    eventually(lambda: administrator.api.find(path) is None, f"{path} is gone")


def _applied(administrator: Administrator) -> bool:
    """The server may not serve a definition yet that it has taken."""
    try:
        administrator.run("kubectl apply -f -", json.dumps(OWN))
    except AssertionError as e:
        if "no matches for kind" in str(e):
            return False
        raise
    return True


def sample_bindings() -> dict[str, Any]:
    patch = yaml.safe_load((CONF / "kubevirt-bindings.patch.yaml").read_text())
    found: dict[str, Any] = patch["spec"]["configuration"]["network"]["binding"]
    return found


def without_bindings(spec: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(spec))
    del copy["configuration"]["network"]["binding"]
    return copy


def test_every_sample_is_applied_as_documented_and_nothing_else_changes(
    administrator: Administrator,
) -> None:
    before = administrator.kubevirt()
    assert before == OWN["spec"]
    commands = documented("On Kubernetes")
    undoing = [each for each in commands if "null" in each or " delete " in each]
    assert len(undoing) == 2
    doing = [each for each in commands if each not in undoing]
    assert len(doing) == len(list(CONF.glob("*.yaml")))
    for command in doing:
        administrator.run(command)
    after = administrator.kubevirt()
    assert without_bindings(after) == without_bindings(before)
    assert administrator.bindings() == {"passt": OTHERS_BINDING, **sample_bindings()}
    (machine,) = administrator.api.get(MACHINES)["items"]
    assert machine["metadata"]["name"] == "vm-a"
    # The owner's next apply leaves our bindings, and ours once more changes nothing.
    administrator.run("kubectl apply -f -", json.dumps(OWN))
    for command in doing:
        administrator.run(command)
    assert administrator.kubevirt() == after
    for command in undoing:
        administrator.run(command)
    assert administrator.kubevirt() == before


def test_an_object_of_kubevirt_without_any_network_takes_the_bindings(administrator: Administrator) -> None:
    bare = {**OWN, "spec": {"imagePullPolicy": "IfNotPresent"}}
    administrator.run("kubectl replace -f -", json.dumps(bare))
    (command,) = (each for each in documented("On Kubernetes") if "--patch-file" in each)
    administrator.run(command)
    assert administrator.bindings() == sample_bindings()
    assert administrator.kubevirt()["imagePullPolicy"] == "IfNotPresent"
