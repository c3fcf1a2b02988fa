"""Following all objects that match: LIST, WATCH, and LIST by difference where the server has forgotten."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from cnvnet.kube.api import Api, ApiError, Document, NotFound, WatchEvent, WatchStream
from cnvnet.kube.resources import Resource

# Seconds between attempts after an error: doubled each time, up to the longest.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
# Seconds: the server may end a watch, but one that ends sooner than this was none.
_SHORTEST_WATCH: Final = 1.0

# CHANGED: the object is there and matches. LEFT: it is there and no longer matches; it is given as it is
# now. GONE: it was deleted; apiVersion, kind, namespace, name and UID is all that is given. The server sends
# DELETED for both, with what the object was before: where there are selectors, a GET tells which it is.
Change = Literal["CHANGED", "LEFT", "GONE"]
Notify = Callable[[Change, Document], None]
# What keeps the watch from following, "" when it follows again.
Report = Callable[[str], None]


class Selection(NamedTuple):
    """Which objects are followed."""

    resource: Resource
    # "": of all namespaces.
    namespace: str = ""
    # Selectors, as in the API's query: "": all objects.
    labels: str = ""
    fields: str = ""
    metadata_only: bool = False
    # After so long, and at random a quarter more, the server ends one watch, and the next goes on from there
    # by the same connection. Bookmarks come each minute only: without an end before that, a connection that
    # a machine in between has forgotten would look like one on which nothing happens.
    seconds: int = 40
    # After so long with nothing, not even its end, a watch is given up.
    idle: float = 55.0


class _Known(NamedTuple):
    uid: str
    version: str


class Backoff:
    """How long to pause between attempts that end too soon: longer each time."""

    def __init__(self) -> None:
        self._next = _FIRST_PAUSE

    def pause(self, lasted: float) -> float:
        """Seconds after an attempt that has lasted so long; after a long one it begins anew."""
        if lasted >= _LONGEST_PAUSE:
            self.reset()
        pause = self._next
        self._next = min(pause * 2, _LONGEST_PAUSE)
        # Not all clients of a server that comes back ask it at the same moment.
        return pause * random.uniform(0.5, 1)

    def reset(self) -> None:
        """The last attempt was a success."""
        self._next = _FIRST_PAUSE


class Watcher:
    """Calls `notify` for each change of the selected objects, the first time for every one that is there.

    `run` does so in its own thread until `stop`, which any thread may call. What happened while the server
    was away is reported afterwards. Errors of `notify` end `run`.
    """

    def __init__(
        self,
        api: Api,
        selection: Selection,
        notify: Notify,
        report: Report = lambda _: None,
        on_break: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_break` is called when a watch has ended before its time, and when it is there again."""
        self._on_break = on_break
        self._is_broken = False
        self._api = api
        self._selection = selection
        self._notify = notify
        self._report = report
        self._known: dict[tuple[str, str], _Known] = {}
        # "": a list has to come first.
        self._version = ""
        self._stopped = threading.Event()
        self._stream: WatchStream | None = None
        # None: nothing has been reported yet.
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """What keeps it from following, "" if it follows, None before it has listed the objects."""
        return self._problem

    def run(self) -> None:
        """Follows until `stop`."""
        backoff = Backoff()
        while not self._stopped.is_set():
            begun = time.monotonic()
            try:
                if not self._version:
                    self._list()
                if self._follow() or time.monotonic() - begun >= _SHORTEST_WATCH:
                    backoff.reset()
                    continue
            except ApiError as e:
                if self._stopped.is_set():
                    return
                if e.status == 410:
                    self._version = ""
                else:
                    self._say(str(e))
            self._stopped.wait(backoff.pause(time.monotonic() - begun))

    def stop(self) -> None:
        """Ends a watch and a pause at once, a request that is under way at its deadline."""
        self._stopped.set()
        stream = self._stream
        if stream is not None:
            stream.close()

    def _list(self) -> None:
        """Reports what is different from what is known."""
        wanted = self._selection
        listing = self._api.list(
            wanted.resource,
            wanted.namespace,
            labels=wanted.labels,
            fields=wanted.fields,
            metadata_only=wanted.metadata_only,
        )
        items = {_key(each): each for each in listing.items}
        for key in self._known.keys() - items.keys():
            self._left(key, self._now(key))
        for key, document in items.items():
            if self._known.get(key) != _known(document):
                self._changed(key, document)
        self._version = listing.resource_version

    def _follow(self) -> bool:
        """Whether anything came before the server ended the watch."""
        wanted = self._selection
        # Watches that began together do not end together.
        seconds = wanted.seconds + random.randrange(wanted.seconds // 4 + 1)
        begun = time.monotonic()
        stream = self._stream = self._api.watch(
            wanted.resource,
            wanted.namespace,
            labels=wanted.labels,
            fields=wanted.fields,
            metadata_only=wanted.metadata_only,
            resource_version=self._version,
            seconds=seconds,
            idle=wanted.idle,
        )
        has_come = False
        try:
            self._say("")
            if self._is_broken:
                self._is_broken = False
                self._on_break()
            # `stop` may have come before there was a stream to close.
            if not self._stopped.is_set():
                for event in stream:
                    has_come = True
                    self._handle(event)
                    if self._stopped.is_set():
                        break
        finally:
            self._stream = None
            stream.close()
            if time.monotonic() - begun < seconds - _SHORTEST_WATCH:
                self._is_broken = True
                self._on_break()
        return has_come

    def _handle(self, event: WatchEvent) -> None:
        document = event.object
        if event.type in ("ADDED", "MODIFIED"):
            self._changed(_key(document), document)
        elif event.type == "DELETED" and _key(document) in self._known:
            self._left(_key(document), self._now(_key(document)))
        # All events have one, and a bookmark has nothing else.
        self._version = document["metadata"]["resourceVersion"]

    def _changed(self, key: tuple[str, str], document: Document) -> None:
        known, new = self._known.get(key), _known(document)
        if known is not None and known.uid != new.uid:
            self._left(key, None)  # another object has the name
        self._known[key] = new
        self._notify("CHANGED", document)

    def _now(self, key: tuple[str, str]) -> Document | None:
        """An object that is no longer selected, None if it was deleted. ApiError: it will be asked again."""
        if not (self._selection.labels or self._selection.fields):
            return None
        namespace, name = key
        try:
            return self._api.get(self._selection.resource, name, namespace)
        except NotFound:
            return None

    def _left(self, key: tuple[str, str], now: Document | None) -> None:
        known = self._known.pop(key)
        if now is not None and now["metadata"]["uid"] == known.uid:
            self._notify("LEFT", now)
            return
        namespace, name = key
        metadata = {"namespace": namespace} if namespace else {}
        metadata |= {"name": name, "uid": known.uid}
        resource = self._selection.resource
        self._notify(
            "GONE", {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        )

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._report(problem)


def _key(document: Document) -> tuple[str, str]:
    metadata = document["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _known(document: Document) -> _Known:
    metadata = document["metadata"]
    return _Known(metadata["uid"], metadata["resourceVersion"])
