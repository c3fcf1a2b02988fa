"""The agent's door: requests come in, are dealt out by their kind, and answered. It knows no kind itself.

A request is 4 bytes of length, big-endian, and one JSON object `{"v": 1, ...}`; the answer has the same
form; then the connection is closed. Only root is heard.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple, cast

from cnvnet.agent import log
from cnvnet.cni.errors import DECODING_FAILURE, INTERNAL, CNIError
from cnvnet.kernel.netns import LostNamespace

VERSION: Final = 1
LIMIT: Final = 1 << 20
# A call that a launcher hands on may be as long as this (cnvnet/cni/forwarding.py): it is heard out, because
# only an answer tells the launcher to run the call itself.
_LONGEST: Final = 1 << 25
# Of one request, from the connection to its last byte, and of its answer.
_SECONDS: Final = 10.0
_UCRED: Final = struct.Struct("=iII")  # pid, uid, gid
_WORKERS: Final = 4

Document = dict[str, object]


class Kind(NamedTuple):
    """What is to be done about one kind of request. `do` returns the answer's fields or raises CNIError.

    It runs in one of a few threads; who takes long keeps others waiting. `label` is for the counters.
    """

    label: str
    do: Callable[[Document], Document]


# The kind of a request by what is in it; None: nobody here knows it.
Find = Callable[[Document], Kind | None]
# Told of each request: its label, and its code, 0 when it was done.
Observe = Callable[[str, int], None]

_UNSUPPORTED: Final[Document] = {"v": VERSION, "unsupported": True}
_DONE: Final = 0
# HTTP has no better word either: what was asked is not known here.
_UNKNOWN: Final = 501


class Server:
    """All threads accept on the one socket: there is no hand-over, and nobody who could be late with it."""

    def __init__(self, listening: socket.socket, find: Find, observe: Observe) -> None:
        self._listening = listening
        self._find = find
        self._observe = observe
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True)
            for number in range(_WORKERS)
        ]
        self.last_call = time.monotonic()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Requests that are being worked on are finished; nobody else is heard."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join(_SECONDS)

    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        poll = select.poll()
        poll.register(self._listening, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._stopping:
            poll.poll()
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:
                continue  # another worker was faster
            except OSError as e:
                log.error("accept", error=str(e))
                time.sleep(0.1)  # out of descriptors: not in a busy loop
                continue
            with connection:
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        self.last_call = time.monotonic()
        pid, uid, _ = _UCRED.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
        if uid != 0:
            log.warning("a caller that is not root was turned away", pid=pid, uid=uid)
            self._observe("refused", 1)
            return
        try:
            answer = self._answer(_receive(connection))
            _send(connection, answer)
        except CNIError as e:
            self._observe("malformed", e.code)
            _try_send(connection, _error(e))
        except (OSError, EOFError) as e:
            # A caller that only looks whether anybody is there hangs up at once.
            log.debug("a caller hung up", pid=pid, error=str(e))
        except LostNamespace as e:
            end_stuck(e)
        finally:
            self.last_call = time.monotonic()

    def _answer(self, document: Document) -> Document:
        kind = self._find(document) if document.get("v") == VERSION else None
        if kind is None:
            self._observe("unknown", _UNKNOWN)
            return _UNSUPPORTED
        begun = time.monotonic()
        code = _DONE
        try:
            return {"v": VERSION, **kind.do(document)}
        except CNIError as e:
            code = e.code
            log.info("refused", request=kind.label, code=code, error=e.msg)
            return _error(e)
        except Exception as e:  # noqa: BLE001 -- the caller gets an error, and the worker stays
            code = INTERNAL
            log.crash("internal error", request=kind.label)
            return _error(CNIError(INTERNAL, f"internal error of the agent: {type(e).__name__}: {e}"))
        finally:
            self._observe(kind.label, code)
            took = round((time.monotonic() - begun) * 1000, 1)
            log.debug("request", request=kind.label, code=code, ms=took)


def end_stuck(error: LostNamespace) -> None:
    """Ends the process, one thread of which is in a foreign namespace for good."""
    log.error("a thread cannot leave a foreign namespace: the agent ends", error=str(error))
    os._exit(70)  # EX_SOFTWARE; whoever started us starts us again, and the records say what to do


def _receive(connection: socket.socket) -> Document:
    """The request, empty for one that is too long to be of a kind that is known here.

    OSError, EOFError: the caller has gone or is too slow. CNIError 6: it is no request.
    """
    deadline = time.monotonic() + _SECONDS
    size = int.from_bytes(_exactly(connection, 4, deadline), "big")
    if size > _LONGEST:
        raise CNIError(DECODING_FAILURE, f"a request of {size} bytes: {LIMIT} at most")
    if size > LIMIT:
        _skip(connection, size, deadline)
        return {}
    content = _exactly(connection, size, deadline)
    try:
        document: object = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise CNIError(DECODING_FAILURE, f"not a JSON document: {e}") from e
    if not isinstance(document, dict):
        raise CNIError(DECODING_FAILURE, "not a JSON object")
    return cast("Document", document)


def _skip(connection: socket.socket, size: int, deadline: float) -> None:
    while size:
        size -= len(_exactly(connection, min(size, 1 << 16), deadline))


def _exactly(connection: socket.socket, size: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("too slow")
        connection.settimeout(left)
        chunk = connection.recv(size - len(received))
        if not chunk:
            raise EOFError("in the middle of a request" if received else "before a request")
        received += chunk
    return bytes(received)


def _error(error: CNIError) -> Document:
    return {"v": VERSION, "error": {"code": error.code, "msg": error.msg}}


def _send(connection: socket.socket, answer: Document) -> None:
    content = json.dumps(answer).encode()
    connection.settimeout(_SECONDS)
    connection.sendall(len(content).to_bytes(4, "big") + content)


def _try_send(connection: socket.socket, answer: Document) -> None:
    try:
        _send(connection, answer)
    except OSError:
        pass  # it did not make sense before, either
