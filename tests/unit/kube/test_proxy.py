"""The proxy before the server: NO_PROXY as Go reads it, and the way through."""

from __future__ import annotations

import base64
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnvnet.cni.errors import InvalidConfig
from cnvnet.kube.api import ApiError
from cnvnet.kube.client import Client
from cnvnet.kube.proxy import environment_proxy, is_excluded
from cnvnet.kube.resources import NODES
from cnvnet.kube.settings import Credentials, Secret, Tls
from tests.fakes.api_server import running_api_server
from tests.fakes.certificates import Authority


@pytest.mark.parametrize(
    ("server", "no_proxy", "excluded"),
    [
        ("https://10.0.0.1:6443", "", False),
        ("https://10.0.0.1:6443", "*", True),
        ("https://10.0.0.1:6443", "10.0.0.1", True),
        ("https://10.0.0.1:6443", "10.0.0.2, 10.0.0.0/24", True),
        ("https://10.0.0.1:6443", "10.0.1.0/24", False),
        ("https://10.0.0.1:6443", "10.0.0.1:6443", True),
        ("https://10.0.0.1:6443", "10.0.0.1:443", False),
        ("https://10.0.0.1", "10.0.0.1:443", True),
        ("https://10.0.0.1:6443", "10.0.0.0/99,nonsense/", False),
        ("https://[fd00::1]:6443", "fd00::1", True),
        ("https://[fd00::1]:6443", "[fd00::1]:6443", True),
        ("https://[fd00::1]:6443", "fd00::/8", True),
        ("https://127.0.0.1:6443", "", True),
        ("https://[::1]:6443", "", True),
        ("https://localhost:6443", "", True),
        ("https://api.example.org", "example.org", True),
        ("https://API.example.org", "EXAMPLE.org", True),
        ("https://example.org", "example.org", True),
        ("https://example.org", ".example.org", False),
        ("https://api.example.org", ".example.org", True),
        ("https://api.example.org", "*.example.org", True),
        ("https://anexample.org", "example.org", False),
        ("https://api.example.org", "example.org:443", True),
    ],
)
def test_a_server_is_excluded_by(server: str, no_proxy: str, excluded: bool) -> None:
    assert is_excluded(server, no_proxy) == excluded


def test_variables_in_small_letters_count_too() -> None:
    assert environment_proxy("https://h", {"https_proxy": "http://p"}) == "http://p"
    assert environment_proxy("https://h", {"https_proxy": "http://p", "no_proxy": "h"}) == ""
    assert environment_proxy("https://h", {"http_proxy": "http://p", "ALL_PROXY": "http://p"}) == ""


@pytest.mark.parametrize("proxy", ["socks5://u:hush@p", "http://", "http://u:hush@p:99999", "://hush"])
def test_what_is_no_proxy_is_refused_and_not_shown(proxy: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        environment_proxy("https://h", {"HTTPS_PROXY": proxy})
    assert str(caught.value) == "HTTPS_PROXY: expected http://HOST:PORT or https://HOST:PORT"


class _Proxy(socketserver.StreamRequestHandler):
    """Connects, and keeps what it was asked in the server's `asked`."""

    def handle(self) -> None:
        lines = [self.rfile.readline().decode().strip()]
        while lines[-1]:
            lines.append(self.rfile.readline().decode().strip())
        assert isinstance(self.server, _ProxyServer)
        self.server.asked.append(lines)
        host, port = lines[0].split()[1].rsplit(":", 1)
        with socket.create_connection((host, int(port))) as there:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            both = [self.connection, there]
            while True:
                for source in select.select(both, [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    both[source is self.connection].sendall(data)


class _ProxyServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        super().__init__(("127.0.0.1", 0), _Proxy)


@pytest.fixture
def proxy() -> Iterator[_ProxyServer]:
    with _ProxyServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_server_is_asked_through_the_proxy_under_its_own_certificate(
    proxy: _ProxyServer, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "authority")
    with running_api_server(authority.issue("server")) as server:
        url = f"http://user:p%40ss@127.0.0.1:{proxy.server_address[1]}"
        client = Client(server.credentials(tls=Tls(Secret(authority.certificate)), proxy=url))
        client.list(NODES)
        client.list(NODES)
        client.close()
    ((first, *headers),) = proxy.asked
    assert first.startswith(f"CONNECT {server.url.removeprefix('https://')} HTTP/1.")
    login = base64.b64encode(b"user:p@ss").decode()
    assert f"Proxy-Authorization: Basic {login}".lower() in [each.lower() for each in headers]


def test_a_proxy_that_is_not_there_is_named_without_its_password() -> None:
    credentials = Credentials(
        "https://10.0.0.1", "k", lambda: credentials, proxy="http://u:hush@127.0.0.1:1"
    )
    with pytest.raises(ApiError) as caught:
        Client(credentials).list(NODES)
    assert str(caught.value) == "Kubernetes API https://10.0.0.1: list nodes: proxy: connection refused"
