"""The Kubernetes API as the tests use it: one request and its answer at a time, from any namespace."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from http.client import HTTPSConnection
from typing import Any

from cnvnet.kernel import netns

TOKEN = "admin-of-the-test-bed"
PATCH = "application/merge-patch+json"


class ApiError(Exception):
    """The server's answer was not a success; `code` is the HTTP status, `reason` and `message` its words."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        status: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
        self.reason: str = status.get("reason", "")
        self.message: str = status.get("message", text)


class Api:
    """A server at `host`:`port` of the network namespace `namespace`, as the token's owner sees it."""

    def __init__(self, namespace: str, host: str, port: int, token: str = TOKEN) -> None:
        self._namespace = namespace
        self._host = host
        self._port = port
        self.token = token
        # The server's certificate is its own, made when it started.
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE

    def of(self, token: str) -> Api:
        """The same server for the owner of another token."""
        return Api(self._namespace, self._host, self._port, token)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Raises ApiError, or OSError when there is no connection."""
        connection = HTTPSConnection(self._host, self._port, timeout=60, context=self._tls)
        headers = {
            "Authorization": f"Bearer {self.token}",
            "Content-Type": PATCH if method == "PATCH" else "application/json",
        }
        try:
            with netns.opened(self._namespace) as node_netns, netns.entered(node_netns):
                connection.connect()
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status >= 300:
            raise ApiError(answer.status, text)
        return json.loads(text) if text.startswith("{") else text

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def find(self, path: str) -> Any | None:
        """The object, or None if there is none."""
        try:
            return self.get(path)
        except ApiError as e:
            if e.code == 404:
                return None
            raise

    def create(self, path: str, body: Mapping[str, Any]) -> Any:
        return self.call("POST", path, body)

    def replace(self, path: str, body: Mapping[str, Any]) -> Any:
        return self.call("PUT", path, body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """A merge patch."""
        return self.call("PATCH", path, body)

    def delete(self, path: str, **options: Any) -> Any:
        return self.call("DELETE", path, options)

    def is_ready(self) -> bool:
        try:
            return bool(self.get("/readyz") == "ok")
        except (OSError, ApiError):
            return False
