"""Kubeconfig files: the cluster and the user of one context, as client-go reads them."""

from __future__ import annotations

import binascii
import json
import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, cast
from urllib.parse import SplitResult, urlsplit

from cnvnet import call_context
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields
from cnvnet.kube.proxy import checked, environment_proxy
from cnvnet.kube.settings import CredentialPlugin, Credentials, Secret, Tls

# Versions of the ExecCredential that a credential plugin prints.
_EXEC_VERSIONS: Final = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
# Keys of a user that say who it is in ways that are not supported: without them it would be another user.
_UNSUPPORTED: Final = ("auth-provider", "username", "password", "as", "as-uid", "as-groups", "as-user-extra")


def read(path: str, env: Mapping[str, str], context: str = "") -> Credentials:
    """Those of a context, the current one unless another is named; `env` may name a proxy.

    InvalidConfig, naming file and key.
    """
    try:
        return _read(path, env, context)
    except InvalidConfig as e:
        raise InvalidConfig(f"{path}: {e.msg}") from e


def _read(path: str, env: Mapping[str, str], context: str) -> Credentials:
    document = Fields(_load(path))
    current = context or document.text("current-context")
    if not current:
        raise InvalidConfig("current-context: no context is named")
    chosen = _named(document, "contexts", "context", current)
    cluster = _named(document, "clusters", "cluster", chosen.text("cluster"))
    name = chosen.text("user")
    user = _named(document, "users", "user", name) if name else Fields({}, "users[]")
    server = _server(cluster)
    proxy = cluster.text("proxy-url")
    if proxy and server.startswith("http:"):
        raise InvalidConfig(f"{cluster.path('proxy-url')}: a server on this machine is asked without")
    folder = os.path.dirname(os.path.abspath(path))
    tls = _tls(cluster, user, folder)
    credentials = Credentials(
        server,
        path,
        partial(read, path, env, context),
        namespace=chosen.text("namespace") or "default",
        tls=tls,
        token=_token(user, folder),
        plugin=_plugin(user, cluster, tls, server, folder),
        proxy=checked(proxy, cluster.path("proxy-url")) if proxy else environment_proxy(server, env),
    )
    if not tls.verify:
        key = cluster.path("insecure-skip-tls-verify")
        call_context.log(f"{path}: {key}: any server at {server} is believed, and is sent the credentials")
    return credentials


