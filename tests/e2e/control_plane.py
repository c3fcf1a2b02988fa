"""etcd and an API server, and what else of a cluster has no node: controllers, tokens, an audit log.

`running_control_plane` is a Kubernetes without kubelets, ready in a few seconds: objects, rights, admission,
garbage collection and namespaces are real, and pods are objects that no node runs.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.e2e import images
from tests.e2e.api import TOKEN, Api, ApiError
from tests.e2e.audit import POLICY, AuditLog
from tests.e2e.forward import Forwarder
from tests.e2e.machine import Daemon, Machine, eventually, running_machine
from tests.harness import peer

SERVER = "192.168.77.1"
PORT = 16443
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NADS = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions"

_PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
# All of them would take four seconds more to start. None here evicts the pods of a node without a kubelet.
_CONTROLLERS = (
    *("garbage-collector-controller", "namespace-controller", "serviceaccount-controller"),
    *("root-ca-certificate-publisher-controller", "clusterrole-aggregation-controller"),
    *("validatingadmissionpolicy-status-controller", "endpointslice-controller"),
    *("daemonset-controller", "replicaset-controller", "deployment-controller"),
)
_STATE = "/var/lib"


class ControlPlane:
    """etcd and the API server, and the switch and router between nodes.

    `complete`: with kube-controller-manager, ServiceAccounts and their tokens, and an audit log.
    """

    def __init__(self, machine: Machine, *, complete: bool = False) -> None:
        self.machine = machine
        self.complete = complete
        self.api = Api(machine.netns, SERVER, PORT)
        self.audit = AuditLog(machine.folder / "var/log/audit.log", self.api)
        self._state = machine.folder / "var/lib"
        self._server: Daemon | None = None
        self._etcd: Daemon | None = None
        self._forwarder = Forwarder(machine.netns, SERVER, PORT)

    def start(self, undo: ExitStack) -> None:
        self.machine.run(
            "sh",
            "-euc",
            f"""
            ip link add switch type bridge; ip addr add {SERVER}/24 dev switch; ip link set switch up
            ip link add wire type bridge; ip link set wire up
            echo 1 >/proc/sys/net/ipv4/ip_forward
            """,
        )
        self._start_etcd()
        self._write_keys()
        undo.enter_context(self._forwarder)
        self.start_server()

    def _start_etcd(self) -> None:
        self._etcd = self.machine.start(
            peer("etcd"),
            "--data-dir=/var/lib/etcd",
            "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
        )

    def back_up(self, folder: Path) -> None:
        """Everything that the API has; the server is away meanwhile."""
        with self._stopped():
            shutil.copytree(self._state / "etcd", folder)

    def restore(self, folder: Path) -> None:
        """Everything is as it was at the backup."""
        with self._stopped():
            shutil.rmtree(self._state / "etcd")
            shutil.copytree(folder, self._state / "etcd")

    @contextmanager
    def _stopped(self) -> Generator[None]:
        assert self._etcd is not None
        self.kill_server()
        self._etcd.terminate()
        yield
        self._start_etcd()
        self.start_server()
        self.wait_until_answers()

    def start_server(self) -> None:
        """Starts the API server, again after `kill_server`."""
        self._server = self.machine.start(
            peer("kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={SERVER}",
            "--bind-address=0.0.0.0",
            f"--secure-port={PORT}",
            f"--tls-cert-file={_STATE}/server.crt",
            f"--tls-private-key-file={_STATE}/server.key",
            f"--token-auth-file={_STATE}/tokens",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--service-account-issuer=https://k",
            "--api-audiences=https://k",
            f"--service-account-key-file={_STATE}/service-accounts.key",
            f"--service-account-signing-key-file={_STATE}/service-accounts.key",
            "--service-cluster-ip-range=10.96.0.0/16",
            *(self._audit() if self.complete else ["--disable-admission-plugins=ServiceAccount"]),
        )

    def kill_server(self) -> None:
        """SIGKILL; what it kept is in etcd."""
        assert self._server is not None
        self._server.kill()

    def _write_keys(self) -> None:
        self._openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "service-accounts.key")
        self.write_certificate()
        (self._state / "tokens").write_text(f"{TOKEN},admin,admin,system:masters\n")
        (self._state / "audit.json").write_text(json.dumps(POLICY))
        (self._state / "kubeconfig").write_text(json.dumps(kubeconfig(f"https://{SERVER}:{PORT}", TOKEN)))

    def write_certificate(self) -> None:
        """Gives the API server a new certificate, for its next start."""
        names = f"DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.96.0.1,IP:{SERVER}"
        self._openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "server.key")
        # It is its own authority, which clients and pods are given to verify it by.
        self._openssl(
            *("req", "-x509", "-new", "-key", "server.key", "-out", "server.crt", "-days", "2"),
            *("-subj", "/CN=kube-apiserver", "-addext", f"subjectAltName={names}"),
        )

    def _openssl(self, *args: str) -> None:
        subprocess.run(["openssl", *args], check=True, cwd=self._state, capture_output=True)

    def _audit(self) -> list[str]:
        return [f"--audit-policy-file={_STATE}/audit.json", "--audit-log-path=/var/log/audit.log"]

    def start_controllers(self) -> None:
        """Behind all definitions: the garbage collector learns of later ones up to 30 s later."""
        self.machine.start(
            peer("kube-controller-manager"),
            f"--kubeconfig={_STATE}/kubeconfig",
            f"--controllers={','.join(_CONTROLLERS)}",
            "--secure-port=0",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={_STATE}/service-accounts.key",
            f"--root-ca-file={_STATE}/server.crt",
        )

    def start_scheduler(self) -> None:
        """What gives pods a node that ask for none, those of a DaemonSet among them."""
        self.machine.start(
            peer("kube-scheduler"),
            f"--kubeconfig={_STATE}/kubeconfig",
            "--secure-port=0",
            "--leader-elect=false",
        )

    def wait_until_ready(self) -> None:
        self.wait_until_answers()
        eventually(lambda: self.api.find("/api/v1/namespaces/default"), "there is a namespace")
        self.define(_NAD_DEFINITION)

    def wait_until_answers(self) -> None:
        """What `start_server` has started is ready."""
        eventually(self._is_ready, "the API server is ready")

    def _is_ready(self) -> bool:
        assert self._server is not None
        self._server.assert_running()
        return self.api.is_ready()

    def plug_in(self, machine: Machine, number: int) -> None:
        """Connects a node to the switch as `lan0` and to the wire as `eth1`; routes to its pods."""
        self.machine.run(
            "sh",
            "-euc",
            f"""
            ip link add n{number} type veth peer name lan0 netns {machine.first}
            ip link set n{number} master switch up
            ip link add w{number} type veth peer name eth1 netns {machine.first}
            ip link set w{number} master wire up
            ip route add 10.244.{number}.0/24 via 192.168.77.{10 + number}
            """,
        )
        machine.run(
            "sh",
            "-euc",
            f"""
            ip addr add 192.168.77.{10 + number}/24 dev lan0; ip link set lan0 up; ip link set eth1 up
            ip route add default via {SERVER}
            """,
        )

    # What clients outside of the machine need.

    @property
    def url(self) -> str:
        """The server's address in the namespace of the tests; its certificate is good for it."""
        return f"https://127.0.0.1:{self._forwarder.port}"

    @property
    def authority(self) -> Path:
        """The certificate that the server's is verified by."""
        return self._state / "server.crt"

    def kubeconfig(self, token: str = TOKEN) -> Path:
        """A file with which the token's owner reaches the server from the namespace of the tests."""
        path = self.machine.folder / f"{abs(hash(token)):x}.kubeconfig"
        path.write_text(json.dumps(kubeconfig(self.url, token, self.authority.read_bytes())))
        return path

    def kubectl(
        self, *args: str, token: str = TOKEN, stdin: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """kubectl in the namespace of the tests, for the owner of the token."""
        return self._run([peer("kubectl"), *args], token=token, stdin=stdin, check=check)

    def shell(self, commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Commands as the administrator types them in a folder, kubectl's among them."""
        return self._run(["sh", "-c", commands], token=TOKEN, folder=folder, check=False)

    def _run(
        self, command: list[str], *, token: str, stdin: str = "", folder: Path | None = None, check: bool
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            env={
                "PATH": f"{Path(peer('kubectl')).parent}:{os.environ['PATH']}",
                "HOME": str(self.machine.folder),
                "KUBECONFIG": str(self.kubeconfig(token)),
            },
            cwd=folder,
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done

    def token(self, namespace: str, account: str, pod: dict[str, Any] | None = None) -> str:
        """A token of a ServiceAccount, as a pod has it that it is bound to: it names the pod's node."""
        spec: dict[str, Any] = {"expirationSeconds": 3600}
        if pod is not None:
            name = {key: pod["metadata"][key] for key in ("name", "uid")}
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", **name}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        answer = self.api.create(path, {"spec": spec})
        return str(answer["status"]["token"])

    def grant(self, namespace: str, account: str, rights: list[dict[str, Any]]) -> None:
        """Gives a ServiceAccount rights in all namespaces."""
        roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
        name = f"{namespace}-{account}"
        self.api.create(roles, {"metadata": {"name": name}, "rules": rights})
        self.bind(namespace, account, name)

    def bind(self, namespace: str, account: str, role: str, *, within: str = "") -> None:
        """Gives a ServiceAccount a ClusterRole, in one namespace or in all."""
        group = "rbac.authorization.k8s.io"
        kind = f"namespaces/{within}/rolebindings" if within else "clusterrolebindings"
        self.api.create(
            f"/apis/{group}/v1/{kind}",
            {
                "metadata": {"name": f"{namespace}-{account}-{role}"},
                "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
            },
        )

    def define(self, *definitions: dict[str, Any]) -> None:
        """Creates CustomResourceDefinitions, and waits until all of them are served."""
        for definition in definitions:
            self.api.create(DEFINITIONS, definition)
        for definition in definitions:
            name = definition["metadata"]["name"]
            eventually(partial(self.serves, name), f"{name} is served")

    def serves(self, definition: str) -> bool:
        """Whether a CustomResourceDefinition is there and its objects can be listed."""
        found = self.api.find(f"{DEFINITIONS}/{definition}")
        if found is None:
            return False
        spec = found["spec"]
        (version, *_) = (each["name"] for each in spec["versions"] if each["storage"])
        try:
            self.api.get(f"/apis/{spec['group']}/{version}/{spec['names']['plural']}?limit=1")
        except ApiError:
            return False
        return True

    def add_node(self, name: str) -> None:
        """A node that is an object only: pods can be bound to it, and nothing runs them."""
        self.api.create("/api/v1/nodes", {"metadata": {"name": name}})

    def create_pod(self, namespace: str, name: str, node: str, account: str = "default") -> dict[str, Any]:
        """A pod bound to a node, of a ServiceAccount; it runs where the node has a kubelet."""
        spec = {
            "nodeName": node,
            "serviceAccountName": account,
            "automountServiceAccountToken": False,
            "containers": [{"name": "idle", "image": images.IDLE, "imagePullPolicy": "Never"}],
        }
        path = f"/api/v1/namespaces/{namespace}/pods"
        created: dict[str, Any] = self.api.create(path, {"metadata": {"name": name}, "spec": spec})
        return created

    def add_namespace(self, name: str) -> None:
        """A namespace that pods can be created in."""
        self.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        if self.complete:
            account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
            eventually(lambda: self.api.find(account), f"namespace {name} has its ServiceAccount")


def kubeconfig(server: str, token: str, authority: bytes | None = None) -> dict[str, Any]:
    """A client's configuration; without an authority it does not verify the server."""
    trust: dict[str, Any] = {"insecure-skip-tls-verify": True}
    if authority:
        trust = {"certificate-authority-data": base64.b64encode(authority).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": {"server": server, **trust}}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "user"}}],
        "current-context": "testbed",
    }


@contextmanager
def running_control_plane(folder: Path) -> Generator[ControlPlane]:
    """A complete one without nodes, which ends with the block. Its controllers are not started yet."""
    for program in _PROGRAMS:
        peer(program)
    with ExitStack() as undo:
        machine = undo.enter_context(running_machine("lan", folder / "lan"))
        made = ControlPlane(machine, complete=True)
        made.start(undo)
        made.wait_until_ready()
        yield made


# The parts of these definitions that a server looks at: Multus' own, and that of persistent addresses.
_NAD_DEFINITION: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "network-attachment-definitions.k8s.cni.cncf.io"},
    "spec": {
        "group": "k8s.cni.cncf.io",
        "scope": "Namespaced",
        "names": {
            "plural": "network-attachment-definitions",
            "singular": "network-attachment-definition",
            "kind": "NetworkAttachmentDefinition",
            "shortNames": ["net-attach-def"],
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {"type": "object", "properties": {"config": {"type": "string"}}}
                        },
                    }
                },
            }
        ],
    },
}

