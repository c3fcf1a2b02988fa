"""whereabouts v0.9.4 in a cluster: its definitions as far as the server looks at them, and its rights."""

from __future__ import annotations

from typing import Any, Final

from tests.e2e.control_plane import ControlPlane

VERSION: Final = "v0.9.4"
_GROUP: Final = "whereabouts.cni.cncf.io"
_KINDS: Final = {
    "ippools": "IPPool",
    "overlappingrangeipreservations": "OverlappingRangeIPReservation",
    "nodeslicepools": "NodeSlicePool",
}
_ACCOUNT: Final = ("kube-system", "whereabouts")
_RIGHTS: Final[list[dict[str, Any]]] = [
    {"apiGroups": [_GROUP], "resources": ["*"], "verbs": ["*"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["*"]},
    {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]},
]


def install(control_plane: ControlPlane) -> str:
    """Its definitions and its ServiceAccount; returns a token of that."""
    control_plane.define(*(_definition(plural, kind) for plural, kind in _KINDS.items()))
    namespace, name = _ACCOUNT
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    control_plane.api.create(accounts, {"metadata": {"name": name}})
    control_plane.grant(namespace, name, _RIGHTS)
    return control_plane.token(namespace, name)


def _definition(plural: str, kind: str) -> dict[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
    }
    names = {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{_GROUP}"},
        "spec": {"group": _GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }
