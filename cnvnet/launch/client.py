"""The way to the node's agent: where its socket is, how callers connect, one message there and back.

docs/agent-protocol.md describes it; for CNI calls launcher/agent.c does the same. An executable runs
this for every call, so it takes the module `_socket`: importing `socket` takes three times as long, for
enums and classes that are not needed here.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from cnvnet.attachment import RUNDIR
from cnvnet.call_context import log

if TYPE_CHECKING:
    from _socket import socket

# asm-generic/socket.h: struct ucred {pid, uid, gid} of the process that listens. Not named in `_socket`.
_SO_PEERCRED: Final = 17
_LENGTH_BYTES: Final = 4
# Bytes that one recv takes: a buffer of this size is made for each.
_CHUNK: Final = 1 << 16


def socket_path(env: Mapping[str, str]) -> str:
    """The agent's socket: the one that CNVNET_AGENT names, else that of RUNDIR.

    CNVNET_AGENT=off is about which process runs the plugins, and not about this.
    """
    named = env.get("CNVNET_AGENT", "")
    return named if "/" in named else f"{env.get('CNVNET_RUNDIR') or RUNDIR}/agent.sock"


def connect(path: str, seconds: float) -> socket:
    """A connection to the agent at `path`.

    BlockingIOError: for `seconds`, more callers were waiting than the agent's backlog holds.
    PermissionError: the socket is another user's. Any other OSError: no agent listens there.
    """
    import _socket
    import struct

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        # Not settimeout(): a UNIX socket that does not block does not wait for room in the backlog either.
        timeout = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, timeout)
        connection.connect(path)
        _ensure_trusted(path, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def exchange(
    connection: socket, message: bytes, deadline: float, *, limit: int, descriptors: Iterable[int] = ()
) -> bytes:
    """Sends a message, and `descriptors` along with it; returns the answer.

    `deadline` is by time.monotonic(). MalformedMessage: the answer's length is not 1 to `limit` bytes.
    OSError: there was no answer by then (TimeoutError), or the agent has hung up (ConnectionResetError).
    """
    from cnvnet.launch.protocol import MalformedMessage

    _send(connection, len(message).to_bytes(_LENGTH_BYTES, "big") + message, descriptors, deadline)
    size = int.from_bytes(receive_exactly(connection, _LENGTH_BYTES, deadline), "big")
    if not 0 < size <= limit:
        raise MalformedMessage("an impossible length")
    return bytes(receive_exactly(connection, size, deadline))


def receive_exactly(connection: socket, size: int, deadline: float) -> bytearray:
    """The next `size` bytes; TimeoutError, or ConnectionResetError where the other end closes before."""
    received = bytearray()
    while len(received) < size:
        connection.settimeout(_left(deadline))
        chunk = connection.recv(min(size - len(received), _CHUNK))
        if not chunk:
            raise ConnectionResetError(errno.ECONNRESET, "it has hung up")
        received += chunk
    return received


def _ensure_trusted(path: str, connection: socket) -> None:
    """Raises PermissionError, and says so, unless the listener is root's or of this process' own user.

    Another user who can write in RUNDIR could put a socket there: it would get the pod's namespace and could
    forge the result.
    """
    import _socket

    credentials = connection.getsockopt(_socket.SOL_SOCKET, _SO_PEERCRED, 12)
    uid = int.from_bytes(credentials[4:8], sys.byteorder)
    if uid not in (0, os.geteuid()):
        log(f"{path} belongs to a process of user {uid}, not of root: it is not asked")
        raise PermissionError(errno.EPERM, f"its process is of user {uid}, not of root", path)


def _send(connection: socket, content: bytes, descriptors: Iterable[int], deadline: float) -> None:
    import _socket

    rights = b"".join(descriptor.to_bytes(4, sys.byteorder) for descriptor in descriptors)
    connection.settimeout(_left(deadline))
    if rights:
        # With the first byte alone, so that no reader gets a part of the message without them.
        connection.sendmsg([content[:1]], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        content = content[1:]
    connection.sendall(content)


def _left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds
