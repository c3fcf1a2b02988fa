"""Hands a call to the node's agent where there is one, exactly as the C launcher does (launcher/).

A call is run here only if the agent was not reached or has said that it has done nothing: once a request is
on its way only the agent runs it, and if no answer comes back the error tells the runtime to try again.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from cnvnet.call_context import OWN_MOUNTS, OWN_NETNS
from cnvnet.cni import environment
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.cni.skel import Response
from cnvnet.launch import client

if TYPE_CHECKING:
    from _socket import socket

# How long the agent may be too busy to accept, and how long one whole call may take: as long as the kubelet
# waits for a runtime (2 min). Seconds.
CONNECT_SECONDS: Final = 10
CALL_SECONDS: Final = 120

_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def forward(name: str, env: Mapping[str, str], read_stdin: Callable[[], bytes]) -> Response | None:
    """The agent's answer, or error 11 in its place; None if the call is to be run here."""
    path = client.socket_path(env)
    if env.get("CNVNET_AGENT") == "off" or not os.path.exists(path):
        return None
    from cnvnet.cni.document import LIMIT

    try:
        environment.command(env)
        stdin = read_stdin()
    except (CNIError, OSError):
        return None  # a call that no plugin can run, and the skeleton says why
    if len(stdin) > LIMIT:
        return None
    with ExitStack() as undo:
        try:
            descriptors = _descriptors(env, undo)
            connection = client.connect(path, CONNECT_SECONDS)
        except BlockingIOError:
            return _failed(stdin, f"the agent at {path} is too busy to take the call")
        except OSError:
            return None
        undo.callback(connection.close)
        return _ask(connection, path, name, env, stdin, descriptors)


def _descriptors(env: Mapping[str, str], undo: ExitStack) -> dict[str, int]:
    """What goes along, by name and in the protocol's order; OSError if this process cannot open its own."""

    def opened(path: str, flags: int) -> int:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        undo.callback(os.close, descriptor)
        return descriptor

    own = opened(OWN_NETNS, os.O_RDONLY)
    descriptors = {
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
        return descriptors
    # All namespaces are files of one file system, nsfs; where one was mounted an ordinary file may be left.
    is_netns = os.fstat(netns).st_dev == os.fstat(own).st_dev
    return {"netns": netns, **descriptors} if is_netns else descriptors


def _ask(
    connection: socket,
    path: str,
    name: str,
    env: Mapping[str, str],
    stdin: bytes,
    descriptors: Mapping[str, int],
) -> Response | None:
    from cnvnet.launch import protocol

    call = protocol.ForwardedCall(name, protocol.forwarded(env), stdin, tuple(descriptors))
    request = protocol.encode_call(call)
    deadline = time.monotonic() + CALL_SECONDS
    try:
        answer = client.exchange(
            connection, request, deadline, limit=protocol.ANSWER_LIMIT, descriptors=descriptors.values()
        )
        return protocol.decode_response(answer)
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        return _failed(stdin, f"the agent at {path} was lost before its answer ({reason})")
    except protocol.MalformedMessage as e:
        return _failed(stdin, f"the agent at {path} has answered what is no answer to a call ({e})")


def _failed(stdin: bytes, reason: str) -> Response:
    from cnvnet.cni.document import Malformed, decode_object, encode, error_document
    from cnvnet.cni.version import SUPPORTED

    try:
        version = decode_object(stdin).get("cniVersion")
    except Malformed:
        version = ""
    known = version if version in SUPPORTED else ""
    return Response(1, encode(error_document(CNIError(TRY_AGAIN_LATER, reason), known)), b"")
