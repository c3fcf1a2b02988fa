"""A Kubernetes of one's own: an API server and real nodes (kubelet, containerd, Multus), within seconds.

```
   machine `lan`: etcd, kube-apiserver                     machine `node-1`: containerd, kubelet, Multus
   switch 192.168.77.1/24 ─────────────────────────────── lan0 192.168.77.11     cni0 10.244.1.1/24: pods
   wire   a bridge without addresses ──────────────────── eth1
```

Our plugins are on a node as they are on any: in the folder of the CNI executables, beside the reference
plugins, with their records in /run/cnvnet and their leases in /var/lib/cnvnet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.e2e import images
from tests.e2e.api import TOKEN, Api, ApiError
from tests.e2e.control_plane import NADS, PORT, SERVER, ControlPlane, kubeconfig
from tests.e2e.machine import Daemon, Machine, eventually, running_machine
from tests.harness import NAMES, Sandbox, executable, peer

DEFAULT_NETWORK = "pods"
PODS = "/api/v1/namespaces/default/pods"
NETWORKS = "k8s.v1.cni.cncf.io/networks"
NETWORK_STATUS = "k8s.v1.cni.cncf.io/network-status"

_REFERENCE_PLUGINS = ("bridge", "host-local", "loopback", "portmap", "ptp", "static", "tuning")
# What a cluster is made of beside our own programs.
_PROGRAMS = (
    *("etcd", "kube-apiserver", "containerd", "ctr", "crictl", "kubelet", "multus"),
    *_REFERENCE_PLUGINS,
)
# Paths in a node.
_CNI_BIN = "/var/lib/cni/bin"
_CNI_CONF = "/var/lib/cni/net.d"
_KUBECONFIG = "/var/lib/kubeconfig"
_CONTAINERD = "/run/containerd/containerd.sock"


class Node:
    """A Kubernetes node. `machine` is what it runs on, with the node's network as harness.Node has it."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine = machine
        self.number = number
        self.name = machine.name
        self.containerd: Daemon | None = None
        self.kubelet: Daemon | None = None

    def install(self) -> None:
        """Writes what an administrator would have installed and configured."""
        state = self.machine.folder / "var/lib"
        programs = state / "cni/bin"
        programs.mkdir(parents=True)
        for name in (*_REFERENCE_PLUGINS, "multus"):
            (programs / name).symlink_to(Path(peer(name)).resolve())
        for name in NAMES:
            (programs / name).symlink_to(executable(name))
        (state / "cni/net.d").mkdir()
        (state / "cni/net.d/00-multus.conf").write_text(json.dumps(self._multus()))
        (state / "kubeconfig").write_text(json.dumps(kubeconfig(f"https://{SERVER}:{PORT}", TOKEN)))
        (state / "kubelet.conf").write_text(json.dumps(self._kubelet()))
        (state / "resolv.conf").write_text("nameserver 192.168.77.1\nsearch example.test\n")
        (state / "containerd.toml").write_text(_CONTAINERD_CONFIG)
        images.write_idle(state / "idle.tar")

    def start_containerd(self) -> None:
        # Beside it are its shim and runc, which it looks for in PATH.
        containerd = peer("containerd")
        path = f"{Path(containerd).parent}:{os.environ['PATH']}"
        self.containerd = self.machine.start(
            containerd, "--config=/var/lib/containerd.toml", env={"PATH": path}
        )
        eventually(self._containerd_answers, "containerd answers")

    def import_images(self) -> None:
        self.ctr("images", "import", "/var/lib/idle.tar")

    def start_kubelet(self) -> None:
        self.kubelet = self.machine.start(
            peer("kubelet"),
            "--config=/var/lib/kubelet.conf",
            f"--kubeconfig={_KUBECONFIG}",
            f"--hostname-override={self.name}",
            "--root-dir=/var/lib/kubelet",
            "--cert-dir=/var/lib/kubelet/pki",
            f"--node-ip=192.168.77.{10 + self.number}",
        )

    def restart(self) -> None:
        """Both programs of the node are killed and started anew; pods go on."""
        assert self.kubelet is not None
        assert self.containerd is not None
        self.kubelet.kill()
        self.containerd.kill()
        self.start_containerd()
        self.start_kubelet()

    def kill_sandbox(self, container_id: str) -> None:
        """Kills the process that holds a pod's sandbox."""
        shown = json.loads(self.crictl("inspectp", "--output=json", container_id))
        self.machine.inside("sh", "-c", f"kill -9 {shown['info']['pid']}")

    def ctr(self, *args: str) -> str:
        return self.machine.inside(
            peer("ctr"), f"--address={_CONTAINERD}", "--namespace=k8s.io", *args
        ).stdout

    def crictl(self, *args: str) -> str:
        endpoint = f"--runtime-endpoint=unix://{_CONTAINERD}"
        return self.machine.inside(peer("crictl"), endpoint, *args).stdout

    def container_id(self, pod: str) -> str | None:
        """The id of the pod's sandbox that runs."""
        listed = json.loads(self.crictl("pods", "--name", f"^{pod}$", "--state", "ready", "--output=json"))
        return next((each["id"] for each in listed["items"]), None)

    def sandbox(self, container_id: str) -> Sandbox:
        shown = json.loads(self.crictl("inspectp", "--output=json", container_id))
        namespaces = shown["info"]["runtimeSpec"]["linux"]["namespaces"]
        (path,) = (each["path"] for each in namespaces if each["type"] == "network")
        return Sandbox(self.machine.path(path))

    def _containerd_answers(self) -> bool:
        assert self.containerd is not None
        self.containerd.assert_running()
        done = self.machine.inside(peer("ctr"), f"--address={_CONTAINERD}", "version", check=False)
        return done.returncode == 0

    def _multus(self) -> dict[str, Any]:
        pods = {
            "cniVersion": "1.0.0",
            "name": DEFAULT_NETWORK,
            "plugins": [default_network(self.number)],
        }
        return {
            "cniVersion": "1.0.0",
            "name": "multus",
            "type": "multus",
            "kubeconfig": _KUBECONFIG,
            "binDir": _CNI_BIN,
            "cniDir": "/var/lib/cni/multus",
            "multusNamespace": "default",
            "delegates": [pods],
        }

    def _kubelet(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": f"unix://{_CONTAINERD}",
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "evictionHard": dict.fromkeys(
                ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available"), "0%"
            ),
            "healthzPort": 0,
            "podLogsDir": "/var/log/pods",
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.test",
            "resolvConf": "/var/lib/resolv.conf",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            # A pod is looked at again that often when nothing has happened; ten times less than usual.
            "syncFrequency": "6s",
        }


