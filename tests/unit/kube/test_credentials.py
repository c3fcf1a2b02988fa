"""Which credentials are found, and what a kubeconfig says."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnvnet.cni.errors import InvalidConfig
from cnvnet.kube import credentials
from cnvnet.kube.credentials import find, from_kubeconfig, in_cluster
from cnvnet.kube.settings import Secret, Tls

Tree = dict[str, Any]
IN_POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def kubeconfig(path: Path, cluster: Tree | None = None, user: Tree | None = None, **context: Any) -> str:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [
            {"name": "other", "context": {"cluster": "none"}},
            {"name": "c", "context": {"cluster": "k", "user": "u", **context}},
        ],
        "clusters": [{"name": "k", "cluster": {"server": "https://10.0.0.1:6443", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kubeconfig"


@pytest.fixture
def pod(tmp_path: Path) -> str:
    for name, content in (("token", "t"), ("ca.crt", "pem"), ("namespace", "system\n")):
        (tmp_path / name).write_text(content)
    return str(tmp_path)


def test_a_kubeconfig_names_server_user_and_namespace(path: Path) -> None:
    read = from_kubeconfig(kubeconfig(path, user={"token": "secret"}, namespace="vms"))
    assert (read.server, read.namespace, read.source) == ("https://10.0.0.1:6443", "vms", str(path))
    assert read.token == Secret(content=b"secret")
    assert (read.tls, read.proxy) == (Tls(), "")


def test_a_kubeconfig_may_be_json(path: Path) -> None:
    kubeconfig(path, user={"token": "secret"})
    path.write_text(json.dumps(yaml.safe_load(path.read_text())))
    assert from_kubeconfig(str(path)).token.content == b"secret"
    path.write_text(
        "{current-context: c, contexts: [{name: c, context: {cluster: k}}],"
        " clusters: [{name: k, cluster: {server: 'https://h/prefix/'}}]}"
    )
    assert from_kubeconfig(str(path)).server == "https://h/prefix"


def test_files_are_beside_the_kubeconfig_and_a_tokens_file_counts_more(path: Path) -> None:
    user = {"token": "old", "tokenFile": "t", "client-certificate": "/abs/c.pem", "client-key": "k.pem"}
    read = from_kubeconfig(kubeconfig(path, {"certificate-authority": "ca.pem"}, user))
    assert read.token == Secret(f"{path.parent}/t")
    assert read.tls.authority == Secret(f"{path.parent}/ca.pem")
    assert read.tls.certificate == Secret("/abs/c.pem")
    assert read.tls.key == Secret(f"{path.parent}/k.pem")


def test_data_counts_more_than_a_file(path: Path) -> None:
    encoded = base64.b64encode(b"PEM").decode()
    cluster = {"certificate-authority": "f", "certificate-authority-data": encoded, "tls-server-name": "n"}
    user = {"client-certificate-data": encoded, "client-key-data": encoded}
    read = from_kubeconfig(kubeconfig(path, cluster, user))
    pem = Secret(content=b"PEM")
    assert read.tls == Tls(pem, "n", True, pem, pem)


def test_another_context_is_chosen_by_its_name(path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"clusters: there is none called 'none'$"):
        from_kubeconfig(kubeconfig(path), context="other")


def test_a_server_that_is_not_verified_is_warned_about(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert from_kubeconfig(kubeconfig(path, {"insecure-skip-tls-verify": True})).tls.verify is False
    assert (
        "insecure-skip-tls-verify: any server at https://10.0.0.1:6443 is believed"
        in capsys.readouterr().err
    )


def test_a_credential_plugin_is_read_as_a_whole(path: Path) -> None:
    entry = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "bin/login",
        "args": ["-x"],
        "env": [{"name": "A", "value": "b"}],
        "installHint": "get it",
        "provideClusterInfo": True,
        "interactiveMode": "IfAvailable",
    }
    plugin = from_kubeconfig(kubeconfig(path, {"tls-server-name": "n"}, {"exec": entry})).plugin
    assert plugin is not None
    assert plugin.command == f"{path.parent}/bin/login"
    assert (plugin.args, plugin.env, plugin.install_hint) == (("-x",), (("A", "b"),), "get it")
    assert json.loads(plugin.cluster) == {
        "server": "https://10.0.0.1:6443",
        "insecure-skip-tls-verify": False,
        "tls-server-name": "n",
    }
    entry["command"] = "login"
    plugin = from_kubeconfig(kubeconfig(path, user={"exec": entry})).plugin
    assert plugin is not None
    assert plugin.command == "login"


@pytest.mark.parametrize(
    ("cluster", "user", "complaint"),
    [
        ({"server": "10.0.0.1:6443"}, {}, "clusters[0].cluster.server: expected https://HOST:PORT"),
        ({"server": "https://u:p@h"}, {}, "clusters[0].cluster.server: expected https://HOST:PORT"),
        ({"server": "https://h:99999"}, {}, "clusters[0].cluster.server: no URL of a server"),
        ({"server": "http://h"}, {}, "clusters[0].cluster.server: credentials would be sent unencrypted"),
        ({"server": 7}, {}, "clusters[0].cluster.server: expected a string, got an integer"),
        (
            {"certificate-authority-data": "!"},
            {},
            "clusters[0].cluster.certificate-authority-data: not base64",
        ),
        ({"proxy-url": "socks5://h"}, {}, "clusters[0].cluster.proxy-url: expected http://HOST:PORT"),
        (
            {"insecure-skip-tls-verify": True, "certificate-authority": "f"},
            {},
            "clusters[0].cluster.insecure-skip-tls-verify: contradicts certificate-authority",
        ),
        ({}, {"client-key": "f"}, "users[0].user.client-certificate: needs client-key"),
        ({}, {"auth-provider": {"name": "gcp"}}, "users[0].user.auth-provider: not supported"),
        ({}, {"username": "a", "password": "b"}, "users[0].user.username: not supported"),
        ({}, {"as": "root"}, "users[0].user.as: not supported"),
        ({}, {"exec": {"apiVersion": "v0", "command": "c"}}, "users[0].user.exec.apiVersion: expected"),
        (
            {},
            {"exec": {"apiVersion": "client.authentication.k8s.io/v1"}},
            "users[0].user.exec.command: missing",
        ),
        (
            {},
            {
                "exec": {
                    "apiVersion": "client.authentication.k8s.io/v1",
                    "command": "c",
                    "interactiveMode": "Always",
                }
            },
            "users[0].user.exec.interactiveMode: there is no terminal",
        ),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(
    path: Path, cluster: Tree, user: Tree, complaint: str
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        from_kubeconfig(kubeconfig(path, cluster, user))
    assert (caught.value.code, str(caught.value)[: len(f"{path}: {complaint}")]) == (
        7,
        f"{path}: {complaint}",
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "not YAML: "),
        ("users: [{user: {token: secret}}\n: :", "not YAML: "),
        ("[]", "not a kubeconfig: no mapping"),
        ("a: &a [*a]", "not a kubeconfig: YAML that cannot be JSON"),
        ("!!python/object/apply:os.system ['id']", "not YAML: could not determine a constructor"),
        ("1: secret", "current-context: no context is named"),
        ("2020-01-01: secret", "not a kubeconfig: YAML that cannot be JSON"),
        ('{"a":' * 10_000, "not "),
        ("", "not a kubeconfig: no mapping"),
        ("contexts: []", "current-context: no context is named"),
        ("current-context: c", "contexts: there is none called 'c'"),
        ("\udcff", "a kubeconfig cannot be read: "),
    ],
)
def test_what_is_no_kubeconfig_is_refused_without_showing_it(path: Path, text: str, complaint: str) -> None:
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidConfig) as caught:
        from_kubeconfig(str(path))
    assert str(caught.value).startswith(f"{path}: {complaint}")
    assert "secret" not in str(caught.value)


def test_a_pod_finds_the_server_and_its_own_token(pod: str) -> None:
    found = in_cluster(IN_POD, pod)
    assert found is not None
    assert (found.server, found.namespace) == ("https://10.96.0.1:443", "system")
    assert (found.token, found.tls.authority) == (Secret(f"{pod}/token"), Secret(f"{pod}/ca.crt"))


def test_a_pods_server_may_have_an_ipv6_address(pod: str) -> None:
    found = in_cluster({**IN_POD, "KUBERNETES_SERVICE_HOST": "fd00::1"}, pod)
    assert found is not None
    assert found.server == "https://[fd00::1]:443"


def test_a_pod_without_token_or_server_has_no_credentials(pod: str, tmp_path: Path) -> None:
    assert in_cluster({}, pod) is None
    assert in_cluster(IN_POD, str(tmp_path / "none")) is None


def test_credentials_are_read_anew_from_where_they_came(path: Path) -> None:
    read = from_kubeconfig(kubeconfig(path, user={"token": "one"}))
    kubeconfig(path, user={"token": "two"})
    assert read.reread().token.content == b"two"


def test_no_secret_is_printed(path: Path) -> None:
    data = base64.b64encode(b"private").decode()
    user = {
        "token": "hush",
        "client-certificate-data": data,
        "client-key-data": data,
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "c", "args": ["hush"]},
    }
    read = from_kubeconfig(kubeconfig(path, {"proxy-url": "http://u:hush@p:1"}, user))
    shown = f"{read!r} {read.token!r} {read.tls!r} {read.plugin!r}"
    assert not any(word in shown for word in ("hush", "private", data))


def test_the_first_source_counts(path: Path, pod: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", f"{pod}/none")
    monkeypatch.setattr(credentials, "DEFAULT_KUBECONFIG", f"{pod}/none")
    assert find({}) is None
    default, option, named = (path.with_name(name) for name in ("default", "option", "named"))
    for each in (default, option, named):
        kubeconfig(each)
    monkeypatch.setattr(credentials, "DEFAULT_KUBECONFIG", str(default))
    assert source({}) == str(default)
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", pod)
    assert source(IN_POD) == pod
    assert source(IN_POD, str(option)) == str(option)
    assert source({**IN_POD, "CNVNET_KUBECONFIG": str(named)}, str(option)) == str(named)


def test_the_pod_that_an_executable_is_started_in_is_anothers(
    path: Path, pod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", pod)
    monkeypatch.setattr(credentials, "DEFAULT_KUBECONFIG", kubeconfig(path))
    found = find(IN_POD, resident=False)
    assert found is not None
    assert found.source == str(path)
    path.unlink()
    found = find(IN_POD, resident=False)
    assert found is not None
    assert found.source == pod


def test_a_nodes_kubeconfig_that_goes_meanwhile_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "DEFAULT_KUBECONFIG", kubeconfig(path))

    def read(*_: object) -> None:
        path.unlink()
        raise InvalidConfig("cannot be read")

    monkeypatch.setattr(credentials, "from_kubeconfig", read)
    assert find({}, resident=False) is None


def source(env: dict[str, str], option: str = "") -> str:
    found = find(env, option)
    assert found is not None
    return found.source


def test_a_kubeconfig_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="none: a kubeconfig cannot be read: No such file or directory"):
        find({"CNVNET_KUBECONFIG": str(tmp_path / "none")})


def test_an_environments_proxy_counts_unless_the_server_is_excluded(path: Path, pod: str) -> None:
    kubeconfig(path)
    env = {"HTTPS_PROXY": "proxy:3128", "HTTP_PROXY": "http://other"}
    found = find({**env, "CNVNET_KUBECONFIG": str(path)})
    assert found is not None
    assert found.proxy == "http://proxy:3128"
    excluded = {**env, "NO_PROXY": "10.0.0.0/8"}
    assert from_kubeconfig(str(path), excluded).proxy == ""
    assert from_kubeconfig(str(path)).proxy == ""
    kubeconfig(path, {"proxy-url": "http://own"})
    assert from_kubeconfig(str(path), excluded).proxy == "http://own"
    found = in_cluster({**IN_POD, **env}, pod)
    assert found is not None
    assert found.proxy == "http://proxy:3128"
