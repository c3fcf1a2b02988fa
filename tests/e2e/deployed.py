"""cnvnet as pods: the base from the image of this checkout, on nodes with thick Multus."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.e2e import thick_multus
from tests.e2e.cnvnet_objects import KUSTOMIZE, SYSTEM
from tests.e2e.kubevirt_objects import MACHINE_DEFINITIONS, definitions
from tests.e2e.testbed import Testbed
from tests.e2e.thick_multus import CNI_BIN

AGENT = "daemonset/cnvnet-agent"
# A node whose runtime has its plugins elsewhere, as OpenShift's.
_OVERLAY = f"""
resources: [kustomize/base]
patches:
  - target: {{kind: DaemonSet, name: cnvnet-agent}}
    patch: |
      - {{op: test, path: /spec/template/spec/volumes/4/name, value: cni-bin}}
      - {{op: replace, path: /spec/template/spec/volumes/4/hostPath/path, value: {CNI_BIN}}}
"""


def apply(testbed: Testbed, archive: Path, folder: Path) -> Path:
    """Returns when each node has an agent that Multus' launchers reach; what was applied is in `folder`."""
    shutil.copytree(KUSTOMIZE, folder / "kustomize")
    (folder / "kustomization.yaml").write_text(_OVERLAY)
    control_plane = testbed.control_plane
    control_plane.define(*definitions(*MACHINE_DEFINITIONS))
    for node in testbed.nodes:
        # A new node is tainted as not ready; the controller that would see that it is ready does not run.
        testbed.api.patch(f"/api/v1/nodes/{node.name}", {"spec": {"taints": None}})
        thick_multus.prepare(node)
        shutil.copy(archive, node.machine.folder / "var/lib/cnvnet.tar")
        node.ctr("images", "import", "/var/lib/cnvnet.tar")
    control_plane.kubectl("apply", "-k", str(folder))
    control_plane.kubectl("-n", SYSTEM, "rollout", "status", AGENT, "--timeout=90s")
    thick_multus.deploy(testbed)
    return folder
