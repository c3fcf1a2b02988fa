"""The client of a real API server: what `cnvnet.kube.api` promises, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import urlencode

from cnvnet import VERSION
from cnvnet.kube.api import Api, ApiError, Document, Listing, Observe, refused, unanswered
from cnvnet.kube.resources import Resource
from cnvnet.kube.settings import Credentials
from cnvnet.kube.stream import EventStream
from cnvnet.kube.transport import ApiAnswer, ApiRequest, Transport

# Objects that a list asks for at once.
_PAGE: Final = 500
# Bytes of one page: a server that answers from its cache may send all objects on one.
_LONGEST_PAGE: Final = 256 << 20
_JSON: Final = "application/json"
_METADATA: Final = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"
_AGENT: Final = f"cnvnet/{VERSION}"


class Client(Api):
    """Several threads use one: connections are kept and shared."""

    def __init__(self, credentials: Credentials, observe: Observe | None = None) -> None:
        self._transport = Transport(credentials, observe)

    @property
    def server(self) -> str:
        """Its URL."""
        return self._transport.server

    def close(self) -> None:
        """Closes idle connections."""
        self._transport.close()

    def get(self, resource: Resource, name: str, namespace: str = "") -> Document:
        """The object. NotFound."""
        return self._call("get", "GET", resource, resource.item(name, namespace), _of(name, namespace))

    def create(self, resource: Resource, document: Mapping[str, Any], namespace: str = "") -> Document:
        """The object as it was stored. Conflict."""
        whole: Document = {"apiVersion": resource.api_version, "kind": resource.kind, **document}
        name = str(whole.get("metadata", {}).get("name", ""))
        path = resource.collection(namespace)
        return self._call("create", "POST", resource, path, _of(name, namespace), whole)

    def patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        namespace: str = "",
        *,
        subresource: str = "",
    ) -> Document:
        """The object after the merge patch. NotFound, Conflict."""
        path = resource.item(name, namespace, subresource)
        content_type = "application/merge-patch+json"
        return self._call("patch", "PATCH", resource, path, _of(name, namespace), patch, content_type)

    def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
    ) -> None:
        """Deletes the object or marks it. NotFound, Conflict."""
        given = {"uid": uid, "resourceVersion": resource_version}
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if any(given.values()):
            options["preconditions"] = {key: value for key, value in given.items() if value}
        path = resource.item(name, namespace)
        self._call("delete", "DELETE", resource, path, _of(name, namespace), options)

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
        """All objects, of as many pages as the server makes, without the record of who wrote which field."""
        query = _selectors(labels, fields)
        first = {**query, "limit": str(_PAGE)}
        if resource_version:
            # Without it a version would be taken for exactly that one.
            first |= {"resourceVersion": resource_version, "resourceVersionMatch": "NotOlderThan"}
        accept = _METADATA.format("List") if metadata_only else _JSON
        items: list[Document] = []
        page = self._page(resource, namespace, first, accept)
        was_expired = False
        while True:
            items += map(_without_field_record, page.get("items") or ())
            metadata: Document = page.get("metadata") or {}
            following = metadata.get("continue")
            if not following:
                return Listing(tuple(items), str(metadata.get("resourceVersion", "")))
            try:
                page = self._page(
                    resource, namespace, {**query, "limit": str(_PAGE), "continue": following}, accept
                )
            except ApiError as e:
                # The server has forgotten the list's version meanwhile: once more from the beginning.
                if e.status != 410 or was_expired:
                    raise
                was_expired = True
                items.clear()
                page = self._page(resource, namespace, first, accept)

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
    ) -> EventStream:
        """The changes since a version, as they come."""
        query = {**_selectors(labels, fields), "watch": "true", "timeoutSeconds": str(seconds)}
        if resource_version:
            # With bookmarks and no version, a server whose etcd is 3.4 answers an error.
            query |= {"resourceVersion": resource_version, "allowWatchBookmarks": "true"}
        path = f"{resource.collection(namespace)}?{urlencode(query)}"
        accept = _METADATA.format("") if metadata_only else _JSON
        headers = {"Accept": accept, "User-Agent": _AGENT}
        request = ApiRequest("watch", resource.plural, _of("", namespace), "GET", path, headers)
        response = self._transport.send(request, idle=idle)
        if response.stream is None:
            raise self._refused(request.asked, response)
        return EventStream(response.stream, self.server, request.asked)

    def _page(self, resource: Resource, namespace: str, query: Mapping[str, str], accept: str) -> Document:
        path = f"{resource.collection(namespace)}?{urlencode(query)}"
        headers = {"Accept": accept, "User-Agent": _AGENT}
        which = _of("", namespace)
        return self._answer(
            ApiRequest("list", resource.plural, which, "GET", path, headers, longest=_LONGEST_PAGE)
        )

    def _call(
        self,
        verb: str,
        method: str,
        resource: Resource,
        path: str,
        which: str,
        body: Mapping[str, Any] | None = None,
        content_type: str = _JSON,
    ) -> Document:
        headers = {"Accept": _JSON, "User-Agent": _AGENT}
        content = None
        if body is not None:
            content = json.dumps(body, separators=(",", ":")).encode()
            headers["Content-Type"] = content_type
        return self._answer(ApiRequest(verb, resource.plural, which, method, path, headers, content))

    def _answer(self, request: ApiRequest) -> Document:
        response = self._transport.send(request)
        if not 200 <= response.status < 300:
            raise self._refused(request.asked, response)
        document = _decoded(response.body)
        if not isinstance(document, dict):
            raise unanswered(
                self.server, request.asked, "an answer that is no object: is this an API server?"
            )
        return cast("Document", document)

    def _refused(self, asked: str, response: ApiAnswer) -> ApiError:
        # A server does not say whose credentials it does not know.
        used = self._transport.credentials() if response.status == 401 else ""
        return refused(self.server, asked, response.status, _decoded(response.body), used)


def _without_field_record(document: Document) -> Document:
    """A third to a half of an object, which none of our programs reads: lists keep all objects in memory."""
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        cast("Document", metadata).pop("managedFields", None)
    return document


def _selectors(labels: str, fields: str) -> dict[str, str]:
    given = {"labelSelector": labels, "fieldSelector": fields}
    return {key: value for key, value in given.items() if value}


def _of(name: str, namespace: str) -> str:
    """An object in a message: ` default/x`."""
    if name and namespace:
        return f" {namespace}/{name}"
    return f" {name}" if name else f" of {namespace}" if namespace else ""


def _decoded(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
