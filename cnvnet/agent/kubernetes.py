"""The agent's way to the Kubernetes API: one for all calls, so that they share its connections."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Final

from cnvnet.cni.errors import CNIError
from cnvnet.kube.api import Api, FinishedRequest, Observe
from cnvnet.resident import log
from cnvnet.vm.directory import Directory, open_directory

# Requests in a row that have to fail until the API counts as away: one may fail for a reason of its own.
_FAILED: Final = 2
# HTTP: credentials that are not known, and from where on an error is the server's.
_UNAUTHORIZED: Final = 401
_SERVER_ERRORS: Final = 500


class SharedDirectory:
    """A lookup for all plugins. Credentials that come after the agent's start are found, too."""

    def __init__(self, env: Mapping[str, str], observe: Observe = lambda _: None) -> None:
        """`env` leads to the credentials, see `cnvnet.kube.credentials.find`; `observe` counts requests."""
        self._env = env
        self._observe = observe
        self._lock = threading.Lock()
        self._directory: Directory | None = None
        # Requests in a row that the API has failed, and what the last one says.
        self._failed = 0
        self._why = ""

    def __call__(self) -> Directory | None:
        """The directory, None as long as there are no credentials. CNIError for some that cannot be used."""
        if self._directory is None:
            with self._lock:
                if self._directory is None:
                    self._directory = open_directory(self._env, self._finished)
        return self._directory

    def api(self) -> Api | None:
        """The API itself. CNIError as above."""
        directory = self()
        return directory.api if directory is not None else None

    def problem(self) -> str:
        """Why the API cannot be asked, by the last requests; "" if it can, or if there is none to be asked.

        Asks nothing: the agent follows the API's IPNetworks all the time, by which it notices.
        """
        try:
            api = self.api()
        except CNIError as e:
            return f"no way to the Kubernetes API: {e.msg}"
        if api is None or self._failed < _FAILED:
            return ""
        return f"the Kubernetes API at {api.server} cannot be asked: {self._why}"

    def _finished(self, request: FinishedRequest) -> None:
        self._observe(request)
        # A refusal is an answer, unless it is of the credentials.
        if request.status == 0 or request.status == _UNAUTHORIZED or request.status >= _SERVER_ERRORS:
            self._why = request.why or f"it answers {request.status}"
            self._failed += 1
        else:
            self._failed = 0

    def announce(self) -> None:
        """Logs which API the calls will ask. Imports its client, so that no call does.

        Guests are served without an API, so credentials that cannot be used do not keep the agent from
        starting: the calls that need them say so.
        """
        try:
            directory = self()
        except CNIError as e:
            log.error("no way to the Kubernetes API", error=e.msg)
            return
        if directory is not None:
            log.info("Kubernetes API", server=directory.api.server)
