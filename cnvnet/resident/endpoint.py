"""/metrics, /healthz and /readyz, over HTTP, for every user of this host."""

from __future__ import annotations

import errno
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, NamedTuple, cast

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from cnvnet import VERSION
from cnvnet.resident import log

# How long a caller may take to send its request, or to read the answer, in seconds.
_TIMEOUT: Final = 10.0
# Connections at a time; a scraper has one. Where all are taken, the one that has been silent for longest is
# closed.
_CONNECTIONS: Final = 32
# How long its thread may take to see that, in seconds.
_EVICTION: Final = 0.5
# What was collected is sent again for so many times as long as it took: a caller that asks all the time then
# costs a sixth of a processor.
_SPARED: Final = 5
_TEXT: Final = "text/plain; charset=utf-8"

_Request = socket.socket | tuple[bytes, socket.socket]  # as socketserver has it


class Health(NamedTuple):
    """How the program is."""

    # Whether it takes requests.
    ready: bool
    # Why it is not well; none: all is well.
    problems: list[str]
    # Lines for an operator.
    details: Callable[[], list[str]]
    # Why it is not ready though it is well: what a restart would not help against.
    waits_for: tuple[str, ...] = ()


class AddressUnavailable(Exception):
    """The message names the address and says why it cannot be had."""


class Page(NamedTuple):
    """What is sent."""

    status: int
    kind: str
    content: bytes


class Endpoint:
    """On one address, of which it answers callers between `start` and `stop`."""

    def __init__(self, address: str, registry: CollectorRegistry, health: Callable[[], Health]) -> None:
        """OSError, ValueError, OverflowError: there can be none at this HOST:PORT."""
        host, port = parse_address(address)
        pages = _Pages(registry, health)

        class PageHandler(_Handler):
            def do_GET(self) -> None:
                cast("_Server", self.server).has_asked(self.connection)
                self.answer(pages.get(self.path, self.headers.get("Accept", "")))

        server = _Server6 if ":" in host else _Server
        self._server = server((host, port), PageHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    @property
    def address(self) -> str:
        """Where it is: the port may have been the kernel's choice (0)."""
        host, port = self._server.server_address[:2]
        text = host if isinstance(host, str) else bytes(host).decode()
        return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"

    def start(self) -> None:
        """Answer requests from now on, on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more requests, and close the socket."""
        if self._thread.ident is not None:
            self._server.shutdown()
        self._server.server_close()


def open_endpoint(
    address: str, registry: CollectorRegistry, health: Callable[[], Health]
) -> Endpoint | None:
    """An endpoint at this HOST:PORT; none where the address is empty. AddressUnavailable."""
    try:
        return Endpoint(address, registry, health) if address else None
    except (OSError, OverflowError) as e:
        taken = isinstance(e, OSError) and e.errno == errno.EADDRINUSE
        raise AddressUnavailable(f"{address} {'is in use' if taken else f'cannot be had ({e})'}") from e


class _Pages:
    """The answer to each path, the same for every caller."""

    def __init__(self, registry: CollectorRegistry, health: Callable[[], Health]) -> None:
        self._registry = registry
        self._health = health
        self._lock = threading.Lock()
        self._collected = Page(0, "", b"")
        self._until = 0.0

    def get(self, target: str, accept: str) -> Page:
        path, _, query = target.partition("?")
        if path == "/metrics":
            return self._metrics(accept)
        if path in ("/healthz", "/readyz"):
            return _health(self._health(), verbose="verbose" in query.split("&"), ready=path == "/readyz")
        return Page(404, _TEXT, b"/metrics, /healthz, /healthz?verbose or /readyz\n")

    def _metrics(self, accept: str) -> Page:
        encode, kind = choose_encoder(accept)
        with self._lock:
            begun = time.monotonic()
            if begun >= self._until or kind != self._collected.kind:
                self._collected = Page(200, kind, encode(self._registry))
                now = time.monotonic()
                self._until = now + _SPARED * (now - begun)
            return self._collected


def _health(health: Health, *, verbose: bool, ready: bool) -> Page:
    problems = health.problems
    if ready:
        problems = [*problems, *health.waits_for, *([] if health.ready else ["not ready"])]
    lines = problems or ["ok"]
    if verbose:
        lines = [*lines, *health.details()]
    text = "".join(f"{line}\n" for line in lines)
    return Page(503 if problems else 200, _TEXT, text.encode(errors="replace"))


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, an IPv6 address in brackets. ValueError."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in bare and bare == host):
        raise ValueError(f"{text!r} is not HOST:PORT")
    return bare, int(port)


class _Server(ThreadingHTTPServer):
    """A thread for each connection, of which there are a few: any user of this host can open one.

    A caller that has sent its request is answered. Those that have not yet are silent, and where there are
    too many connections the oldest of the silent ones is closed: a user that opens many keeps no other from
    asking.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.BoundedSemaphore(_CONNECTIONS)
        self._silent: dict[socket.socket, None] = {}  # in the order in which they came
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def has_asked(self, connection: socket.socket) -> None:
        """The caller has sent its request."""
        with self._lock:
            self._silent.pop(connection, None)

    def process_request(self, request: _Request, client_address: object) -> None:
        if self._room.acquire(blocking=False) or self._has_evicted():
            if isinstance(request, socket.socket):
                with self._lock:
                    self._silent[request] = None
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def _has_evicted(self) -> bool:
        """Whether there is room again, since the oldest silent connection is closed."""
        with self._lock:
            oldest = next(iter(self._silent), None)
            if oldest is not None:
                del self._silent[oldest]
        if oldest is None:
            return False
        try:
            oldest.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has gone by itself
        return self._room.acquire(timeout=_EVICTION)

    def process_request_thread(self, request: _Request, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            if isinstance(request, socket.socket):
                self.has_asked(request)
            self._room.release()

    def handle_error(self, request: _Request, client_address: object) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            log.debug("http: a caller hung up", error=str(error))
        else:
            log.crash("internal error", request="http")

    # Python's own would ask a name server for the name of this host.
    def server_bind(self) -> None:
        # Connections of a process that was killed keep the port for a minute.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT
    server_version = f"cnvnet/{VERSION}"
    sys_version = ""

    def answer(self, answer: Page) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, format: str, *args: object) -> None:
        log.debug("http", line=format % args)
