"""What a Kubernetes API server keeps, in memory, by the rules of a real one (tests/e2e/test_kube.py)."""

from __future__ import annotations

import copy
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from cnvnet.kube import resources
from cnvnet.kube.resources import Resource

Document = dict[str, Any]
Matches = Callable[[Document], bool]

_MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"
RESOURCES = tuple(each for each in vars(resources).values() if isinstance(each, Resource))


class Refusal(Exception):
    """The answer is no success; `reason` is Kubernetes'."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason

    def document(self) -> Document:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.status,
        }


class Change(NamedTuple):
    """What happened to one object. `old` is None when it came, `new` when it went."""

    version: int
    resource: Resource
    old: Document | None
    new: Document | None


class Backup(NamedTuple):
    """What a server kept at one moment."""

    version: int
    objects: dict[Resource, dict[tuple[str, str], Document]]


class Objects:
    """Several threads use it; `changed` is notified of every change."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._version = 100
        self._objects: dict[Resource, dict[tuple[str, str], Document]] = {each: {} for each in RESOURCES}
        self._changes: list[Change] = []
        self._forgotten = 0
        self._pages: dict[str, tuple[list[Document], int]] = {}

    @property
    def version(self) -> int:
        return self._version

    def backup(self) -> Backup:
        with self.changed:
            return Backup(self._version, copy.deepcopy(self._objects))

    def restore(self, backup: Backup) -> None:
        """Everything is as it was, the versions too: watches hear of nothing."""
        with self.changed:
            self._version, self._objects = backup.version, copy.deepcopy(backup.objects)
            self._changes.clear()
            self._pages.clear()

    def get(self, resource: Resource, namespace: str, name: str) -> Document:
        with self.changed:
            return copy.deepcopy(self._find(resource, namespace, name))

    def matching(self, resource: Resource, namespace: str, matches: Matches) -> list[Document]:
        with self.changed:
            found = sorted(self._objects[resource].items())
            return [
                copy.deepcopy(each)
                for (where, _), each in found
                if namespace in ("", where) and matches(each)
            ]

    def create(self, resource: Resource, namespace: str, document: Document) -> Document:
        with self.changed:
            metadata = document.setdefault("metadata", {})
            name = metadata.get("name") or f"{metadata.get('generateName', '')}{uuid.uuid4().hex[:5]}"
            if metadata.get("namespace", namespace) != namespace:
                raise Refusal(
                    400, "BadRequest", "the namespace of the provided object does not match the request"
                )
            there = self._objects[resource].get((namespace, name))
            if there is not None:
                text = f'{_plural(resource)} "{name}" already exists'
                deleted = "deletionTimestamp" in there["metadata"]
                raise Refusal(409, "AlreadyExists", f"object is being deleted: {text}" if deleted else text)
            for key in ("deletionTimestamp", "resourceVersion", "generation"):
                metadata.pop(key, None)
            metadata |= {
                "name": name,
                "uid": str(uuid.uuid4()),
                "creationTimestamp": _now(),
                "generation": 1,
            }
            if resource.namespaced:
                metadata["namespace"] = namespace
            return self._store(resource, None, document)

    def put(self, resource: Resource, document: Document) -> Document:
        """An object as a test wants it, its UID included."""
        with self.changed:
            stored = copy.deepcopy(document)
            stored["metadata"].setdefault("generation", 1)
            return self._store(resource, None, stored)

    def patch(self, resource: Resource, namespace: str, name: str, patch: Document) -> Document:
        with self.changed:
            old = self._find(resource, namespace, name)
            given: Document = patch.get("metadata") or {}
            version = given.pop("resourceVersion", None)
            if version not in (None, old["metadata"]["resourceVersion"]):
                raise _conflict(resource, name, _MODIFIED)
            new = merged(old, patch)
            if new["metadata"].get("managedFields") == [{}]:
                # As the server takes the record of fields away, which this one does not keep.
                del new["metadata"]["managedFields"]
            for key in ("uid", "name"):
                if new["metadata"].get(key) != old["metadata"][key]:
                    raise Refusal(
                        422,
                        "Invalid",
                        f'{resource.kind} "{name}" is invalid: metadata.{key}: field is immutable',
                    )
            added = {*new["metadata"].get("finalizers", ())} - {*old["metadata"].get("finalizers", ())}
            if "deletionTimestamp" in old["metadata"] and added:
                raise Refusal(
                    422,
                    "Invalid",
                    "metadata.finalizers: no new finalizers can be added if the object is being deleted",
                )
            if new == old:
                return copy.deepcopy(old)
            if {**new, "metadata": 0} != {**old, "metadata": 0}:
                new["metadata"]["generation"] += 1
            if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers"):
                return self._remove(resource, new)
            return self._store(resource, old, new)

    def delete(self, resource: Resource, namespace: str, name: str, options: Document) -> Document:
        with self.changed:
            old = self._find(resource, namespace, name)
            given: Document = options.get("preconditions") or {}
            for key, value in given.items():
                if value != old["metadata"][key]:
                    what = "UID" if key == "uid" else "ResourceVersion"
                    text = f"{what} in precondition: {value}, {what} in object meta: {old['metadata'][key]}"
                    raise _conflict(resource, name, f"Precondition failed: {text}")
            if not old["metadata"].get("finalizers"):
                return self._remove(resource, old)
            if "deletionTimestamp" in old["metadata"]:
                return copy.deepcopy(old)
            new = copy.deepcopy(old)
            new["metadata"] |= {"deletionTimestamp": _now(), "deletionGracePeriodSeconds": 0}
            new["metadata"]["generation"] += 1
            return self._store(resource, old, new)

    def changes(self, resource: Resource, since: int) -> list[Change]:
        """Refusal 410 where they have been forgotten."""
        with self.changed:
            if since < self._forgotten:
                raise Refusal(410, "Expired", f"too old resource version: {since} ({self._forgotten})")
            return [each for each in self._changes if each.version > since and each.resource == resource]

    def forget(self) -> None:
        """Compact: what has happened so far is known to no watch and to no list that goes on."""
        with self.changed:
            self._version += 1
            self._forgotten = self._version
            self._changes.clear()
            self._pages.clear()

    def page(self, items: list[Document], version: int, limit: int) -> tuple[list[Document], str, int]:
        """The first items, how the list goes on, and how many are left."""
        with self.changed:
            if not limit or len(items) <= limit:
                return items, "", 0
            token = uuid.uuid4().hex
            self._pages[token] = items[limit:], version
            return items[:limit], token, len(items) - limit

    def continued(self, token: str) -> tuple[list[Document], int]:
        with self.changed:
            if token not in self._pages:
                raise Refusal(410, "Expired", "The provided continue parameter is too old")
            return self._pages[token]

    def _find(self, resource: Resource, namespace: str, name: str) -> Document:
        try:
            return self._objects[resource][namespace, name]
        except KeyError:
            raise Refusal(404, "NotFound", f'{_plural(resource)} "{name}" not found') from None

    def _store(self, resource: Resource, old: Document | None, new: Document) -> Document:
        self._version += 1
        metadata = new["metadata"]
        metadata["resourceVersion"] = str(self._version)
        self._objects[resource][metadata.get("namespace", ""), metadata["name"]] = new
        self._changes.append(Change(self._version, resource, old, new))
        self.changed.notify_all()
        return copy.deepcopy(new)

    def _remove(self, resource: Resource, last: Document) -> Document:
        self._version += 1
        old = copy.deepcopy(last)
        old["metadata"]["resourceVersion"] = str(self._version)
        del self._objects[resource][old["metadata"].get("namespace", ""), old["metadata"]["name"]]
        self._changes.append(Change(self._version, resource, old, None))
        self.changed.notify_all()
        return copy.deepcopy(old)


