"""Programs that print credentials: client-go's ExecCredential, `exec` in a kubeconfig."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, cast

from cnvnet.kube.settings import CredentialPlugin, Secret

# Bytes of stdout and characters of stderr.
_LONGEST_OUTPUT: Final = 1 << 20
_LONGEST_REASON: Final = 500


class PluginFailed(Exception):
    """The program gave no credentials; the text says why."""


class Printed(NamedTuple):
    """What it printed. `repr` shows none of it."""

    token: Secret
    certificate: Secret
    key: Secret
    # Seconds since 1970; None: they do not expire.
    expires: float | None


def run(plugin: CredentialPlugin, seconds: float) -> Printed:
    """Runs the program for at most so many seconds. PluginFailed."""
    info: dict[str, object] = {"interactive": False}
    if plugin.cluster:
        info["cluster"] = json.loads(plugin.cluster)
    about = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": info}
    env = {**os.environ, **dict(plugin.env), "KUBERNETES_EXEC_INFO": json.dumps(about)}
    try:
        # A session of its own: what it starts ends with it.
        process = subprocess.Popen(
            [plugin.command, *plugin.args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
    except OSError as e:
        hint = f" ({_line(plugin.install_hint)})" if plugin.install_hint else ""
        raise PluginFailed(f"{_name(plugin)}: {(e.strerror or str(e)).lower()}{hint}") from e
    with process:
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise PluginFailed(f"{_name(plugin)}: not done after {seconds:.1f} s") from None
    if process.returncode:
        reason = _line(stderr.decode(errors="replace"))
        raise PluginFailed(f"{_name(plugin)}: exit status {process.returncode}: {reason}".rstrip(": "))
    return _parsed(plugin, stdout)


def _parsed(plugin: CredentialPlugin, stdout: bytes) -> Printed:
    try:
        document: object = json.loads(stdout[:_LONGEST_OUTPUT])
    except ValueError:
        raise PluginFailed(f"{_name(plugin)}: printed no ExecCredential") from None
    status = _mapping(_mapping(document).get("status"))
    version = _mapping(document).get("apiVersion")
    if version != plugin.api_version:
        raise PluginFailed(f"{_name(plugin)}: printed an ExecCredential of another version ({version})")
    texts = [status.get(key) or "" for key in ("token", "clientCertificateData", "clientKeyData")]
    token, certificate, key = (Secret(content=str(text).encode()) for text in texts)
    if not token and not (certificate and key):
        raise PluginFailed(f"{_name(plugin)}: printed neither a token nor a certificate with its key")
    return Printed(token, certificate, key, _seconds(plugin, status.get("expirationTimestamp")))


def _seconds(plugin: CredentialPlugin, timestamp: object) -> float | None:
    if not timestamp:
        return None
    try:
        return datetime.fromisoformat(str(timestamp)).timestamp()
    except ValueError:
        raise PluginFailed(f"{_name(plugin)}: printed an expirationTimestamp that is none") from None


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _name(plugin: CredentialPlugin) -> str:
    return f"credential plugin {os.path.basename(plugin.command)}"


def _line(text: str) -> str:
    return " ".join(text.split())[-_LONGEST_REASON:]
