"""A way to the API server on which something happens at a request: its caller is killed, or the server goes.

Clients ask it without TLS, and it hands the requests on, tokens included.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from cnvnet.kernel import netns

_CHUNK: Final = 1 << 16
# What belongs to one connection.
_HOP: Final = frozenset({"connection", "transfer-encoding", "keep-alive", "host"})
_VERBS: Final = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}


class _Trap(NamedTuple):
    action: Callable[[], None]
    after: bool
    # Requests that pass before.
    number: int


class RequestProxy:
    """Counts requests but watches and events, and does what a test asks for at one of them.

    That one is not answered: it is lost before the server has it, or (`after`) when the server has done it.
    """

    def __init__(self, server: str, within: str = "") -> None:
        """`within` is the network namespace of the callers, "" for that of the tests."""
        self._target = urlsplit(server)
        self._within = within
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE
        self._lock = threading.Lock()
        self._trap: _Trap | None = None
        self._open: set[socket.socket] = set()
        self._listener: _Listener | None = None
        self._port = 0
        # Since the last trap was set, as `create vmleases`.
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Also after `stop`: at the same port."""
        if self._within:
            with netns.opened(self._within) as there, netns.entered(there):
                self._listener = _Listener(self, self._port)
        else:
            self._listener = _Listener(self, self._port)
        self._port = self._listener.server_address[1]
        threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """As if the server were killed: connections end, and new ones are refused."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.shutdown()
        listener.server_close()
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def set_trap(self, number: int, action: Callable[[], None], *, after: bool) -> None:
        """The action is run at the request before which so many pass from now on."""
        with self._lock:
            self.seen.clear()
            self._trap = _Trap(action, after, number)

    def clear_trap(self) -> None:
        """All requests pass from now on."""
        with self._lock:
            self.seen.clear()
            self._trap = None

    # -- for the connections

    @property
    def is_away(self) -> bool:
        """Whether it is stopped."""
        return self._listener is None

    def take(self, method: str, path: str) -> _Trap | None:
        """Notes a request; the trap, if it is for this one."""
        # Neither belongs to a call.
        if "watch=true" in path or "/events" in path:
            return None
        with self._lock:
            request = described(method, path)
            if request.endswith(" events"):
                return None  # an agent writes them off the way of calls, at any time
            self.seen.append(request)
            trap = self._trap
            if trap is None or len(self.seen) != trap.number + 1:
                return None
            self._trap = None
            return trap

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the server."""
        host, port = self._target.hostname or "", self._target.port
        return http.client.HTTPSConnection(host, port, timeout=60, context=self._tls)

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)


def described(method: str, path: str) -> str:
    """A request as `get pods`."""
    url = urlsplit(path)
    parts = re.sub(r"^/(api/[^/]+|apis/[^/]+/[^/]+)/(namespaces/[^/]+/(?=.))?", "", url.path).split("/")
    return f"{_VERBS.get(method) or ('get' if len(parts) > 1 else 'list')} {parts[0]}"


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: RequestProxy, port: int) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that was killed is no error."""

    def server_bind(self) -> None:
        # HTTPServer's own asks for the machine's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    @property
    def proxy(self) -> RequestProxy:
        assert isinstance(self.server, _Listener)
        return self.server.proxy

    def setup(self) -> None:
        super().setup()
        self.proxy.opened(self.connection)
        self._upstream = self.proxy.connect()

    def finish(self) -> None:
        self.proxy.closed(self.connection)
        self._upstream.close()
        with suppress(OSError):
            super().finish()
        self.rfile.close()

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def do_PATCH(self) -> None:
        self._pass_on()

    def do_DELETE(self) -> None:
        self._pass_on()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are in the proxy's list."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        trap = self.proxy.take(self.command, self.path)
        if trap is not None and not trap.after:
            self._fall_into(trap)
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        try:
            self._upstream.request(self.command, self.path, body or None, headers)
            answer = self._upstream.getresponse()
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            return
        if trap is not None:
            answer.read()
            self._fall_into(trap)
            return
        self._answer(answer)

    def _fall_into(self, trap: _Trap) -> None:
        self.close_connection = True
        trap.action()

    def _answer(self, answer: http.client.HTTPResponse) -> None:
        # A watch, of which each event is passed on as it comes, or a long answer.
        is_stream = answer.getheader("Content-Length") is None
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if is_stream:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        if not is_stream:
            self.wfile.write(answer.read())
            self.wfile.flush()
            return
        while part := answer.read1(_CHUNK):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()


@contextmanager
def running_proxy(server: str, within: str = "") -> Generator[RequestProxy]:
    """One that ends with the block. `server` is the URL of an API server."""
    made = RequestProxy(server, within)
    made.start()
    try:
        yield made
    finally:
        made.stop()
