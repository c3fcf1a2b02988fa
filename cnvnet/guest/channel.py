"""The control channel of the packet loop: SOCK_SEQPACKET, one JSON object a message, sockets by SCM_RIGHTS.

Its other end is the agent, which is trusted but may be of another version: every message gets an answer.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple, cast

VERSION: Final = 1
# The reason reported for a guest whose tap was deleted.
TAP_GONE: Final = "the tap is gone"
# Bytes of one message: more than a socket buffer takes by default. A guest's settings have some hundred.
LARGEST: Final = 1 << 18
_MOST_DESCRIPTORS: Final = 8


class Serve(NamedTuple):
    """Serve the guest `name` by these settings."""

    name: str
    settings: Mapping[str, object]
    # Its packet socket, which the receiver has to close.
    fd: int
    # Report what the guest asks for. An older agent does not know such messages and does not ask for them.
    events: bool = False


class Drop(NamedTuple):
    """Serve the guest `name` no longer."""

    name: str


class Counters(NamedTuple):
    """Tell the totals."""


Request = Serve | Drop | Counters


class Closed(Exception):
    """The other end of the channel is closed."""


class RefusedRequest(Exception):
    """A message that asks for nothing we can do; `name` is the guest's that was to be served, if any."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(reason)
        self.name = name


class Channel:
    """The loop's end. Nothing blocks: what the socket has no room for waits in `_waiting`."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._waiting: deque[bytes] = deque()

    def fileno(self) -> int:
        """The descriptor, for select and poll."""
        return self._end.fileno()

    def is_full(self) -> bool:
        """Whether answers wait.

        Until they are sent no request should be read: the other end has to read first.
        """
        return bool(self._waiting)

    def receive(self, *, ended: bool) -> Request:
        """The next request. `ended`: epoll said that the other end is closed.

        Raises RefusedRequest, Closed, or BlockingIOError when there is none. Descriptors that a request does
        not need are closed.
        """
        space = socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4)
        try:
            data, aside, flags, _ = self._end.recvmsg(LARGEST, space, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError as e:
            raise Closed from e
        descriptors = _descriptors(aside)
        try:
            if not data and ended:
                raise Closed
            if flags & socket.MSG_TRUNC:
                raise RefusedRequest(f"longer than {LARGEST} bytes")
            request = parse(data, descriptors)
            if isinstance(request, Serve):
                descriptors.remove(request.fd)
            return request
        finally:
            for fd in descriptors:
                os.close(fd)

    def send(self, answer: Mapping[str, object]) -> None:
        """Raises Closed."""
        self._waiting.append(json.dumps(answer).encode())
        self.flush()

    def flush(self) -> None:
        """Sends what waits, as far as there is room. Raises Closed."""
        try:
            while self._waiting:
                self._end.send(self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            pass  # epoll says when there is room
        except ConnectionError as e:
            raise Closed from e


def _descriptors(aside: list[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array.array("i")
    for level, kind, data in aside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return list(descriptors)


def parse(data: bytes, descriptors: list[int]) -> Request:
    """The request in a message. Raises RefusedRequest."""
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise RefusedRequest("not one JSON document") from e
    if not isinstance(document, dict):
        raise RefusedRequest("not an object")
    fields = cast("dict[str, object]", document)
    if type(fields.get("v")) is not int or fields["v"] != VERSION:
        raise RefusedRequest(f"v {fields.get('v')!r:.40}: this version knows {VERSION}")
    if "serve" in fields:
        name = _name(fields, "serve")
        settings = fields.get("settings")
        if not isinstance(settings, dict):
            raise RefusedRequest("settings: required", name)
        if len(descriptors) != 1:
            raise RefusedRequest(f"{len(descriptors)} descriptors came along, not one", name)
        events = fields.get("events") is True
        return Serve(name, cast("dict[str, object]", settings), descriptors[0], events)
    if "drop" in fields:
        return Drop(_name(fields, "drop"))
    if fields.get("counters") is True:
        return Counters()
    raise RefusedRequest("neither serve nor drop nor counters")


def _name(fields: Mapping[str, object], key: str) -> str:
    name = fields[key]
    if not isinstance(name, str) or not 0 < len(name) < 256:
        raise RefusedRequest(f"{key}: not a name of up to 255 characters")
    return name