class Testbed:
    """What a test has: the API and the nodes."""

    __test__ = False

    def __init__(self, control_plane: ControlPlane, nodes: list[Node]) -> None:
        self.control_plane = control_plane
        self.api = control_plane.api
        self.nodes = nodes

    def define(self, name: str, config: Mapping[str, Any]) -> None:
        """A NetworkAttachmentDefinition, called as its network."""
        self.api.create(
            NADS,
            {
                "apiVersion": "k8s.cni.cncf.io/v1",
                "kind": "NetworkAttachmentDefinition",
                "metadata": {"name": name},
                "spec": {"config": json.dumps({"cniVersion": "1.0.0", "name": name, **config})},
            },
        )

    def create_pod(
        self, name: str, node: Node, annotations: Mapping[str, str], *owners: Mapping[str, Any]
    ) -> None:
        self.api.create(
            PODS,
            {
                "metadata": {
                    "name": name,
                    "annotations": dict(annotations),
                    "ownerReferences": list(owners),
                },
                "spec": idle_on(node),
            },
        )

    def pod(self, name: str) -> dict[str, Any] | None:
        return self.api.find(f"{PODS}/{name}")

    def wait_until_running(self, name: str) -> dict[str, Any]:
        try:
            return eventually(lambda: self._running(name), f"pod {name} is running")
        except AssertionError as e:
            raise AssertionError(f"{e}\n" + "\n".join(self.events(name))) from None

    def _running(self, name: str) -> dict[str, Any] | None:
        pod = self.pod(name)
        assert pod is not None, f"pod {name} is gone"
        ready = [each["ready"] for each in pod["status"].get("containerStatuses", ())]
        return pod if pod["status"]["phase"] == "Running" and ready == [True] else None

    def delete_pod(self, name: str) -> None:
        """Asks for it and waits until the node has done it."""
        self.api.delete(f"{PODS}/{name}")
        eventually(lambda: self.pod(name) is None, f"pod {name} is gone")

    def events(self, pod: str) -> list[str]:
        """What there is to read about a pod, as `reason: message`."""
        uid = self.api.get(f"{PODS}/{pod}")["metadata"]["uid"]
        listed = self.api.get(f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.uid={uid}")
        return [f"{event['reason']}: {event['message']}" for event in listed["items"]]


def idle_on(node: Node) -> dict[str, Any]:
    """The specification of a pod that does nothing, on a node."""
    return {
        "nodeName": node.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "idle", "image": images.IDLE, "imagePullPolicy": "Never"}],
    }


def default_network(number: int) -> dict[str, Any]:
    """The plugin that makes the default network on a node: the reference bridge with host-local."""
    return {
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": f"10.244.{number}.0/24"}]]},
    }


def require_programs() -> None:
    """Skips the test, or fails it in CI, where a cluster cannot be made."""
    for program in _PROGRAMS:
        peer(program)


@contextmanager
def running_testbed(folder: Path, *, nodes: int = 1, complete: bool = False) -> Generator[Testbed]:
    """A cluster that is ready for pods, and ends with the block.

    `complete` as in ControlPlane, and with kube-scheduler.
    """
    require_programs()
    with ExitStack() as undo:
        machine = undo.enter_context(running_machine("lan", folder / "lan"))
        control_plane = ControlPlane(machine, complete=complete)
        control_plane.start(undo)
        made: list[Node] = []
        for number in range(1, nodes + 1):
            name = f"node-{number}"
            node = Node(undo.enter_context(running_machine(name, folder / name)), number)
            control_plane.plug_in(node.machine, number)
            node.install()
            node.start_containerd()
            node.import_images()
            made.append(node)
        control_plane.wait_until_ready()
        if complete:
            control_plane.start_controllers()
            control_plane.start_scheduler()
        for node in made:
            node.start_kubelet()
        for node in made:
            eventually(partial(_is_ready, control_plane.api, node), f"{node.name} is ready")
        yield Testbed(control_plane, made)


def _is_ready(api: Api, node: Node) -> bool:
    assert node.kubelet is not None
    node.kubelet.assert_running()
    try:
        found = api.find(f"/api/v1/nodes/{node.name}")
    except ApiError:
        return False
    conditions = found["status"].get("conditions", ()) if found else ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


_CONTAINERD_CONFIG = f"""
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{_CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.IDLE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{_CNI_BIN}"
    conf_dir = "{_CNI_CONF}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    # Works on whatever file system this is.
    snapshotter = "native"
"""
