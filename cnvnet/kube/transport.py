"""Requests on their way to an API server and back, whatever happens on it.

All that can go wrong without being the server's answer is handled here and nowhere else: broken connections,
lost answers, a server that is busy or away, tokens and certificates that were replaced. A deadline covers a
request with its retries (`cnvnet.kube.api.deadline`), but for a look-up of the server's name, if it has one:
that takes as long as the resolver's own limits allow.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, InsecureRequestWarning

from cnvnet import call_context
from cnvnet.cni.errors import CNIError
from cnvnet.kube import bound_token, credential_plugin, tls
from cnvnet.kube.api import ApiError, FinishedRequest, Observe, request_end, unanswered
from cnvnet.kube.credential_plugin import PluginFailed, Printed
from cnvnet.kube.failures import Broken, Refused, failure
from cnvnet.kube.settings import Credentials
from cnvnet.kube.tls import UnusableTls

# Idle connections that are kept for the next requests. The server closes one after 90 s.
_IDLE_CONNECTIONS: Final = 8
# Seconds until a connection on which nothing comes is probed, between probes, and how many get no answer: a
# server that vanished without a word is noticed after 50 s, also by a watch.
PROBE_AFTER: Final = 20
PROBE_EVERY: Final = 10
PROBES: Final = 3
# Bytes that are read at once.
_CHUNK: Final = 1 << 16
# Seconds for which a refused connection counts for later requests, too.
_REFUSED_FOR: Final = 1.0
# The first attempt's share of the time that is left, and its seconds at least, if the deadline allows: a
# request takes milliseconds.
_FIRST_SHARE: Final = 0.5
_SHORTEST_ATTEMPT: Final = 2.0
# Seconds before a request is repeated because the server said so, at least.
_SHORTEST_PAUSE: Final = 0.05


class ApiRequest(NamedTuple):
    """One request."""

    # As FinishedRequest has them.
    verb: str
    resource: str
    # The object, in a message: ` default/x`.
    which: str
    method: str
    # With the query.
    path: str
    headers: Mapping[str, str]
    body: bytes | None = None
    # Bytes of the answer.
    longest: int = 16 << 20

    @property
    def asked(self) -> str:
        """What it is for people: `get vmleases default/x`."""
        return f"{self.verb} {self.resource}{self.which}"


class ApiAnswer(NamedTuple):
    """An answer of any status."""

    status: int
    body: bytes
    retry_after: str = ""
    # Where the body is still to come.
    stream: urllib3.BaseHTTPResponse | None = None


class _Session(NamedTuple):
    """Credentials, and the connections that were made with them."""

    credentials: Credentials
    printed: Printed | None
    pool: urllib3.HTTPConnectionPool
    # Before the path of a request.
    prefix: str


class Transport:
    """The way to one server. Several threads use it."""

    def __init__(self, credentials: Credentials, observe: Observe | None = None) -> None:
        """`observe` is called for each request, repeated ones too."""
        self._credentials = credentials
        self._observe = observe
        self._lock = threading.Lock()
        self._session: _Session | None = None
        # Until when connections count as refused, in time.monotonic()'s seconds, and why.
        self._refused = (0.0, "")

    @property
    def server(self) -> str:
        """Its URL. A kubeconfig that is read anew may name another one."""
        return self._credentials.server

    def send(self, request: ApiRequest, *, idle: float | None = None) -> ApiAnswer:
        """The answer, of any status. ApiError if none comes in time.

        With `idle` the body of a success is left to be read from `stream`, whose reads wait so many seconds.
        """
        end = request_end()
        is_fresh = False
        with call_context.waiting():
            while True:
                session = self._connected(request, end)
                now = time.monotonic()
                # The first attempt leaves time for one on another connection.
                share = 1.0 if is_fresh else _FIRST_SHARE
                seconds = max((end - now) * share, _SHORTEST_ATTEMPT)
                until = min(now + seconds, end)
                try:
                    response = self._observed(request, session, until, idle)
                except Refused as e:
                    self._refused = (time.monotonic() + _REFUSED_FOR, str(e))
                    raise unanswered(self.server, request.asked, str(e)) from e
                except Broken as e:
                    # Other idle connections lead to the same end.
                    self._renew(session, session.printed, end)
                    if is_fresh or time.monotonic() >= end:
                        raise unanswered(self.server, request.asked, str(e)) from e
                    is_fresh = True
                    continue
                if response.status == 401 and not is_fresh:
                    self._renew(session, None, end)
                    is_fresh = True
                    continue
                pause = _pause(response)
                if pause is None or time.monotonic() + pause >= end:
                    return response
                time.sleep(pause)

    def credentials(self) -> str:
        """Those that requests are sent with, for messages, and why a server may refuse them."""
        used = self._credentials
        where = f"token {used.token.path}" if used.token.path else used.source
        try:
            claims = bound_token.claims(used.token.read())
        except OSError:
            claims = None
        ended = claims.ended(time.time()) if claims is not None else ""
        if not ended:
            return where
        # In a kubeconfig itself such a token is an agent's.
        remedy = "" if used.token.path else "; the node's next agent writes the file anew"
        return f"{where}: {ended}{remedy}"

    def close(self) -> None:
        """Closes idle connections. Requests may follow, and open others."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.pool.close()

    def _connected(self, request: ApiRequest, end: float) -> _Session:
        """What a request uses now."""
        now = time.monotonic()
        refused_until, why = self._refused
        if now < refused_until:
            raise unanswered(self.server, request.asked, f"{why} (less than a second ago)")
        if now >= end or not self._lock.acquire(timeout=end - now):
            raise unanswered(self.server, request.asked, "no time was left to ask it")
        try:
            session = self._session
            printed = session.printed if session else None
            expires = printed.expires if printed else None
            if session is None or (expires is not None and expires <= time.time()):
                session = self._session = _session(self._credentials, None, end - now)
            return session
        except (UnusableTls, PluginFailed) as e:
            self._note(request, now, why=str(e))
            raise unanswered(self.server, request.asked, str(e)) from e
        finally:
            self._lock.release()

    def _renew(self, session: _Session, printed: Printed | None, end: float) -> None:
        """The next request uses fresh connections, and credentials as they are now."""
        # Another thread may wait for a credential plugin.
        if not self._lock.acquire(timeout=max(end - time.monotonic(), 0.0)):
            return
        try:
            if self._session is not session:
                return  # another thread was faster
            try:
                self._credentials = session.credentials.reread()
            except CNIError as e:
                call_context.log(f"Kubernetes API {self.server}: credentials stay as they were: {e}")
            # Connections that are in use stay open until they are given back.
            self._session = None
            if printed is not None:
                try:
                    self._session = _session(self._credentials, printed, 0.0)
                except UnusableTls:
                    pass  # the next request says it
        finally:
            self._lock.release()

    def _observed(
        self, request: ApiRequest, session: _Session, until: float, idle: float | None
    ) -> ApiAnswer:
        begun = time.monotonic()
        try:
            answer = self._exchange(request, session, until, idle)
        except (Refused, Broken, ApiError) as e:
            self._note(request, begun, why=str(e))
            raise
        self._note(request, begun, answer.status)
        return answer

    def _note(self, request: ApiRequest, begun: float, status: int = 0, why: str = "") -> None:
        if self._observe is not None:
            seconds = time.monotonic() - begun
            self._observe(FinishedRequest(request.verb, request.resource, status, seconds, why))

    def _exchange(
        self, request: ApiRequest, session: _Session, until: float, idle: float | None
    ) -> ApiAnswer:
        seconds = until - time.monotonic()
        headers = {**request.headers, **self._authorization(request, session)}
        try:
            answer = session.pool.urlopen(
                request.method,
                session.prefix + request.path,
                request.body,
                headers,
                # A redirect would take the token to another server.
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(total=max(seconds, 0.001)),
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError) as e:
            raise failure(e) from e
        if idle is not None and answer.status == 200:
            _limit(answer, idle)
            return ApiAnswer(answer.status, b"", stream=answer)
        body = self._body(request, answer, until)
        return ApiAnswer(answer.status, body, answer.headers.get("Retry-After", ""))

    def _body(self, request: ApiRequest, answer: urllib3.BaseHTTPResponse, until: float) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            while part := answer.read(_CHUNK):
                parts.append(part)
                size += len(part)
                if size > request.longest:
                    why = f"an answer of more than {request.longest >> 20} MiB"
                    raise unanswered(self.server, request.asked, why)
                _limit(answer, until - time.monotonic())
        except (HTTPError, OSError) as e:
            answer.close()
            raise failure(e) from e
        except ApiError:
            answer.close()
            raise
        return b"".join(parts)

    def _authorization(self, request: ApiRequest, session: _Session) -> dict[str, str]:
        secret = session.printed.token if session.printed else session.credentials.token
        if not secret:
            return {}
        try:
            token = secret.read().decode("ascii").strip()
        except OSError as e:
            why = f"token {secret.path}: {(e.strerror or str(e)).lower()}"
            raise unanswered(self.server, request.asked, why) from e
        except ValueError:
            token = ""
        # The HTTP library would repeat what it cannot send in its error.
        if not token.isprintable() or not token or " " in token:
            why = f"token {secret.path or f'of {session.credentials.source}'}: not a token"
            raise unanswered(self.server, request.asked, why)
        return {"Authorization": f"Bearer {token}"}


