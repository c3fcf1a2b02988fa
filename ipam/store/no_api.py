"""The Kubernetes API of a node that has no credentials for it: a DEL is queued, an ADD fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnvnet.kube.api import Api, ApiError, Document, Listing, WatchStream
from cnvnet.kube.resources import Resource


class NoApi(Api):
    """Answers every request with the reason why none is made."""

    def __init__(self, why: str) -> None:
        self.why = why

    @property
    def server(self) -> str:
        """For messages."""
        return "the Kubernetes API"

    def get(self, resource: Resource, name: str, namespace: str = "") -> Document:
        """ApiError."""
        raise ApiError(self.why)

    def create(self, resource: Resource, document: Mapping[str, Any], namespace: str = "") -> Document:
        """ApiError."""
        raise ApiError(self.why)

    def patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        namespace: str = "",
        *,
        subresource: str = "",
    ) -> Document:
        """ApiError."""
        raise ApiError(self.why)

    def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
    ) -> None:
        """ApiError."""
        raise ApiError(self.why)

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
        """ApiError."""
        raise ApiError(self.why)

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
        """ApiError."""
        raise ApiError(self.why)
