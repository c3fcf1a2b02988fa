"""The agent's way to the Kubernetes API: one for all calls, so that they share its connections."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from cnvnet.cni.errors import CNIError
from cnvnet.kube.api import Api
from cnvnet.resident import log
from cnvnet.vm.directory import Directory, open_directory


class SharedDirectory:
    """A lookup for all plugins. Credentials that come after the agent's start are found, too."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """`env` leads to the credentials, see `cnvnet.kube.credentials.find`."""
        self._env = env
        self._lock = threading.Lock()
        self._directory: Directory | None = None

    def __call__(self) -> Directory | None:
        """The directory, None as long as there are no credentials. CNIError for some that cannot be used."""
        if self._directory is None:
            with self._lock:
                if self._directory is None:
                    self._directory = open_directory(self._env)
        return self._directory

    def api(self) -> Api | None:
        """The API itself. CNIError as above."""
        directory = self()
        return directory.api if directory is not None else None

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
