"""What the API server was asked, from its audit log: who, which verb, which resource, with which answer."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.api import Api
from tests.e2e.machine import eventually

POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "omitManagedFields": True,
    "rules": [
        {"level": "None", "nonResourceURLs": ["*"]},
        {"level": "None", "users": ["system:apiserver"]},
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata"},
    ],
}


_FOLLOWING = (("ipnetworks", "list"), ("ipnetworks", "watch"))


class Call(NamedTuple):
    """One request; `resource` is the plural, with a slash and the subresource if there is one."""

    user: str
    verb: str
    resource: str
    code: int


class AuditLog:
    """The log of a server that `api` talks to."""

    def __init__(self, log: Path, api: Api) -> None:
        self._log = log
        self._api = api

    @contextmanager
    def calls(self, user: str = "") -> Generator[list[Call]]:
        """A list that at the end of the block has the requests made in it: all, or one user's.

        But for what an agent asks off the way of calls, at any time: it writes events about addresses, and
        follows IPNetworks by which it notices that the API is away.
        """
        before = self._log.stat().st_size if self._log.exists() else 0
        found: list[Call] = []
        yield found
        # The log is written after the answer; behind a request of our own it has all of those before.
        marker = uuid.uuid4().hex
        self._api.get(f"/api/v1/namespaces?fieldSelector=metadata.name={marker}")
        content = eventually(lambda: self._read(before, marker), "the audit log has caught up")
        for line in content.splitlines():
            event = json.loads(line)
            if marker in event["requestURI"]:
                break
            call = _call(event)
            if not _is_aside(call) and user in ("", call.user):
                found.append(call)

    def _read(self, start: int, marker: str) -> str | None:
        with self._log.open() as log:
            log.seek(start)
            content = log.read()
        return content if marker in content and content.endswith("\n") else None


def _is_aside(call: Call) -> bool:
    return call.resource == "events" or (call.resource, call.verb) in _FOLLOWING


def counts(calls: Iterable[Call]) -> Counter[str]:
    """How many there were of each kind, as `patch vmleases` or `patch ipamclaims/status`."""
    return Counter(f"{call.verb} {call.resource}" for call in calls)


def _call(event: dict[str, Any]) -> Call:
    about = event.get("objectRef", {})
    resource = "/".join(about[key] for key in ("resource", "subresource") if key in about)
    return Call(event["user"]["username"], event["verb"], resource, event["responseStatus"]["code"])