def _load(path: str) -> Mapping[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
    except (OSError, ValueError) as e:
        raise InvalidConfig(f"a kubeconfig cannot be read: {getattr(e, 'strerror', None) or e}") from e
    # The agent writes JSON, which needs no parser that takes longer to import than a request takes.
    document = _load_json(text) if text.lstrip().startswith("{") else _load_yaml(text)
    if not isinstance(document, dict):
        raise InvalidConfig("not a kubeconfig: no mapping")
    return cast("Mapping[str, Any]", document)


def _load_json(text: str) -> object:
    try:
        loaded: object = json.loads(text)
        return loaded
    except (ValueError, RecursionError):
        return _load_yaml(text)  # YAML has braces, too


def _load_yaml(text: str) -> object:
    import yaml

    try:
        loaded = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        # What JSON has no word for: keys that are numbers become texts, as do dates.
        plain: object = json.loads(json.dumps(loaded, default=str))
        return plain
    except (ValueError, TypeError, RecursionError):
        raise InvalidConfig("not a kubeconfig: YAML that cannot be JSON") from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        # The error's own text repeats lines of the file, which may have a token.
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise InvalidConfig(f"not YAML: {getattr(e, 'problem', None) or 'unreadable'}{where}") from None


def _named(document: Fields, many: str, one: str, name: str) -> Fields:
    """The entry of that name in a list of `{name: ..., <one>: {...}}`."""
    for entry in document.each(many) or ():
        if entry.text("name") == name:
            return entry.fields(one)
    raise InvalidConfig(f"{many}: there is none called {name!r}")


def _server(cluster: Fields) -> str:
    server = cluster.text("server").rstrip("/")
    key = cluster.path("server")
    try:
        url = urlsplit(server)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        raise InvalidConfig(f"{key}: no URL of a server") from None
    if not valid or url.query or url.fragment or url.username is not None:
        raise InvalidConfig(f"{key}: expected https://HOST:PORT")
    if url.scheme == "http" and not _is_local(url):
        raise InvalidConfig(f"{key}: credentials would be sent unencrypted (https://)")
    return server


def _is_local(url: SplitResult) -> bool:
    return (url.hostname or "") in ("localhost", "::1") or (url.hostname or "").startswith("127.")


def _tls(cluster: Fields, user: Fields, folder: str) -> Tls:
    authority = _pem(cluster, "certificate-authority", folder)
    verify = not cluster.flag("insecure-skip-tls-verify")
    if authority and not verify:
        key = cluster.path("insecure-skip-tls-verify")
        raise InvalidConfig(f"{key}: contradicts certificate-authority, which then counts for nothing")
    certificate, private = _pem(user, "client-certificate", folder), _pem(user, "client-key", folder)
    if bool(certificate) != bool(private):
        raise InvalidConfig(f"{user.path('client-certificate')}: needs client-key, and the other way round")
    return Tls(authority, cluster.text("tls-server-name"), verify, certificate, private)


def _pem(fields: Fields, key: str, folder: str) -> Secret:
    """A certificate or key: `<key>-data`, which counts more, or the file that `<key>` names."""
    encoded = fields.text(f"{key}-data")
    if not encoded:
        return _file(fields, key, folder)
    try:
        return Secret(content=binascii.a2b_base64("".join(encoded.split()), strict_mode=True))
    except ValueError:
        raise InvalidConfig(f"{fields.path(key)}-data: not base64") from None


def _file(fields: Fields, key: str, folder: str) -> Secret:
    path = fields.text(key)
    return Secret(os.path.join(folder, path)) if path else Secret()


def _token(user: Fields, folder: str) -> Secret:
    for key in _UNSUPPORTED:
        if user.has(key):
            raise InvalidConfig(
                f"{user.path(key)}: not supported (token, tokenFile, client-certificate, exec)"
            )
    # The file counts more: it is what gets renewed.
    return _file(user, "tokenFile", folder) or Secret(content=user.text("token").encode())


def _plugin(user: Fields, cluster: Fields, tls: Tls, server: str, folder: str) -> CredentialPlugin | None:
    if not user.has("exec"):
        return None
    entry = user.fields("exec")
    version, command = entry.text("apiVersion"), entry.text("command")
    if version not in _EXEC_VERSIONS:
        raise InvalidConfig(f"{entry.path('apiVersion')}: expected {' or '.join(_EXEC_VERSIONS)}")
    if not command:
        raise InvalidConfig(f"{entry.path('command')}: missing")
    if entry.text("interactiveMode") == "Always":
        raise InvalidConfig(f"{entry.path('interactiveMode')}: there is no terminal to ask at")
    # As client-go: a path is relative to the kubeconfig, a bare name is searched in PATH.
    command = os.path.join(folder, command) if "/" in command else command
    return CredentialPlugin(
        command,
        tuple(entry.texts("args")),
        tuple((each.text("name"), each.text("value")) for each in entry.each("env") or ()),
        version,
        entry.text("installHint"),
        _cluster_info(cluster, tls, server) if entry.flag("provideClusterInfo") else "",
    )


def _cluster_info(cluster: Fields, tls: Tls, server: str) -> str:
    """The `spec.cluster` of an ExecCredential."""
    info: dict[str, object] = {"server": server, "insecure-skip-tls-verify": not tls.verify}
    for key in ("tls-server-name", "proxy-url", "certificate-authority-data"):
        if cluster.text(key):
            info[key] = cluster.text(key)
    for extension in cluster.each("extensions") or ():
        if extension.text("name") == "client.authentication.k8s.io/exec":
            info["config"] = extension.raw("extension")
    return json.dumps(info)
