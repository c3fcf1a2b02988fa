"""One connection to the agent: a request with what came along, and an answer to it."""

from __future__ import annotations

import array
import errno
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar, cast

from cnvnet.cni.errors import DECODING_FAILURE, CNIError
from cnvnet.cni.forwarding import DESCRIPTORS, REQUEST_LIMIT, framed

Document = dict[str, object]

# Of one request, from the connection to its last byte, and of its answer.
SECONDS: Final = 10.0
_UCRED: Final = struct.Struct("=iII")  # pid, uid, gid
_ROOM: Final = socket.CMSG_SPACE(len(DESCRIPTORS) * array.array("i").itemsize)
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR
# Longer requests than this are read one at a time: decoding needs a multiple of their size.
_LARGE: Final = 1 << 20
# Most requests are shorter than this: one call reads all of it.
_SMALL: Final = 1 << 14
_LENGTH: Final = 4
_one_large = threading.Lock()

T = TypeVar("T")


class Connection:
    """For one thread at a time. `descriptors` are those that came with the request; `close` closes them."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self.descriptors: list[int] = []
        peer = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        self.pid, self.uid, _ = cast("tuple[int, int, int]", _UCRED.unpack(peer))

    def receive(self, seconds: float = SECONDS) -> Document:
        """OSError, EOFError: the caller has gone or is too slow. CNIError 6: it is no request."""
        deadline = time.monotonic() + seconds
        received = self._first(deadline)
        self._fill(received, _LENGTH, deadline)
        size = int.from_bytes(received[:_LENGTH], "big")
        if size > REQUEST_LIMIT:
            raise CNIError(DECODING_FAILURE, f"a request of {size} bytes: {REQUEST_LIMIT} at most")
        end = _LENGTH + size
        if size <= _LARGE:
            self._fill(received, end, deadline)
            return _decoded(received[_LENGTH:end])
        if not _one_large.acquire(timeout=seconds):
            raise TimeoutError("other large requests come first")
        try:
            self._fill(received, end, time.monotonic() + seconds)
            return _decoded(received[_LENGTH:end])
        finally:
            _one_large.release()

    def send(self, content: bytes) -> None:
        """OSError: the caller has gone or does not read."""
        message = framed(content)
        try:
            sent = self._socket.send(message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent < len(message):
            self._socket.settimeout(SECONDS)
            self._socket.sendall(message[sent:])

    def is_gone(self, seconds: float = 0) -> bool:
        """Whether the caller has hung up, or does so within `seconds`."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return any(events & _GONE for _, events in poll.poll(seconds * 1000))

    def was_left_unread(self, seconds: float) -> bool:
        """Whether the caller has hung up, after an answer was sent, without having read all of it.

        Waits for that until `seconds` are over: who reads this long is taken at its word.
        """
        try:
            # Whoever reads until the end shall find it.
            self._socket.shutdown(socket.SHUT_WR)
            if not self.is_gone(seconds):
                return False
            # The kernel resets a connection that is closed with something unread in it.
            self._socket.recv(1)
        except ConnectionResetError:
            return True
        except OSError:
            pass  # it has gone, which is all that it had to do
        return False

    def close(self) -> None:
        self._socket.close()
        while self.descriptors:
            os.close(self.descriptors.pop())

    def _first(self, deadline: float) -> bytearray:
        """The first byte of the length, with which the descriptors come."""
        # Of this byte alone: descriptors that come later would not be looked for.
        byte, control, flags, _ = self._at_last(
            lambda: self._socket.recvmsg(1, _ROOM, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT), deadline
        )
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self.descriptors += numbers
        if flags & socket.MSG_CTRUNC and len(self.descriptors) < len(DESCRIPTORS):
            raise OSError(errno.EMFILE, "no room for the caller's descriptors")
        if flags & socket.MSG_CTRUNC:
            raise CNIError(DECODING_FAILURE, f"more descriptors than {', '.join(DESCRIPTORS)}")
        if not byte:
            raise EOFError("before a request")
        return bytearray(byte)

    def _fill(self, received: bytearray, size: int, deadline: float) -> None:
        """Until that much has been received, or a little more."""
        while len(received) < size:
            room = min(max(size - len(received), _SMALL), _LARGE)
            chunk = self._at_last(partial(self._socket.recv, room, socket.MSG_DONTWAIT), deadline)
            if not chunk:
                raise EOFError("in the middle of a request")
            received += chunk

    def _at_last(self, receive: Callable[[], T], deadline: float) -> T:
        """What comes by then. A launcher sends its request at once: nearly always it is there already."""
        while True:
            left = _left(deadline)
            try:
                return receive()
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._socket, select.POLLIN)
                poll.poll(left * 1000)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("too slow")
    return left


def _decoded(content: bytearray) -> Document:
    try:
        # Not document.decode, which would lose what is no UTF-8 in a call's environment.
        document: object = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise CNIError(DECODING_FAILURE, f"not a JSON document: {e}") from e
    if not isinstance(document, dict):
        raise CNIError(DECODING_FAILURE, "not a JSON object")
    return cast("Document", document)
