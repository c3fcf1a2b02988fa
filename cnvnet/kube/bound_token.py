"""What a ServiceAccount's token says of itself, unverified: for messages, and to know a pod by its token."""

from __future__ import annotations

import binascii
import json
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

# What base64 has where its form for URLs has other characters.
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")
# Seconds since 1970: the end of the year 9999, beyond which no date is written.
_LATEST: Final = 253_402_300_800


class TokenClaims(NamedTuple):
    """Of a JSON Web Token (RFC 7519) as Kubernetes issues it. What it does not say is "" or 0."""

    namespace: str
    # The pod that it was issued for, and with whose deletion it ends.
    pod: str
    pod_uid: str
    # Seconds since 1970.
    expires: int

    def ended(self, now: float) -> str:
        """Why an API server that refuses the token does so, as far as the token tells; "" if it does not."""
        if 0 < self.expires <= now:
            return (
                f"the token has expired ({time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(self.expires))})"
            )
        if self.pod:
            return f"the token's pod {self.namespace}/{self.pod} is gone, or its ServiceAccount"
        return ""


def claims(token: bytes) -> TokenClaims | None:
    """What the token says, None for one that is of another kind."""
    parts = token.strip().split(b".")
    if len(parts) != 3:
        return None
    try:
        payload: object = json.loads(binascii.a2b_base64(parts[1].translate(_FROM_URL) + b"=="))
    except (ValueError, RecursionError):
        return None
    if not isinstance(payload, dict):
        return None
    said = _fields(cast("Mapping[str, Any]", payload).get("kubernetes.io"))
    pod, expires = _fields(said.get("pod")), cast("Mapping[str, Any]", payload).get("exp")
    return TokenClaims(
        _text(said.get("namespace")),
        _text(pod.get("name")),
        _text(pod.get("uid")),
        int(expires) if isinstance(expires, int | float) and 0 < expires < _LATEST else 0,
    )


def _fields(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _text(value: object) -> str:
    """A name, as one word."""
    return value if isinstance(value, str) and value.isprintable() and " " not in value else ""
