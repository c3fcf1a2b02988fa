"""The kubeconfig that an agent leaves on its node: what executables read, and what is not an agent's."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnvnet.kube import node_kubeconfig
from cnvnet.kube.credentials import from_kubeconfig, in_cluster
from cnvnet.kube.settings import Credentials, Secret

IN_POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def test_what_a_pod_has_is_what_the_node_reads(tmp_path: Path) -> None:
    for name, content in (("token", "secret\n"), ("ca.crt", "pem"), ("namespace", "cnvnet-system")):
        (tmp_path / name).write_text(content)
    env = {**IN_POD, "HTTPS_PROXY": "proxy:3128"}
    pod = in_cluster(env, str(tmp_path))
    assert pod is not None
    written = tmp_path / "kubeconfig"
    written.write_bytes(node_kubeconfig.content(pod))
    read = from_kubeconfig(str(written))
    assert (read.server, read.namespace, read.proxy) == (pod.server, "cnvnet-system", "http://proxy:3128")
    assert (read.token.content, read.tls.authority.content) == (b"secret", b"pem")
    assert node_kubeconfig.token(written.read_bytes()) == b"secret"


def test_a_pod_without_an_authority_believes_the_systems() -> None:
    pod = Credentials("https://h", "pod", lambda: pod, token=Secret(content=b"t"))
    assert b"certificate-authority" not in node_kubeconfig.content(pod)


@pytest.mark.parametrize(
    "content",
    [b"", b"current-context: cnvnet-agent.cnvnet.io", b"[]", b'{"current-context": "admin"}', b"\xff"],
)
def test_a_file_of_another_origin_has_no_token_of_an_agent(content: bytes) -> None:
    assert node_kubeconfig.token(content) is None


@pytest.mark.parametrize("users", ["[]", "{}", '[{"user": {}}]', "null"])
def test_a_damaged_file_of_an_agent_has_no_token(users: str) -> None:
    content = f'{{"current-context": "{node_kubeconfig.MARK}", "users": {users}}}'
    assert node_kubeconfig.token(content.encode()) == b""
