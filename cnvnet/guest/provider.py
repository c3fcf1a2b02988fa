"""Who serves the guests of this node: the agent, which finds what they are given in the records.

A binding's ADD has nothing to do but write the record; this is only about whether anybody will read it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

from cnvnet.attachments import rundir
from cnvnet.cni.errors import NOT_AVAILABLE, CNIError

_SECONDS: Final = 2.0


def ensure(env: Mapping[str, str]) -> None:
    """Raises CNIError 50, with what to do about it, when no agent will serve the caller's guests."""
    path = _address(env)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(path)
    except (OSError, ValueError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise CNIError(
            NOT_AVAILABLE,
            f"guestServices: no agent at {path} ({reason.lower()}): start cnvnet-agent on this node, "
            "or leave the key out",
        ) from e


def _address(env: Mapping[str, str]) -> str:
    """The agent's socket. CNVNET_AGENT=off is about who runs the plugins, not about who serves guests."""
    named = env.get("CNVNET_AGENT", "")
    return named if "/" in named else os.path.join(rundir(env), "agent.sock")
