"""What is asked of a Kubernetes API, and how it refuses: for the store, the directory and the controller.

`cnvnet.kube.client` has the one that asks a real server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, Protocol, cast

from cnvnet import call_context
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.kube.resources import Resource

# A decoded JSON object.
Document = dict[str, Any]

# Seconds for one request, its retries included, where no deadline was set.
DEFAULT_SECONDS: Final = 10.0
# Characters of a server's message that an error repeats: it is one line.
_LONGEST_MESSAGE: Final = 2000


class ApiError(CNIError):
    """A request was refused or got no answer (code 11).

    `status` is the HTTP status, 0 if no answer came; `reason` that of Kubernetes' Status object, "" if there
    was none.
    """

    def __init__(self, msg: str, status: int = 0, reason: str = "") -> None:
        super().__init__(TRY_AGAIN_LATER, msg)
        self.status = status
        self.reason = reason


class NotFound(ApiError):
    """There is no such object (404). A server that does not know its kind is another ApiError."""


class Conflict(ApiError):
    """Status 409: the name is taken, or a resourceVersion or UID is another one. `reason` says which."""


class Listing(NamedTuple):
    """The objects of a list, and the version from which a watch sees what comes after it."""

    items: tuple[Document, ...]
    resource_version: str


class WatchEvent(NamedTuple):
    """`type` is ADDED, MODIFIED, DELETED or BOOKMARK.

    Of a watch with a selector, DELETED also means that the object no longer matches: `object` is what it was
    while it did.
    """

    type: str
    object: Document


class FinishedRequest(NamedTuple):
    """One request as it was sent, or could not be; its repetition is another one. For those who count."""

    # get, list, watch, create, patch or delete.
    verb: str
    # The plural of its kind.
    resource: str
    # The HTTP status; 0: no answer came, for the reason `why`.
    status: int
    # Until the answer was there; of a watch, until it began.
    seconds: float
    why: str = ""


# Called after each request, by the thread that has made it. Raises nothing.
Observe = Callable[[FinishedRequest], None]


class WatchStream(Protocol):
    """The events of one watch. It ends when the server ends it, or with ApiError (status 410: list anew)."""

    def __iter__(self) -> Iterator[WatchEvent]: ...

    def __next__(self) -> WatchEvent:
        """Waits for the next event. ApiError."""
        ...

    def close(self) -> None:
        """Ends the watch; any thread may call it, and one that waits for an event gets StopIteration."""
        ...


class Api(Protocol):
    """A Kubernetes API server. Several threads use one. Every method may raise ApiError.

    `namespace` is that of the object, "" for objects without one; `list` and `watch` then see all of them.
    """

    @property
    def server(self) -> str:
        """Its address, for messages."""
        ...

    def get(self, resource: Resource, name: str, namespace: str = "") -> Document:
        """The object. NotFound."""
        ...

    def create(self, resource: Resource, document: Mapping[str, Any], namespace: str = "") -> Document:
        """The object as it was stored; Conflict if its name is taken.

        Where the first answer is lost, the object is created again, so the Conflict may be with itself:
        something in the object has to tell.
        """
        ...

    def patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        namespace: str = "",
        *,
        subresource: str = "",
    ) -> Document:
        """The object after a JSON merge patch (RFC 7396), which may be applied twice.

        A `metadata.resourceVersion` in the patch is a precondition: Conflict if it is another one. So is a
        `metadata.uid`, for which the server answers 422. NotFound.
        """
        ...

    def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
    ) -> None:
        """Deletes the object, or marks it deleted if it has finalizers.

        Conflict if UID or version are not those given. NotFound, also where the first answer was lost.
        """
        ...

    def list(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
        resource_version: str = "",
    ) -> Listing:
        """All objects that match the selectors.

        `resource_version` "0" takes what the server has in its cache; `metadata_only` objects have no spec.
        """
        ...

    def watch(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
        resource_version: str = "",
        seconds: int = 40,
        idle: float = 55.0,
    ) -> WatchStream:
        """The changes since `resource_version`, with bookmarks, until the server ends it after `seconds`.

        Without a version it begins with all that is there, and has no bookmarks.

        A stream on which nothing comes for `idle` seconds ends with ApiError.
        """
        ...


_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Generator[None]:
    """All requests of this thread inside the block end within so many seconds in all.

    A block inside another one can only make the time shorter.
    """
    end = time.monotonic() + seconds
    outer = _deadline.get()
    token = _deadline.set(end if outer is None else min(end, outer))
    try:
        yield
    finally:
        _deadline.reset(token)


def request_end() -> float:
    """When a request that begins now has to end, in time.monotonic()'s seconds."""
    limits = (_deadline.get(), call_context.request_limit())
    return min(filter(None, limits), default=time.monotonic() + DEFAULT_SECONDS)


def refused(server: str, asked: str, status: int, answer: object, used: str = "") -> ApiError:
    """The error for an answer that was no success. `answer` is its decoded body, None if it was no JSON.

    Args:
        server: The server's address.
        asked: What was asked: `get vmleases default/x`.
        status: The HTTP status.
        answer: A Kubernetes Status object, or anything else.
        used: With which credentials it was asked, where that is the matter.
    """
    fields: Mapping[str, Any] = cast("Document", answer) if isinstance(answer, dict) else {}
    reason, message = (_line(fields.get(key)) for key in ("reason", "message"))
    if status == 404 and not reason:
        # "404 page not found" of the server's router. No object is said to be missing.
        message = "the server does not know this kind of object (is its CustomResourceDefinition installed?)"
    text = ": ".join(filter(None, (" ".join(filter(None, (str(status), reason))), message)))
    kind = {404: NotFound if reason else ApiError, 409: Conflict}.get(status, ApiError)
    return kind(f"{_asked(server, asked)}: {text}{f' ({used})' if used else ''}", status, reason)


def unanswered(server: str, asked: str, why: str) -> ApiError:
    """The error for a request that no answer came to."""
    return ApiError(f"{_asked(server, asked)}: {why}")


def _asked(server: str, asked: str) -> str:
    return f"Kubernetes API {server}: {asked}"


def _line(text: object) -> str:
    """What a server has written, as one line of bounded length."""
    return " ".join(text.split())[:_LONGEST_MESSAGE] if isinstance(text, str) else ""
