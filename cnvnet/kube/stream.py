"""The events of one watch, as they come."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final, cast

import urllib3
from urllib3.exceptions import HTTPError

from cnvnet.kube.api import WatchEvent, WatchStream, refused, unanswered
from cnvnet.kube.failures import failure

# Bytes that are read at once, as in `transport`.
_CHUNK: Final = 1 << 16
# Bytes of one event: etcd takes no object of more than 1.5 MiB.
_LONGEST: Final = 16 << 20


class EventStream(WatchStream):
    """One thread reads it, any thread closes it."""

    def __init__(self, answer: urllib3.BaseHTTPResponse, server: str, asked: str) -> None:
        self._answer = answer
        self._server = server
        self._asked = asked
        self._lines = self._read()
        self._lock = threading.Lock()
        self._closed = False
        # Of the same connection: shutting it down ends a read that waits.
        self._socket = socket.socket(fileno=os.dup(answer.fileno()))

    def __iter__(self) -> Iterator[WatchEvent]:
        return self

    def __next__(self) -> WatchEvent:
        """The next event; ApiError, also where the server reports an error as an event."""
        with self._lock:
            try:
                line = next(self._lines)
            except StopIteration:
                self._end()
                raise
            except (HTTPError, OSError) as e:
                was_closed = self._closed
                self._end()
                if was_closed:
                    raise StopIteration from None
                raise unanswered(self._server, self._asked, str(failure(e))) from e
            return self._event(line)

    def close(self) -> None:
        """Ends the watch at once."""
        if self._closed:
            return
        self._closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the server was faster
        # A thread that reads ends it itself.
        if self._lock.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._lock.release()

    def _event(self, line: bytes) -> WatchEvent:
        try:
            event = json.loads(line)
            kind, document = str(event["type"]), cast("dict[str, Any]", event["object"])
        except (ValueError, KeyError, TypeError, RecursionError):
            self._end()
            raise unanswered(self._server, self._asked, "an event that cannot be read") from None
        if kind == "ERROR":
            self._end()
            raise refused(self._server, self._asked, int(document.get("code") or 0), document)
        return WatchEvent(kind, document)

    def _read(self) -> Iterator[bytes]:
        rest = b""
        for chunk in self._answer.stream(_CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from filter(None, lines)
            if len(rest) > _LONGEST:
                self._end()
                raise unanswered(self._server, self._asked, f"an event of more than {_LONGEST >> 20} MiB")

    def _end(self) -> None:
        """Nothing more is read. A connection that the server has not closed may serve other requests."""
        self._closed = True
        self._socket.close()
        self._answer.close()
