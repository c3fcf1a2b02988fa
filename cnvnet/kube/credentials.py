"""Which credentials this process has for the Kubernetes API: a kubeconfig's, a pod's, or none.

Looking costs a process without any next to nothing: what parses a kubeconfig is imported when there is one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from cnvnet.cni.errors import InvalidConfig
from cnvnet.kube.settings import Credentials, Secret, Tls

# The variable that names a kubeconfig, and where the agent or an operator may have left one.
VARIABLE: Final = "CNVNET_KUBECONFIG"
DEFAULT_KUBECONFIG: Final = "/etc/cnvnet/kubeconfig"
# Where the kubelet mounts a pod's token.
SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


def find(env: Mapping[str, str], kubeconfig: str = "", *, resident: bool = True) -> Credentials | None:
    """The credentials of this process; None where there are none.

    The first of: the kubeconfig that CNVNET_KUBECONFIG names, the one that an option names, a pod's files,
    /etc/cnvnet/kubeconfig. For a process that is not `resident` the last two change places: the pod in which
    it is started is another program's, such as Multus'. InvalidConfig for a named file that is not there,
    and for what is wrong in one.
    """
    named = env.get(VARIABLE) or kubeconfig
    if named:
        return from_kubeconfig(named, env)
    if resident:
        return in_cluster(env) or _of_the_node(env)
    return _of_the_node(env) or in_cluster(env)


def _of_the_node(env: Mapping[str, str]) -> Credentials | None:
    try:
        return from_kubeconfig(DEFAULT_KUBECONFIG, env) if os.path.exists(DEFAULT_KUBECONFIG) else None
    except InvalidConfig:
        # Removed since.
        if os.path.exists(DEFAULT_KUBECONFIG):
            raise
        return None


def in_cluster(env: Mapping[str, str], folder: str = "") -> Credentials | None:
    """Those of a pod with a ServiceAccount; None elsewhere."""
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "")
    folder = folder or SERVICE_ACCOUNT
    token = os.path.join(folder, "token")
    if not host or not port or not os.path.exists(token):
        return None
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    from cnvnet.kube.proxy import environment_proxy

    authority = os.path.join(folder, "ca.crt")
    return Credentials(
        server,
        folder,
        lambda: in_cluster(env, folder) or _gone(folder),
        namespace=_namespace(folder),
        # Without the file the system's authorities count, as for all clients of Kubernetes.
        tls=Tls(authority=Secret(authority) if os.path.exists(authority) else Secret()),
        token=Secret(token),
        proxy=environment_proxy(server, env),
    )


def from_kubeconfig(path: str, env: Mapping[str, str] | None = None, context: str = "") -> Credentials:
    """Those of a kubeconfig's context, the current one unless another is named.

    InvalidConfig, naming file and key. Without an `env` no environment's proxy counts.
    """
    from cnvnet.kube.kubeconfig import read

    return read(path, env or {}, context)


def _gone(folder: str) -> Credentials:
    raise InvalidConfig(f"{folder}: the pod's token is gone")


def _namespace(folder: str) -> str:
    try:
        with open(os.path.join(folder, "namespace"), encoding="utf-8") as file:
            return file.read().strip() or "default"
    except (OSError, ValueError):
        return "default"