_TEXT: dict[str, Any] = {"type": "string"}
_CLAIMED: dict[str, Any] = {
    "type": "object",
    "required": ["network", "interface"],
    "properties": {"network": _TEXT, "interface": _TEXT},
}
_CONDITION: dict[str, Any] = {
    "type": "object",
    "required": ["lastTransitionTime", "message", "reason", "status", "type"],
    "properties": {
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "message": {"type": "string", "maxLength": 32768},
        "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
        "reason": {
            "type": "string",
            "minLength": 1,
            "maxLength": 1024,
            "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        },
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "type": {"type": "string", "maxLength": 316},
    },
}
_CLAIMS_STATUS: dict[str, Any] = {
    "type": "object",
    "required": ["ips"],
    "properties": {
        "ips": {"type": "array", "items": _TEXT},
        "ownerPod": {"type": "object", "properties": {"name": _TEXT}},
        "conditions": {"type": "array", "items": _CONDITION},
    },
}
# k8snetworkplumbingwg/ipamclaims v0.5.1-alpha.
CLAIM_DEFINITION: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "ipamclaims.k8s.cni.cncf.io"},
    "spec": {
        "group": "k8s.cni.cncf.io",
        "scope": "Namespaced",
        "names": {"plural": "ipamclaims", "singular": "ipamclaim", "kind": "IPAMClaim"},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": _CLAIMED, "status": _CLAIMS_STATUS},
                    }
                },
            }
        ],
    },
}
