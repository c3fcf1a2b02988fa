"""What the agent counts, for Prometheus, and whether it is well, for whoever restarts it: over HTTP."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cnvnet import VERSION
from cnvnet.agent import log
from cnvnet.agent.guests import Guests
from cnvnet.agent.loop_process import PacketLoop

# Of a scraper that is slow. Seconds.
_TIMEOUT: Final = 10.0
# At a time; a scraper has one.
_CONNECTIONS: Final = 32
# Of a call: from a DEL of nothing to an address manager that hangs.
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 20, 100)


_Request = socket.socket | tuple[bytes, socket.socket]  # as socketserver has it


class Metrics:
    """All counters, in a registry of their own."""

    def __init__(self, guests: Guests, loop: PacketLoop) -> None:
        # When a counter began is when the process did.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "cnvnet_agent_requests",
            "Requests on the agent's socket, by kind and by the error's code (0: none).",
            ["kind", "code"],
            registry=self.registry,
        )
        self._calls = Counter(
            "cnvnet_calls",
            "CNI calls that were run, by plugin, command and the error's code (0: none).",
            ["plugin", "command", "code"],
            registry=self.registry,
        )
        self._call_seconds = Histogram(
            "cnvnet_call_seconds",
            "How long a CNI call ran, without what it had waited for its turn.",
            ["plugin", "command"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._restorations = Counter(
            "cnvnet_nft_restorations",
            "How often something was missing in a table of nftables and was put back.",
            ["table"],
            registry=self.registry,
        )
        self._newer = Gauge(
            "cnvnet_nft_newer",
            "1 for a table of a newer program, which is left as it is.",
            ["table"],
            registry=self.registry,
        )
        self.registry.register(_Guests(guests, loop))
        ProcessCollector(registry=self.registry)

    def observe(self, kind: str, code: int) -> None:
        """One request was answered."""
        self._requests.labels(kind, str(code)).inc()

    def observe_call(self, plugin: str, command: str, code: int, seconds: float) -> None:
        """One CNI call has been run."""
        self._calls.labels(plugin, command, str(code)).inc()
        self._call_seconds.labels(plugin, command).observe(seconds)

    def observe_table(self, table: str, *, restored: bool, newer: bool) -> None:
        """Somebody has looked at a table of ours."""
        self._restorations.labels(table).inc(restored)
        self._newer.labels(table).set(newer)


class _Guests(Collector):
    """Read when somebody asks: the packet loop has the numbers."""

    def __init__(self, guests: Guests, loop: PacketLoop) -> None:
        self._guests = guests
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        totals = self._loop.totals()
        events = CounterMetricFamily(
            "cnvnet_guest_events", "What frames of guests have led to.", labels=["service", "event"]
        )
        for (service, event), number in sorted(totals.events.items()):
            events.add_metric([service, event], number)
        yield events
        guests = GaugeMetricFamily(
            "cnvnet_guests",
            "Guests that are served, or should be and cannot be (waiting).",
            labels=["state"],
        )
        guests.add_metric(["served"], self._guests.served())
        guests.add_metric(["waiting"], self._guests.waiting())
        yield guests
        yield CounterMetricFamily(
            "cnvnet_guest_frames_dropped", "Frames the kernel had no room for.", totals.dropped
        )
        yield CounterMetricFamily(
            "cnvnet_guest_throttled", "How often a guest sent more than its share.", totals.throttled
        )
        yield CounterMetricFamily(
            "cnvnet_packet_loop_restarts", "How often the packet loop had died.", max(self._loop.restarts, 0)
        )
        yield InfoMetricFamily("cnvnet_agent_build", "Which agent this is.", {"version": VERSION})

    def describe(self) -> Iterator[Metric]:
        # Without it the registry would collect at once to learn the names.
        return iter(())


class Endpoint:
    """/metrics and /healthz on one address. `problems` are the reasons not to be well; none: all is well."""

    def __init__(self, address: str, metrics: Metrics, problems: Callable[[], list[str]]) -> None:
        """OSError, ValueError: there can be none at this HOST:PORT."""
        host, port = parse_address(address)
        registry = metrics.registry

        class Handler(_Handler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    encode, kind = choose_encoder(self.headers.get("Accept", ""))
                    self.answer(200, kind, encode(registry))
                elif path == "/healthz":
                    found = problems()
                    text = "".join(f"{problem}\n" for problem in found) or "ok\n"
                    self.answer(503 if found else 200, "text/plain; charset=utf-8", text.encode())
                else:
                    self.answer(404, "text/plain; charset=utf-8", b"/metrics or /healthz\n")

        server = _Server6 if ":" in host else _Server
        self._server = server((host, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    @property
    def address(self) -> str:
        """Where it is: the port may have been the kernel's choice (0)."""
        host, port = self._server.server_address[:2]
        text = host if isinstance(host, str) else bytes(host).decode()
        return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, an IPv6 address in brackets. ValueError."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in bare and bare == host):
        raise ValueError(f"{text!r} is not HOST:PORT")
    return bare, int(port)


class _Server(ThreadingHTTPServer):
    """A thread for each connection, of which there are a few: anybody on this host can open one."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: _Request, client_address: object) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: _Request, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: _Request, client_address: object) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            log.debug("http: a caller hung up", error=str(error))
        else:
            log.crash("internal error", request="http")

    # Python's own would ask a name server for the name of this host.
    def server_bind(self) -> None:
        # Connections of an agent that was killed keep the port for a minute.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT
    server_version = f"cnvnet-agent/{VERSION}"
    sys_version = ""

    def answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        log.debug("http", line=format % args)
