"""A Kubernetes API server in memory, behind real HTTP, so that tests use the client that ships.

```python
with running_api_server() as server:
    client = server.client()
    client.create(VM_LEASES, {"metadata": {"name": "x"}, "spec": {}}, "default")
    assert server.count("create", "vmleases") == 1
    server.inject(refuse(429, retry_after=1), verb="patch")     # before the next patch is applied
    server.inject(drop, verb="create", after=True)              # applied, but its answer is lost
```
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from cnvnet.kube.client import Client
from cnvnet.kube.resources import Resource
from cnvnet.kube.settings import Credentials
from tests.fakes.api_objects import (
    RESOURCES,
    Document,
    Matches,
    Objects,
    Refusal,
    encoded,
    events,
    selector,
)


class Asked(NamedTuple):
    """A request as the server has understood it."""

    verb: str
    resource: Resource
    namespace: str
    name: str
    query: dict[str, str]
    token: str
    body: Document
    # The caller's address and port: those of one connection are the same.
    peer: tuple[str, int]

    @property
    def plural(self) -> str:
        return self.resource.plural

    @property
    def metadata_only(self) -> bool:
        return "as=PartialObjectMetadata" in self.query.get("accept", "")


@dataclass
class LoggedRequest:
    asked: Asked
    # 0: the caller has got no answer.
    status: int = 0


class _OtherAnswer(Exception):
    """The answer's content."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content


class _NoAnswer(Exception):
    """The connection ends without one."""


# Runs before or after a request is applied: it returns, and all goes on, or raises Refusal, or drops.
Action = Callable[["ApiServer", Asked], None]


class RetryAfter(Refusal):
    """A refusal that says when to ask again."""

    def __init__(self, status: int, reason: str, message: str, seconds: float) -> None:
        super().__init__(status, reason, message)
        self.seconds = seconds


def refuse(status: int, reason: str = "", message: str = "", *, retry_after: float | None = None) -> Action:
    """Answers so."""

    def action(_: ApiServer, asked: Asked) -> None:
        text = message or f"{asked.verb} {asked.plural}: as the test wants it"
        if retry_after is None:
            raise Refusal(status, reason, text)
        raise RetryAfter(status, reason, text, retry_after)

    return action


def answer(content: bytes) -> Action:
    """Answers something else."""

    def action(_: ApiServer, __: Asked) -> None:
        raise _OtherAnswer(content)

    return action


def drop(_: ApiServer, __: Asked) -> None:
    """Closes the connection without an answer."""
    raise _NoAnswer


def black_hole(server: ApiServer, _: Asked) -> None:
    """Says nothing, until the server ends."""
    server.ended.wait()
    raise _NoAnswer


def delay(seconds: float) -> Action:
    """Goes on after so long."""
    return lambda server, _: void(server.ended.wait(seconds))


def until_asked(verb: str, plural: str, times: int = 1) -> Action:
    """Goes on when that was asked for so often."""

    def action(server: ApiServer, _: Asked) -> None:
        end = time.monotonic() + 60
        while server.count(verb, plural) < times:
            assert time.monotonic() < end, f"{verb} {plural}: not asked for {times} times"
            time.sleep(0.001)

    return action


def void(_: object) -> None:
    """A value is not needed."""


@dataclass
class _Fault:
    action: Action
    verb: str
    plural: str
    after: bool
    # Requests that it lets pass before.
    skip: int


