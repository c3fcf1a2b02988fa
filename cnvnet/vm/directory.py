"""Which VM a pod runs, by the Kubernetes API: the pod by name and UID, and its VirtualMachineInstance."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from cnvnet.call_context import log, started
from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import INVALID_ENVIRONMENT, TRY_AGAIN_LATER, CNIError
from cnvnet.kube.api import Api, Document, NotFound, Observe, deadline
from cnvnet.kube.resources import INSTANCES, PODS
from cnvnet.vm import launcher, names, requests
from cnvnet.vm.launcher import Owner, Subject

# For both requests of a call together, in seconds.
_DEADLINE: Final = 10.0
# How long the plugins of one sandbox share what was read, in seconds: a runtime calls them one after the
# other, and a sandbox that it makes anew has another id.
_SHARED: Final = 10.0
# Sandboxes: more than a node starts within that time. Beyond it the oldest are read again.
_MOST: Final = 256


class _Documents(NamedTuple):
    pod: Document
    # None for a pod that is no VM's.
    vmi: Document | None
    # On `time.monotonic`'s clock.
    until: float


class Directory:
    """Asks one API. Several threads use one."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self.api = api
        self._clock = clock
        self._lock = threading.Lock()
        # By pod and sandbox, in the order in which they were read.
        self._recent: dict[tuple[PodRef, str], _Documents] = {}

    def subject(
        self, pod: PodRef, ifname: str, *, container_id: str = "", network: str = ""
    ) -> Subject | None:
        """The VM's interface that this one of the pod is, None for a pod that is no VM's.

        Calls of one sandbox, which `container_id` names, share what was read within a few seconds. `network`
        is the caller's name for the interface's network, if it has one. Raises CNIError: 4 for a pod without
        a name, 11 for one that the API does not know or has another UID for, and what the API says.
        """
        known = self._known((pod, container_id))
        if known is not None:
            subject = launcher.subject(known.pod, known.vmi, ifname, network)
            if known.vmi is None or (subject is not None and subject.network):
                return subject
            # Plugged in since: it is not in what was read.
        fresh = self._read(pod)
        self._keep((pod, container_id), fresh)
        return launcher.subject(fresh.pod, fresh.vmi, ifname, network)

    def node(self, pod: PodRef, *, container_id: str = "") -> str:
        """The name of the pod's node. Shares what was read with `subject`, and raises what that raises."""
        documents = self._known((pod, container_id))
        if documents is None:
            documents = self._read(pod)
            self._keep((pod, container_id), documents)
        return launcher.node(documents.pod)

    def _read(self, pod: PodRef) -> _Documents:
        if not (pod.namespace and pod.name):
            raise CNIError(INVALID_ENVIRONMENT, "CNI_ARGS K8S_POD_NAMESPACE and K8S_POD_NAME: required")
        with deadline(_DEADLINE):
            # An instance cannot be newer than its pod, so it may be asked for beside it.
            guess = names.likely_instance(pod.name)
            ahead = started(partial(self.api.get, INSTANCES, guess, pod.namespace)) if guess else None
            document = self._pod(pod)
            owner = launcher.owner(document)
            get = ahead if owner is not None and owner.name == guess else None
            vmi = self._instance(pod, owner, get) if owner is not None else None
        for remark in requests.remarks(document, is_vm=vmi is not None):
            log(f"pod {pod}: {remark}")
        return _Documents(document, vmi, self._clock() + _SHARED)

    def _pod(self, pod: PodRef) -> Document:
        try:
            document = self.api.get(PODS, pod.name, pod.namespace)
        except NotFound as e:
            text = f"pod {pod} with the UID {pod.uid or '(not given)'} is not in the Kubernetes API"
            raise CNIError(TRY_AGAIN_LATER, text, e.msg) from e
        uid = document["metadata"]["uid"]
        if pod.uid not in ("", uid) and not launcher.is_mirror(document):
            raise CNIError(
                TRY_AGAIN_LATER,
                f"pod {pod} has the UID {uid} in the Kubernetes API, and the runtime asks for the one with "
                f"the UID {pod.uid}, which is gone",
            )
        return document

    def _instance(self, pod: PodRef, owner: Owner, get: Callable[[], Document] | None) -> Document:
        """The pod's instance; `get` has begun to read it."""
        try:
            return get() if get is not None else self.api.get(INSTANCES, owner.name, pod.namespace)
        except NotFound as e:
            text = f"pod {pod}: its VirtualMachineInstance {owner.name} with the UID {owner.uid} is gone"
            raise CNIError(TRY_AGAIN_LATER, text, e.msg) from e

    def _known(self, key: tuple[PodRef, str]) -> _Documents | None:
        with self._lock:
            documents = self._recent.get(key)
        return documents if documents is not None and key[1] and documents.until > self._clock() else None

    def _keep(self, key: tuple[PodRef, str], documents: _Documents) -> None:
        if not key[1]:
            return
        now = self._clock()
        with self._lock:
            self._recent.pop(key, None)
            stale = [each for each, read in self._recent.items() if read.until <= now]
            oldest = list(self._recent)[: max(0, len(self._recent) - len(stale) - _MOST + 1)]
            for each in (*stale, *oldest):
                self._recent.pop(each, None)
            self._recent[key] = documents


def open_directory(
    env: Mapping[str, str], observe: Observe | None = None, *, resident: bool = True
) -> Directory | None:
    """The directory of the API that this environment has credentials for, None without any. CNIError.

    `observe` is called for each request. `resident` as in `cnvnet.kube.credentials.find`.
    """
    from cnvnet.kube import credentials

    access = credentials.find(env, resident=resident)
    if access is None:
        return None
    from cnvnet.kube.client import Client

    return Directory(Client(access, observe))
