"""Tokens as Kubernetes issues them to pods, signed by no one."""

from __future__ import annotations

import base64
import json
import time
from typing import Any


def bound_token(pod: str, uid: str, *, namespace: str = "cnvnet-system", lifetime: float = 3600) -> str:
    """That of a pod; `lifetime` in seconds from now."""
    now = int(time.time())
    claims = {
        "aud": ["https://k"],
        "exp": int(now + lifetime),
        "iat": now,
        "kubernetes.io": {
            "namespace": namespace,
            "node": {"name": "node-1", "uid": "n1"},
            "pod": {"name": pod, "uid": uid},
            "serviceaccount": {"name": "cnvnet-agent", "uid": "s1"},
        },
        "sub": f"system:serviceaccount:{namespace}:cnvnet-agent",
    }
    return token(claims)


def token(claims: Any) -> str:
    """A token that says this."""
    return ".".join(map(_encoded, ({"alg": "ES256"}, claims, "signature")))


def _encoded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