def _session(credentials: Credentials, printed: Printed | None, seconds: float) -> _Session:
    """Connections for these credentials. UnusableTls, PluginFailed."""
    if credentials.plugin is not None and printed is None:
        printed = credential_plugin.run(credentials.plugin, seconds)
    url = urlsplit(credentials.server)
    host = url.hostname or ""
    options: dict[str, Any] = {"maxsize": _IDLE_CONNECTIONS, "socket_options": _socket_options()}
    if url.scheme == "http":
        return _Session(
            credentials, printed, urllib3.HTTPConnectionPool(host, url.port, **options), url.path
        )
    settings = credentials.tls
    if printed is not None and printed.certificate:
        settings = settings._replace(certificate=printed.certificate, key=printed.key)
    if not settings.verify:
        urllib3.disable_warnings(InsecureRequestWarning)  # the kubeconfig's reader has warned
    options["ssl_context"] = tls.context(settings)
    if settings.server_name:
        options["server_hostname"] = settings.server_name
    if not credentials.proxy:
        pool = urllib3.HTTPSConnectionPool(host, url.port, **options)
        return _Session(credentials, printed, pool, url.path)
    proxy = urlsplit(credentials.proxy)
    headers = None
    if proxy.username is not None:
        login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=login)
    manager = urllib3.ProxyManager(credentials.proxy, proxy_headers=headers, **options)
    return _Session(credentials, printed, manager.connection_from_host(host, url.port, "https"), url.path)


def _socket_options() -> list[tuple[int, int, int]]:
    return [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES),
    ]


def _limit(answer: urllib3.BaseHTTPResponse, seconds: float) -> None:
    """Reads of an answer wait so long and no longer."""
    sock = getattr(answer.connection, "sock", None)
    # None: all of the answer has come already, or the server closes the connection behind it.
    if isinstance(sock, socket.socket):
        sock.settimeout(max(seconds, 0.001))


def _pause(response: ApiAnswer) -> float | None:
    """Seconds after which the server wants to be asked again; None: this is the answer.

    As all clients of Kubernetes: 429 and 5xx, if the server says when.
    """
    if response.status != 429 and response.status < 500:
        return None
    seconds = response.retry_after
    return max(int(seconds), _SHORTEST_PAUSE) if seconds.isdecimal() else None
