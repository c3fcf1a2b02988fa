"""One connection to the agent: a request with the descriptors that came with it, and an answer to it."""

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
from typing import Final, cast

from cnvnet.cni.errors import DECODING_FAILURE, CNIError
from cnvnet.launch.client import receive_exactly
from cnvnet.launch.protocol import DESCRIPTORS, REQUEST_LIMIT, framed

Document = dict[str, object]

# For one request, from the connection to its last byte, and for its answer.
SECONDS: Final = 10.0
_UCRED: Final = struct.Struct("=iII")  # pid, uid, gid
_ROOM: Final = socket.CMSG_SPACE(len(DESCRIPTORS) * array.array("i").itemsize)
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR
# Bytes. Longer requests are read one at a time: decoding needs a multiple of their size.
_LARGE: Final = 1 << 20
_LENGTH: Final = 4
_one_large = threading.Lock()


class CallerConnection:
    """For one thread at a time. `descriptors` are those that came with the request; `close` closes them."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self.descriptors: list[int] = []
        peer = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        self.pid, self.uid, _ = cast("tuple[int, int, int]", _UCRED.unpack(peer))

    def receive(self, seconds: float = SECONDS) -> Document:
        """OSError, EOFError: the caller has gone or is too slow. CNIError 6: it is no request."""
        deadline = time.monotonic() + seconds
        first = self._first(seconds)
        size = int.from_bytes(first + receive_exactly(self._socket, _LENGTH - 1, deadline), "big")
        if size > REQUEST_LIMIT:
            raise CNIError(DECODING_FAILURE, f"a request of {size} bytes: {REQUEST_LIMIT} at most")
        if size <= _LARGE:
            return _decoded(receive_exactly(self._socket, size, deadline))
        if not _one_large.acquire(timeout=seconds):
            raise TimeoutError("other large requests come first")
        try:
            return _decoded(receive_exactly(self._socket, size, time.monotonic() + seconds))
        finally:
            _one_large.release()

    def send(self, content: bytes) -> None:
        """OSError: the caller has gone or does not read."""
        self._socket.settimeout(SECONDS)
        self._socket.sendall(framed(content))

    def is_gone(self, seconds: float = 0) -> bool:
        """Whether the caller has hung up, or does so within `seconds`."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return any(events & _GONE for _, events in poll.poll(seconds * 1000))

    def was_left_unread(self, seconds: float) -> bool:
        """Whether the caller has hung up, after an answer was sent, without having read all of it.

        Waits for that until `seconds` are over: a caller that still reads then is taken to have the answer.
        """
        try:
            # A caller that reads until the end of the stream finds it.
            self._socket.shutdown(socket.SHUT_WR)
            if not self.is_gone(seconds):
                return False
            # The kernel resets a connection that is closed with something unread in it.
            self._socket.recv(1)
        except ConnectionResetError:
            return True
        except OSError:
            pass  # it has gone, and had read the answer
        return False

    def close(self) -> None:
        """Hang up, and close the descriptors that came with the request."""
        self._socket.close()
        while self.descriptors:
            os.close(self.descriptors.pop())

    def _first(self, seconds: float) -> bytes:
        """The first byte of the length, with which the descriptors come."""
        self._socket.settimeout(seconds)
        # Of this byte alone: descriptors that come later would not be looked for.
        byte, control, flags, _ = self._socket.recvmsg(1, _ROOM, socket.MSG_CMSG_CLOEXEC)
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
        return byte


def _decoded(content: bytearray) -> Document:
    try:
        # Not document.decode, which would lose what is no UTF-8 in a call's environment.
        document: object = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise CNIError(DECODING_FAILURE, f"not a JSON document: {e}") from e
    if not isinstance(document, dict):
        raise CNIError(DECODING_FAILURE, "not a JSON object")
    return cast("Document", document)