def merged(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    new: Document = copy.deepcopy(cast("Document", old)) if isinstance(old, dict) else {}
    for key, value in cast("Document", patch).items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = merged(new.get(key), value)
    return new


def events(change: Change, namespace: str, matches: Matches) -> Iterator[tuple[str, Document]]:
    """What a watch with this selector is sent for a change."""
    was = _visible(change.old, namespace, matches)
    now = _visible(change.new, namespace, matches)
    if now is not None:
        yield ("MODIFIED" if was is not None else "ADDED"), now
    elif was is not None:
        # Also where the object matches no longer: what it was, at the version of the change.
        gone = copy.deepcopy(was)
        gone["metadata"]["resourceVersion"] = str(change.version)
        yield "DELETED", gone


def _visible(document: Document | None, namespace: str, matches: Matches) -> Document | None:
    if document is None or not matches(document):
        return None
    return document if namespace in ("", document["metadata"].get("namespace", "")) else None


def selector(resource: Resource, labels: str, fields: str) -> Matches:
    """Refusal for what a real server does not understand."""
    label_tests = [_label_test(each) for each in re.findall(r"[^,(]+(?:\([^)]*\))?", labels) if each.strip()]
    field_tests = [_field_test(resource, each) for each in fields.split(",") if each]
    tests = [*label_tests, *field_tests]
    return lambda document: all(test(document) for test in tests)


def _label_test(text: str) -> Matches:
    text = text.strip()
    if found := re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", text):
        key, word, values = found[1], found[2], {each.strip() for each in found[3].split(",")}
        return lambda document: (_label(document, key) in values) == (word == "in")
    if found := re.fullmatch(r"([^!=\s]+)\s*(==|=|!=)\s*(\S*)", text):
        key, word, value = found[1], found[2], found[3]
        return lambda document: (_label(document, key) == value) != (word == "!=")
    if text.startswith("!"):
        return lambda document: _label(document, text[1:]) is None
    return lambda document: _label(document, text) is not None


def _label(document: Document, key: str) -> str | None:
    labels: Mapping[str, str] = document["metadata"].get("labels") or {}
    return labels.get(key)


def _field_test(resource: Resource, text: str) -> Matches:
    found = re.fullmatch(r"([^!=]+)(==|=|!=)(.*)", text)
    if found is None:
        raise Refusal(400, "BadRequest", f"invalid field selector: {text}")
    path, word, value = found[1], found[2], found[3]
    # Of kinds that a CustomResourceDefinition defines, the server knows these only.
    if resource.group.count(".") and path not in ("metadata.name", "metadata.namespace"):
        raise Refusal(400, "BadRequest", f"field label not supported: {path}")
    return lambda document: (_field(document, path) == value) != (word == "!=")


def _field(document: Document, path: str) -> str:
    value: Any = document
    for key in path.split("."):
        value = cast("Document", value).get(key) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def _conflict(resource: Resource, name: str, why: str) -> Refusal:
    text = f'Operation cannot be fulfilled on {_plural(resource)} "{name}": {why}'
    return Refusal(409, "Conflict", text)


def _plural(resource: Resource) -> str:
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()
