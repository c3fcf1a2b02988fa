"""When a pod of another node counts as ended, though nothing has said so: by its object and its Node's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from cnvnet.kube.api import Api, NotFound
from cnvnet.kube.resources import NODES, PODS

# Whether a Node is there: an administrator taints one that is known to run nothing any more.
PRESENT: Final = "present"
OUT_OF_SERVICE: Final = "out of service"
GONE: Final = "gone"
OUT_OF_SERVICE_TAINT: Final = "node.kubernetes.io/out-of-service"

# A static pod is known to the runtime by what the kubelet calls it, and to the API by a mirror's UID.
_KUBELETS_UIDS: Final = ("kubernetes.io/config.mirror", "kubernetes.io/config.hash")


def node_state(document: Mapping[str, Any]) -> str:
    """PRESENT or OUT_OF_SERVICE: nothing else about a Node says that its pods do not run any more."""
    spec: Mapping[str, Any] = document.get("spec") or {}
    taints: Iterable[Mapping[str, Any]] = spec.get("taints") or ()
    return OUT_OF_SERVICE if any(each.get("key") == OUT_OF_SERVICE_TAINT for each in taints) else PRESENT


def pod_uids(document: Mapping[str, Any]) -> set[str]:
    """The UIDs under which a pod can hold an address."""
    metadata = document["metadata"]
    annotations: Mapping[str, Any] = metadata.get("annotations") or {}
    kubelets = (str(annotations[key]) for key in _KUBELETS_UIDS if key in annotations)
    return {str(metadata["uid"]), *kubelets}


def reason_to_keep(api: Api, pod: str, uid: str, node: str) -> str:
    """Why a pod ("namespace/name") of this node may still run; "" if it certainly does not. ApiError."""
    namespace, _, name = pod.partition("/")
    if not (namespace and name and uid and node):
        return "nothing names its pod with a UID, and its node"
    try:
        if uid in pod_uids(api.get(PODS, name, namespace)):
            return f"pod {pod} is there"
    except NotFound:
        pass
    try:
        state = node_state(api.get(NODES, node))
    except NotFound:
        state = GONE
    if state == PRESENT:
        return f"node {node} is there without the taint {OUT_OF_SERVICE_TAINT}"
    return ""
