"""The kubeconfig that an agent in a pod leaves on its node for executables that run without it: its form.

JSON, which no YAML parser has to be imported for, with token and authority in it: the pod's files are in no
path of the node.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final, cast

from cnvnet.kube.settings import Credentials

# How a file of an agent differs from one of an administrator: the name of its context, cluster and user.
MARK: Final = "cnvnet-agent.cnvnet.io"


def content(credentials: Credentials) -> bytes:
    """A file with these credentials, which are a pod's, as they are now. Raises OSError."""
    cluster: dict[str, Any] = {"server": credentials.server}
    if credentials.tls.authority:
        encoded = base64.b64encode(credentials.tls.authority.read()).decode()
        cluster["certificate-authority-data"] = encoded
    if credentials.proxy:
        cluster["proxy-url"] = credentials.proxy
    token = credentials.token.read().decode("ascii", "replace").strip()
    context = {"cluster": MARK, "user": MARK, "namespace": credentials.namespace}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": MARK,
        "contexts": [{"name": MARK, "context": context}],
        "clusters": [{"name": MARK, "cluster": cluster}],
        "users": [{"name": MARK, "user": {"token": token}}],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def token(content: bytes) -> bytes | None:
    """The token in a file that an agent has written; None for a file of another origin."""
    try:
        document: object = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    fields = cast("dict[str, Any]", document)
    if fields.get("current-context") != MARK:
        return None
    try:
        return str(fields["users"][0]["user"]["token"]).encode()
    except (LookupError, TypeError):
        return b""