class ApiServer:
    """`objects` is what it keeps, `requests` what it was asked; tests may change both."""

    def __init__(self, tls: tuple[str, str] | None = None, clients: str = "") -> None:
        self.objects = Objects()
        self.requests: list[LoggedRequest] = []
        # Kinds whose definition is not installed.
        self.undefined: set[Resource] = set()
        # The tokens that are known; None: all, and none is needed.
        self.tokens: set[str] | None = None
        # Connections that were accepted.
        self.connections = 0
        # Whether watches are sent anything.
        self.is_silent = False
        self.ended = threading.Event()
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._tls = tls
        self._clients = clients
        self._port = 0
        self._http: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def credentials(self, **fields: Any) -> Credentials:
        """Those of a client; `fields` are fields of Credentials."""
        made = Credentials(self.url, "the test", lambda: made, **fields)
        return made

    def client(self) -> Client:
        return Client(self.credentials())

    def inject(
        self,
        action: Action,
        *,
        verb: str = "",
        plural: str = "",
        after: bool = False,
        skip: int = 0,
        times: int = 1,
    ) -> None:
        """Lets it happen to the next requests of that verb and plural; "" stands for all."""
        with self._lock:
            self._faults += [_Fault(action, verb, plural, after, skip) for _ in range(times)]

    def clear_faults(self) -> None:
        with self._lock:
            self._faults.clear()

    def documents(self, resource: Resource) -> list[Document]:
        """All objects of a kind."""
        with self.objects.changed:
            return list(self.objects.matching(resource, "", lambda _: True))

    def count(self, verb: str = "", plural: str = "") -> int:
        """How often it was asked; "" stands for all."""
        with self._lock:
            return sum(
                verb in ("", each.asked.verb) and plural in ("", each.asked.plural) for each in self.requests
            )

    def start(self) -> None:
        """Also after `stop`: at the same port."""
        self.ended.clear()
        self._http = _Server(self, self._port)
        self._port = self._http.server_address[1]
        # Tests start and stop many.
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """As if it were killed: connections are refused, and those that are open break off."""
        if self._http is None or self._thread is None:
            return
        self.ended.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self.hang_up()
        self._http = None

    def hang_up(self) -> None:
        """Breaks all connections off."""
        with self.objects.changed:
            self.objects.changed.notify_all()
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def present(self, certificate: str, key: str) -> None:
        """Connections that are made from now on are shown this certificate."""
        self._tls = certificate, key

    def accepted(self, connection: socket.socket) -> socket.socket:
        self.connections += 1
        if self._tls is None:
            return connection
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._tls)
        if self._clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._clients)
        # Not here, where other connections wait.
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def logged(self, asked: Asked) -> LoggedRequest:
        request = LoggedRequest(asked)
        with self._lock:
            self.requests.append(request)
        return request

    def apply(self, asked: Asked) -> tuple[int, Document]:
        """The answer's status and document. Refusal."""
        self._act(asked, after=False)
        if self.tokens is not None and asked.token not in self.tokens:
            raise Refusal(401, "Unauthorized", "Unauthorized")
        if asked.verb == "watch":
            return 200, {}
        done = self._apply(asked)
        self._act(asked, after=True)
        return done

    def _act(self, asked: Asked, *, after: bool) -> None:
        with self._lock:
            fault = self._due(asked, after)
        if fault is not None:
            fault.action(self, asked)

    def _due(self, asked: Asked, after: bool) -> _Fault | None:
        for each in self._faults:
            if each.after == after and each.verb in ("", asked.verb) and each.plural in ("", asked.plural):
                if not each.skip:
                    self._faults = [other for other in self._faults if other is not each]
                    return each
                each.skip -= 1
        return None

    def _apply(self, asked: Asked) -> tuple[int, Document]:
        where = asked.resource, asked.namespace
        if asked.verb == "get":
            return 200, self.objects.get(*where, asked.name)
        if asked.verb == "list":
            return 200, self._list(asked)
        if asked.verb == "create":
            return 201, self.objects.create(*where, asked.body)
        if asked.verb == "patch":
            return 200, self.objects.patch(*where, asked.name, asked.body)
        return 200, self.objects.delete(*where, asked.name, asked.body)

    def _list(self, asked: Asked) -> Document:
        query = asked.query
        with self.objects.changed:
            if "continue" in query:
                found, version = self.objects.continued(query["continue"])
            else:
                found = self.objects.matching(asked.resource, asked.namespace, matcher(asked))
                version = self.objects.version
            # From its cache the server sends everything at once.
            limit = 0 if query.get("resourceVersion") == "0" else int(query.get("limit", "0"))
            items, following, left = self.objects.page(found, version, limit)
        metadata: Document = {"resourceVersion": str(version)}
        if following:
            metadata |= {"continue": following, "remainingItemCount": left}
        kind = f"{asked.resource.kind}List"
        if asked.metadata_only:
            kind = "PartialObjectMetadataList"
            items = [metadata_of(each) for each in items]
        return {
            "kind": kind,
            "apiVersion": asked.resource.api_version,
            "metadata": metadata,
            "items": items,
        }


