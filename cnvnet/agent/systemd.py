"""What the agent reports to the service manager: sd_notify(3), without its library."""

from __future__ import annotations

import os
import socket
from typing import Final

READY: Final = "READY=1\nSTATUS="
ALIVE: Final = "WATCHDOG=1"
STOPPING: Final = "STOPPING=1"


def notify(state: str) -> None:
    """Sends a state, or several by lines, to NOTIFY_SOCKET; does nothing where there is no service manager.

    While something takes long before READY, `EXTEND_TIMEOUT_USEC=<microseconds>` asks for as much time.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    # An abstract name is written with an `@`.
    address = path.replace("@", "\0", 1) if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
            channel.sendto(state.encode(), address)
    except OSError:
        pass  # its queue is full, or it is being replaced; the next one comes within a second
