"""Events on objects, for people who describe them: written off the way of what they tell."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from queue import Full, Queue
from typing import Any, Final, NamedTuple

from cnvnet.cni.errors import CNIError
from cnvnet.kube.api import Api, Document, NotFound, deadline
from cnvnet.kube.resources import EVENTS

NORMAL: Final = "Normal"
WARNING: Final = "Warning"

# Events that wait to be written: more of them are dropped, and counted.
_MOST: Final = 256
# Seconds for one.
_SECONDS: Final = 5.0
# Of an object without a namespace.
_NAMESPACE: Final = "default"
# One that is the same as one of so many of the last, not older than so many seconds, is counted there, which
# is written once in a while.
_REMEMBERED: Final = 512
_SAME: Final = 600.0
_OFTEN: Final = 30.0
# Within that time one object has so many with one reason: texts may differ by a number that counts down.
_VARIETY: Final = 10
# Characters of a message: the server takes 1,024.
_LONGEST: Final = 1024


class InvolvedObject(NamedTuple):
    """What an event is about. `namespace` is "" for an object without one; `uid` where it is not known."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> InvolvedObject:
        """This object of the API."""
        metadata = document["metadata"]
        return cls(
            document["apiVersion"],
            document["kind"],
            metadata.get("namespace", ""),
            metadata["name"],
            metadata.get("uid", ""),
        )


class KubernetesEvent(NamedTuple):
    """What is said of an object. `type` is NORMAL or WARNING, `reason` one word for programs."""

    involved: InvolvedObject
    reason: str
    message: str
    type: str = NORMAL


class _Written(NamedTuple):
    """An event as it was written, and how often it has come since."""

    name: str
    # On time.monotonic()'s clock.
    first: float
    last: float
    times: int


class EventWriter:
    """Any thread calls `put`, which does not wait. A namespace that ends takes none: they are dropped."""

    def __init__(
        self,
        api: Callable[[], Api | None],
        component: str,
        dropped: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`component` is the program; `dropped` gets the reason why an event is not written.

        Without an API (None) there are no events.
        """
        self._api = api
        self._component = component
        self._dropped = dropped
        self._clock = clock
        self._queue: Queue[KubernetesEvent | None] = Queue(_MOST)
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._written: OrderedDict[KubernetesEvent, _Written] = OrderedDict()

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Writes what waits, for so long at most."""
        try:
            self._queue.put_nowait(None)
        except Full:
            return
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def put(self, event: KubernetesEvent) -> None:
        """An event on an object."""
        try:
            self._queue.put_nowait(event._replace(message=event.message[:_LONGEST]))
        except Full:
            self._dropped(f"{_MOST} events wait")

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            try:
                api = self._api()
                if api is not None:
                    with deadline(_SECONDS):
                        self._write(api, event)
            except CNIError as e:
                self._dropped(e.msg)
            except Exception as e:  # noqa: BLE001 -- one odd event must not end all later ones
                self._dropped(f"{type(e).__name__}: {e}")

    def _write(self, api: Api, event: KubernetesEvent) -> None:
        now = self._clock()
        if self._is_counted(api, event, now):
            return
        recent = [each for each, written in self._written.items() if now - written.first < _SAME]
        if sum(_subject(each) == _subject(event) for each in recent) >= _VARIETY:
            self._dropped(f"{event.involved.kind} {event.involved.name} has {_VARIETY} like it")
            return
        document = self._document(event)
        api.create(EVENTS, document, document["metadata"]["namespace"])
        self._written.pop(event, None)
        self._written[event] = _Written(document["metadata"]["name"], now, now, 1)
        while len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)

    def _is_counted(self, api: Api, event: KubernetesEvent, now: float) -> bool:
        """Whether it repeats one that is there. ApiError."""
        known = self._written.get(event)
        if known is None or now - known.first >= _SAME:
            return False
        known = known._replace(times=known.times + 1)
        if now - known.last >= _OFTEN:
            patch = {"count": known.times, "lastTimestamp": _timestamp()}
            try:
                api.patch(EVENTS, known.name, patch, event.involved.namespace or _NAMESPACE)
            except NotFound:
                return False
            known = known._replace(last=now)
        self._written[event] = known
        return True

    def _document(self, event: KubernetesEvent) -> Document:
        involved, now = event.involved, _timestamp()
        return {
            "metadata": {
                "name": f"{involved.name[:200]}.{uuid.uuid4().hex[:16]}",
                "namespace": involved.namespace or _NAMESPACE,
            },
            "involvedObject": {
                "apiVersion": involved.api_version,
                "kind": involved.kind,
                "name": involved.name,
                "uid": involved.uid,
                **({"namespace": involved.namespace} if involved.namespace else {}),
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": f"{socket.gethostname()}-{os.getpid()}",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def _subject(event: KubernetesEvent) -> tuple[InvolvedObject, str]:
    return event.involved, event.reason


def _timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
