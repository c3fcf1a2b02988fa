"""The file with which executables of the node reach the Kubernetes API without the agent.

It has the token of the agent's pod, so it is good for as long as that pod exists, whether the agent runs or
not. Of two agents of a node, which there are for a moment when one takes over, the one that serves has the
last word.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from cnvnet.cni.errors import CNIError
from cnvnet.kernel import flock, private_folder, regular_file
from cnvnet.kube import bound_token, credentials, node_kubeconfig
from cnvnet.kube.api import Api, ApiError, NotFound, deadline
from cnvnet.kube.bound_token import TokenClaims
from cnvnet.kube.resources import DAEMON_SETS, NAMESPACES, PODS, Resource
from cnvnet.kube.settings import Credentials
from cnvnet.resident import log

# Seconds between two looks whether the kubelet has renewed the token or the authority: it does so an hour or
# more before the one before ends.
_PERIOD: Final = 10.0
# Seconds for another agent of the node that writes it now.
_PATIENCE: Final = 5.0
# Seconds for all that is asked at the end.
_END_SECONDS: Final = 3.0


class NodeKubeconfig:
    """Writes the file, keeps it true, and removes it when the agents are taken from the cluster."""

    def __init__(self, path: str, env: Mapping[str, str], period: float = _PERIOD) -> None:
        """`env` leads to the pod's files, see `cnvnet.kube.credentials.in_cluster`."""
        self._path = path
        self._env = env
        self._period = period
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-kubeconfig", daemon=True)
        # Around each change, for the file and what is remembered of it.
        self._lock = threading.Lock()
        self._is_written = False
        self._serves = False
        # Why the file is not as it should be; "": it is.
        self.problem = ""

    def start(self) -> None:
        """Write it, whatever another agent has written, and keep it true from now on."""
        self.refresh()
        self._thread.start()

    def serve(self) -> None:
        """This agent is the node's now."""
        self._serves = True
        self.refresh()

    def close(self) -> None:
        """Stop, and remove the file if the agents are being taken from the cluster."""
        self._end.set()
        with self._lock:
            if self._is_written and self._is_uninstalled():
                self._remove()

    def refresh(self) -> None:
        """Write it if it is not what it should be. `problem` says why it is not; the log does once."""
        with self._lock:
            if self._end.is_set():
                return
            try:
                self._write()
            except (OSError, ValueError, CNIError) as e:
                reason = e.msg if isinstance(e, CNIError) else getattr(e, "strerror", None) or str(e)
                reason = reason[:1].lower() + reason[1:]
                self._report(
                    f"{self._path}: {reason}: executables without the agent reach no Kubernetes API"
                )
            else:
                self._report("")

    def _run(self) -> None:
        while not self._end.wait(self._period):
            self.refresh()

    def _report(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error("no kubeconfig for the node", error=problem)
        self.problem = problem

    def _write(self) -> None:
        """Raises OSError and CNIError, with the file as it was."""
        own = self._credentials()
        wanted = node_kubeconfig.content(own)
        private_folder.ensure(os.path.dirname(self._path))
        with self._locked():
            found, is_private = self._read()
            if found == wanted and is_private:
                self._is_written = True
                return
            token = None if found is None else node_kubeconfig.token(found)
            if found is not None and token is None:
                raise OSError(errno.EEXIST, "was written by no agent and is left alone")
            if self._is_written and not self._serves and token and not self._is_own(token, own):
                return
            private_folder.put(self._path, wanted)
        self._is_written = True
        log.info("kubeconfig written for the node", path=self._path)

    def _read(self) -> tuple[bytes | None, bool]:
        """What the file has, None where there is none, and whether no one else can read it. OSError."""
        try:
            place = os.open(self._path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None, False
        try:
            status = os.fstat(place)
            return regular_file.read(place), not status.st_mode & 0o077 and status.st_uid == os.geteuid()
        finally:
            os.close(place)

    def _credentials(self) -> Credentials:
        found = credentials.in_cluster(self._env)
        if found is None:
            raise OSError(errno.ENOENT, f"no pod's token in {credentials.SERVICE_ACCOUNT}")
        return found

    def _is_own(self, token: bytes, own: Credentials) -> bool:
        """Whether it is one that this agent's pod was given, now or before."""
        mine, found = bound_token.claims(own.token.read()), bound_token.claims(token)
        return mine is not None and found is not None and mine.pod_uid == found.pod_uid

    @contextmanager
    def _locked(self) -> Generator[None]:
        """One agent at a time. The folder itself is the lock."""
        fd = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flock.acquire(fd, _PATIENCE)
            yield
        finally:
            os.close(fd)

    def _remove(self) -> None:
        try:
            own = self._credentials()
            with self._locked():
                token = node_kubeconfig.token(self._read()[0] or b"")
                # The next agent may have written its own.
                if token is not None and self._is_own(token, own):
                    os.unlink(self._path)
                    log.info("kubeconfig of the node removed", path=self._path)
        except OSError as e:
            log.warning(f"{self._path} stays: {(e.strerror or str(e)).lower()}")

    def _is_uninstalled(self) -> bool:
        """Whether this agent's pod ends because there are to be no agents any more.

        A pod that is replaced leaves the file to the next agent; until then executables say that its
        token has ended. In doubt it stays, as it does on a node whose agent is killed.
        """
        from cnvnet.kube.client import Client

        with suppress(OSError, CNIError), deadline(_END_SECONDS):
            own = self._credentials()
            pod = bound_token.claims(own.token.read())
            if pod is None or not pod.pod:
                return False
            client = Client(own)
            try:
                return _is_uninstalled(client, pod)
            finally:
                client.close()
        return False


def _is_uninstalled(api: Api, own: TokenClaims) -> bool:
    try:
        owners: list[str] = []
        with suppress(NotFound):
            metadata = api.get(PODS, own.pod, own.namespace)["metadata"]
            if metadata["uid"] == own.pod_uid and not metadata.get("deletionTimestamp"):
                # Its container alone ends, and begins anew.
                return False
            listed = metadata.get("ownerReferences", ())
            owners = [each["name"] for each in listed if each["kind"] == "DaemonSet"]
        # With the namespace's deletion begins that of its pods, with the DaemonSet's that of its own.
        return _ends(api, NAMESPACES, own.namespace) or any(
            _ends(api, DAEMON_SETS, name, own.namespace) for name in owners
        )
    except ApiError as e:
        # Its rights or its ServiceAccount went first: there is nothing that the file could be good for.
        return e.status in (401, 403)


def _ends(api: Api, resource: Resource, name: str, namespace: str = "") -> bool:
    try:
        return bool(api.get(resource, name, namespace)["metadata"].get("deletionTimestamp"))
    except NotFound:
        return True
