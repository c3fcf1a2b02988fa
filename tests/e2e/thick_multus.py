"""Multus' daemon as its own DaemonSet has it (v4.2.4, "thick"), on nodes that have no plugin of ours.

The kubelet's runtime starts Multus' shim, which asks the daemon in a container, which runs the plugins in a
chroot that is a bind mount of the node's root. The default network is a conflist in a file, as on most
clusters: then DEL hands its plugins nothing of the configuration but types and names.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from tests.e2e import images
from tests.e2e.control_plane import PORT, SERVER
from tests.e2e.machine import eventually
from tests.e2e.testbed import DEFAULT_NETWORK, Node, Testbed
from tests.harness import NAMES, peer

CNI_BIN = "/var/lib/cni/bin"
_CNI_CONF = "/var/lib/cni/net.d"
_NAMESPACE = "kube-system"
_NAME = "kube-multus-ds"
_DAEMON = {
    "chrootDir": "/hostroot",
    "cniVersion": "0.3.1",
    "logLevel": "verbose",
    "logToStderr": True,
    "binDir": CNI_BIN,
    "cniDir": "/var/lib/cni/multus",
    "cniConfigDir": "/host/etc/cni/net.d",
    "multusAutoconfigDir": "/host/etc/cni/net.d",
    "multusConfigFile": "auto",
    "socketDir": "/host/run/multus/",
}
# As the daemon sees a folder of the node; CNI_BIN has to have the same path for both.
_MOUNTS = {
    "/host/etc/cni/net.d": _CNI_CONF,
    CNI_BIN: CNI_BIN,
    "/host/run": "/run",
    "/var/lib/cni/multus": "/var/lib/cni/multus",
    "/var/lib/kubelet": "/var/lib/kubelet",
    "/run/k8s.cni.cncf.io": "/run/k8s.cni.cncf.io",
    "/run/netns": "/run/netns",
    "/hostroot": "/",
}
_RIGHTS: list[dict[str, Any]] = [
    {"apiGroups": ["k8s.cni.cncf.io"], "resources": ["*"], "verbs": ["*"]},
    {"apiGroups": [""], "resources": ["pods", "pods/status"], "verbs": ["get", "list", "update", "watch"]},
    {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
]


def prepare(node: Node) -> None:
    """Takes our plugins and thin Multus from a node; gives it a default network and the API's address."""
    state = node.machine.folder / "var/lib"
    for name in NAMES:
        (state / "cni/bin" / name).unlink()
    (state / "cni/bin/multus-shim").symlink_to(Path(peer("multus-shim")).resolve())
    network = {"cniVersion": "1.0.0", "name": DEFAULT_NETWORK, "plugins": [default_network(node.number)]}
    # By rename: the runtime and Multus read the file as soon as it changes.
    (state / "pods.new").write_text(json.dumps(network))
    (state / "pods.new").rename(state / "cni/net.d/10-pods.conflist")
    (state / "cni/net.d/00-multus.conf").unlink()
    # What kube-proxy would do for clients in the cluster.
    rules = f"ip daddr 10.96.0.1 tcp dport 443 dnat to {SERVER}:{PORT}"
    chain = f"type nat hook output priority -100; {rules}"
    node.machine.run("nft", f"table ip kubernetes {{ chain output {{ {chain}; }}; }}")


def default_network(number: int) -> dict[str, Any]:
    """Of pods, by our own plugins."""
    subnet = {"type": "static-ip", "nodeLocal": True, "subnet": f"10.244.{number}.0/24"}
    return {"type": "cnv-bridge", "bridge": "cni0", "isDefaultGateway": True, "ipam": subnet}


def deploy(testbed: Testbed) -> None:
    """Returns when the runtime of each node calls Multus."""
    for node in testbed.nodes:
        images.write_multus(node.machine.folder / "var/lib/multus.tar")
        node.ctr("images", "import", "/var/lib/multus.tar")
    account = {"metadata": {"name": "multus"}}
    testbed.api.create(f"/api/v1/namespaces/{_NAMESPACE}/serviceaccounts", account)
    testbed.control_plane.grant(_NAMESPACE, "multus", _RIGHTS)
    config = {
        "metadata": {"name": "multus-daemon-config"},
        "data": {"daemon-config.json": json.dumps(_DAEMON)},
    }
    testbed.api.create(f"/api/v1/namespaces/{_NAMESPACE}/configmaps", config)
    testbed.api.create(f"/apis/apps/v1/namespaces/{_NAMESPACE}/daemonsets", _daemon_set())
    for node in testbed.nodes:
        eventually(partial(_is_called, node), f"the runtime of {node.name} calls Multus")


def _is_called(node: Node) -> bool:
    """Whether its runtime has read the configuration that the daemon writes when it is ready."""
    return "multus-cni-network" in node.crictl("info")


def _daemon_set() -> dict[str, Any]:
    labels = {"name": "multus"}
    mounts: list[dict[str, Any]] = [
        {"name": f"v{number}", "mountPath": path} for number, path in enumerate(_MOUNTS)
    ]
    for mount in mounts:
        if mount["mountPath"] in ("/var/lib/kubelet", "/run/netns", "/hostroot"):
            mount["mountPropagation"] = "HostToContainer"
    volumes: list[dict[str, Any]] = [
        {"name": f"v{number}", "hostPath": {"path": path}} for number, path in enumerate(_MOUNTS.values())
    ]
    node_name = {"fieldRef": {"fieldPath": "spec.nodeName"}}
    container = {
        "name": "kube-multus",
        "image": images.MULTUS,
        "imagePullPolicy": "Never",
        "command": ["/usr/src/multus-cni/bin/multus-daemon"],
        "securityContext": {"privileged": True},
        "env": [{"name": "MULTUS_NODE_NAME", "valueFrom": node_name}],
        "volumeMounts": [
            *mounts,
            {"name": "config", "mountPath": "/etc/cni/net.d/multus.d", "readOnly": True},
        ],
    }
    pod = {
        "hostNetwork": True,
        "hostPID": True,
        "serviceAccountName": "multus",
        "terminationGracePeriodSeconds": 1,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [*volumes, {"name": "config", "configMap": {"name": "multus-daemon-config"}}],
    }
    template = {"metadata": {"labels": labels}, "spec": pod}
    return {"metadata": {"name": _NAME}, "spec": {"selector": {"matchLabels": labels}, "template": template}}
