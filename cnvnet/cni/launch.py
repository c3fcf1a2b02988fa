"""Hands a call to the node's agent where there is one, exactly as launcher/cnv-launch.c does.

A call is run here only if the agent was not reached or has said that it has done nothing: once a request is
on its way nobody but the agent runs it, and if no answer comes back the runtime is told to try again.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from cnvnet.cni import environment
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.cni.skel import OWN_NETNS, Response

if TYPE_CHECKING:
    from _socket import socket

RUNDIR: Final = "/run/cnvnet"
OWN_MOUNTS: Final = "/proc/thread-self/ns/mnt"
# How long the agent may be too busy to accept, and how long one whole call may take.
CONNECT_SECONDS: Final = 10
CALL_SECONDS: Final = 120

_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def forward(name: str, env: Mapping[str, str], read_stdin: Callable[[], bytes]) -> Response | None:
    """The agent's answer, or error 11 in its place; None if the call is to be run here."""
    path = agent_path(env)
    if not path or not os.path.exists(path):
        return None
    from cnvnet.cni.document import LIMIT

    try:
        environment.command(env)
        stdin = read_stdin()
    except (CNIError, OSError):
        return None  # a call that nobody can run, and the skeleton says why
    if len(stdin) > LIMIT:
        return None
    with ExitStack() as undo:
        try:
            descriptors = _descriptors(env, undo)
            connection = _connected(path)
        except BlockingIOError:
            return _failed(stdin, f"the agent at {path} is too busy to take the call")
        except OSError:
            return None
        undo.callback(connection.close)
        return _ask(connection, path, name, env, stdin, descriptors)


def agent_path(env: Mapping[str, str]) -> str:
    """The agent's socket; empty if the caller wants none (CNVNET_AGENT=off)."""
    named = env.get("CNVNET_AGENT", "")
    if named == "off":
        return ""
    return named if "/" in named else f"{env.get('CNVNET_RUNDIR') or RUNDIR}/agent.sock"


def _connected(path: str) -> socket:
    """A connected socket; BlockingIOError where more callers are waiting than the agent's backlog holds."""
    # The module socket costs three times as much, for enums and classes that nobody needs here.
    import _socket
    import struct

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        # Not settimeout(): a UNIX socket that does not block does not wait for room in the backlog either.
        patience = struct.pack("@ll", CONNECT_SECONDS, 0)
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, patience)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _descriptors(env: Mapping[str, str], undo: ExitStack) -> dict[str, int]:
    """What goes along, by name and in the protocol's order; OSError if this process cannot open its own."""

    def opened(path: str, flags: int) -> int:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        undo.callback(os.close, descriptor)
        return descriptor

    own = opened(OWN_NETNS, os.O_RDONLY)
    found = {
        "self": own,
        "mnt": opened(OWN_MOUNTS, os.O_RDONLY),
        "root": opened("/", os.O_PATH | os.O_DIRECTORY),
    }
    try:
        # Whatever the path leads to, opening it must neither wait nor make a terminal ours.
        netns = opened(env.get("CNI_NETNS", ""), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as e:
        if e.errno in _NO_ROOM:
            raise
        return found
    # All namespaces are files of one file system; this one may be what is left where one was mounted.
    return {"netns": netns, **found} if os.fstat(netns).st_dev == os.fstat(own).st_dev else found


def _ask(
    connection: socket,
    path: str,
    name: str,
    env: Mapping[str, str],
    stdin: bytes,
    descriptors: Mapping[str, int],
) -> Response | None:
    from cnvnet.cni.forwarding import Call, Unintelligible, decode_response, encode_call, forwarded, framed

    request = framed(encode_call(Call(name, forwarded(env), stdin, tuple(descriptors))))
    deadline = time.monotonic() + CALL_SECONDS
    try:
        _send(connection, request, descriptors.values(), deadline)
        return decode_response(_received(connection, deadline))
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        return _failed(stdin, f"the agent at {path} was lost before its answer ({reason})")
    except Unintelligible as e:
        return _failed(stdin, f"the agent at {path} has answered what is no answer to a call ({e})")


def _send(connection: socket, request: bytes, descriptors: Iterable[int], deadline: float) -> None:
    import _socket

    rights = b"".join(descriptor.to_bytes(4, sys.byteorder) for descriptor in descriptors)
    connection.settimeout(_left(deadline))
    # With the first byte alone, so that no reader gets a part of the request without them.
    connection.sendmsg([request[:1]], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    connection.sendall(request[1:])


def _received(connection: socket, deadline: float) -> bytes:
    from cnvnet.cni.forwarding import ANSWER_LIMIT, Unintelligible

    size = int.from_bytes(_exactly(connection, 4, deadline), "big")
    if not 0 < size <= ANSWER_LIMIT:
        raise Unintelligible("an impossible length")
    return _exactly(connection, size, deadline)


def _exactly(connection: socket, size: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < size:
        connection.settimeout(_left(deadline))
        chunk = connection.recv(min(size - len(received), 1 << 16))
        if not chunk:
            raise ConnectionResetError(errno.ECONNRESET, "it has hung up")
        received += chunk
    return bytes(received)


def _left(deadline: float) -> float:
    """Seconds; never 0, which would mean not to wait at all."""
    return max(deadline - time.monotonic(), 0.001)


def _failed(stdin: bytes, reason: str) -> Response:
    from cnvnet.cni.document import Malformed, decode_object, encode, error_document
    from cnvnet.cni.version import SUPPORTED

    try:
        version = decode_object(stdin).get("cniVersion")
    except Malformed:
        version = ""
    known = version if version in SUPPORTED else ""
    return Response(1, encode(error_document(CNIError(TRY_AGAIN_LATER, reason), known)), b"")