def metadata_of(document: Document) -> Document:
    head = {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata"}
    return {**head, "metadata": document["metadata"]}


def matcher(asked: Asked) -> Matches:
    query = asked.query
    return selector(asked.resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, api: ApiServer, port: int) -> None:
        self.api = api
        super().__init__(("127.0.0.1", port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        return self.api.accepted(connection), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hangs up, or trusts another authority, is none of the server's."""

    def server_bind(self) -> None:
        # HTTPServer's own asks for the machine's name.
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # An answer in one piece.
    wbufsize = -1

    @property
    def api(self) -> ApiServer:
        assert isinstance(self.server, _Server)
        return self.server.api

    def setup(self) -> None:
        super().setup()
        self.api.opened(self.connection)

    def finish(self) -> None:
        self.api.closed(self.connection)
        with suppress(OSError):
            super().finish()
        # A caller that has gone makes the flush fail before this is closed, and with it the connection.
        self.rfile.close()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are in the server's list."""

    def _serve(self) -> None:
        api = self.api
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        try:
            asked = self._asked(body)
        except Refusal as e:
            self._answer(e.status, e.document())
            return
        logged = api.logged(asked)
        if asked.resource in api.undefined:
            logged.status = 404
            self._send(404, b"404 page not found\n")
            return
        try:
            status, document = api.apply(asked)
        except _NoAnswer:
            self.close_connection = True
            return
        except _OtherAnswer as e:
            logged.status = 200
            self._send(200, e.content)
            return
        except Refusal as e:
            logged.status = e.status
            self._answer(e.status, e.document(), e.seconds if isinstance(e, RetryAfter) else None)
            return
        logged.status = status
        if asked.verb == "watch":
            self._watch(asked)
        else:
            self._answer(status, document)

    def _asked(self, body: bytes) -> Asked:
        url = urlsplit(self.path)
        parts = [unquote(each) for each in url.path.strip("/").split("/")]
        query = dict(parse_qsl(url.query)) | {"accept": self.headers.get("Accept", "")}
        group, rest = (
            ("", parts[1:]) if parts[0] == "api" else (parts[1] if len(parts) > 1 else "", parts[2:])
        )
        version, rest = (rest[0], rest[1:]) if rest else ("", [])
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        resource = next(
            (
                each
                for each in RESOURCES
                if rest and (each.group, each.version, each.plural) == (group, version, rest[0])
            ),
            None,
        )
        name = rest[1] if len(rest) > 1 else ""
        if resource is None or (resource.namespaced and not namespace and (name or self.command == "POST")):
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(
            self.command, "get" if name else "watch" if query.get("watch") == "true" else "list"
        )
        expected = "application/merge-patch+json" if verb == "patch" else "application/json"
        if body and self.headers.get("Content-Type") != expected:
            raise Refusal(415, "UnsupportedMediaType", f"expected {expected}")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return Asked(
            verb, resource, namespace, name, query, token, json.loads(body or b"{}"), self.client_address
        )

    def _answer(self, status: int, document: Document, retry_after: float | None = None) -> None:
        self._send(status, encoded(document), retry_after)

    def _send(self, status: int, content: bytes, retry_after: float | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if retry_after is not None:
            self.send_header("Retry-After", f"{retry_after:g}")
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _watch(self, asked: Asked) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        try:
            self._follow(asked)
        except Refusal as e:
            self._event("ERROR", e.document())
        except _NoAnswer:
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _follow(self, asked: Asked) -> None:
        api, matches = self.api, matcher(asked)
        objects = api.objects
        end = time.monotonic() + float(asked.query.get("timeoutSeconds", "300"))
        since = int(asked.query.get("resourceVersion") or "0")
        if not since:
            with objects.changed:
                since = objects.version
                there = objects.matching(asked.resource, asked.namespace, matches)
            for each in there:
                self._event("ADDED", metadata_of(each) if asked.metadata_only else each)
        while time.monotonic() < end:
            if api.ended.is_set():
                raise _NoAnswer
            with objects.changed:
                changes = objects.changes(asked.resource, since)
                if not changes:
                    objects.changed.wait(max(end - time.monotonic(), 0))
                    continue
            for change in changes:
                since = change.version
                for kind, document in events(change, asked.namespace, matches):
                    self._event(kind, metadata_of(document) if asked.metadata_only else document)
        if asked.query.get("allowWatchBookmarks") == "true":
            # Of the version up to which everything has been sent.
            bookmark = {"metadata": {"resourceVersion": str(objects.version)}}
            head = {"kind": asked.resource.kind, "apiVersion": asked.resource.api_version}
            self._event("BOOKMARK", head | bookmark)

    def _event(self, kind: str, document: Document) -> None:
        if self.api.is_silent:
            return
        line = encoded({"type": kind, "object": document}) + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()


@contextmanager
def running_api_server(tls: tuple[str, str] | None = None, clients: str = "") -> Generator[ApiServer]:
    """One that ends with the block. `tls`: a certificate and its key. `clients`: who certifies clients."""
    server = ApiServer(tls, clients)
    server.start()
    try:
        yield server
    finally:
        server.stop()
