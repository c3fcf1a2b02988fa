"""Events on objects, for people who describe them: written off the way of what they tell."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from queue import Full, Queue
from typing import Final

from cnvnet.cni.errors import CNIError
from cnvnet.controller.election import NAME
from cnvnet.kube.api import Api, Document, deadline
from cnvnet.kube.resources import EVENTS

# Events that wait to be written: more of them are dropped, and counted.
_MOST: Final = 256
# Seconds for one.
_SECONDS: Final = 5.0
# Of an object without a namespace.
_NAMESPACE: Final = "default"


class EventWriter:
    """Any thread calls `put`, which does not wait. A namespace that ends takes none: they are dropped."""

    def __init__(self, api: Api, dropped: Callable[[], None]) -> None:
        self._api = api
        self._dropped = dropped
        self._queue: Queue[tuple[Document, str] | None] = Queue(_MOST)
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Writes what waits, for so long at most."""
        try:
            self._queue.put_nowait(None)
        except Full:
            return
        self._thread.join(seconds)

    def put(self, document: Document, reason: str, message: str) -> None:
        """An event of type Normal on an object."""
        event = _event(document, reason, message)
        try:
            self._queue.put_nowait((event, event["metadata"]["namespace"]))
        except Full:
            self._dropped()

    def _run(self) -> None:
        while (waiting := self._queue.get()) is not None:
            event, namespace = waiting
            try:
                with deadline(_SECONDS):
                    self._api.create(EVENTS, event, namespace)
            except CNIError:
                self._dropped()


def _event(document: Document, reason: str, message: str) -> Document:
    metadata = document["metadata"]
    namespace = metadata.get("namespace", "")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "metadata": {
            "name": f"{metadata['name'][:200]}.{uuid.uuid4().hex[:16]}",
            "namespace": namespace or _NAMESPACE,
        },
        "involvedObject": {
            "apiVersion": document["apiVersion"],
            "kind": document["kind"],
            "name": metadata["name"],
            "uid": metadata.get("uid", ""),
            **({"namespace": namespace} if namespace else {}),
        },
        "type": "Normal",
        "reason": reason,
        "message": message,
        "source": {"component": NAME},
        "reportingComponent": NAME,
        "reportingInstance": f"{socket.gethostname()}-{os.getpid()}",
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
