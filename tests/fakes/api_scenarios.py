"""What an API server does, as scenarios: the one in memory and a real one come to the same ends.

tests/unit/kube/test_api_server.py and tests/e2e/test_kube.py run them all, each in a namespace of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice

import pytest

from cnvnet.kube.api import Api, ApiError, Conflict, Document, NotFound
from cnvnet.kube.resources import COORDINATION_LEASES as LEASES

Scenario = Callable[[Api, str], None]
# Only these scenarios know it, so that it stays until they remove it.
FINALIZER = "cnvnet.test/in-use"


def refusal(request: Callable[[], object]) -> tuple[int, str, str]:
    """Status, reason and text of the error that a request ends with."""
    with pytest.raises(ApiError) as caught:
        request()
    assert isinstance(caught.value, {404: NotFound, 409: Conflict}.get(caught.value.status, ApiError))
    return caught.value.status, caught.value.reason, str(caught.value)


def create(api: Api, namespace: str, name: str = "x", **metadata: object) -> Document:
    document = {"metadata": {"name": name, **metadata}, "spec": {"holderIdentity": "a"}}
    return api.create(LEASES, document, namespace)


def an_object_is_created_once(api: Api, namespace: str) -> None:
    made = create(api, namespace)
    assert api.get(LEASES, "x", namespace) == made
    assert made["metadata"]["namespace"] == namespace
    status, reason, text = refusal(lambda: create(api, namespace))
    assert (status, reason) == (409, "AlreadyExists")
    assert text.endswith('leases.coordination.k8s.io "x" already exists')
    refused = refusal(partial(api.get, LEASES, "y", namespace))
    assert refused[:2] == (404, "NotFound")
    assert refused[2].endswith('leases.coordination.k8s.io "y" not found')


def a_patch_merges_and_may_have_conditions(api: Api, namespace: str) -> None:
    first = create(api, namespace, labels={"a": "1", "b": "2"})["metadata"]
    patch: Document = {"metadata": {"labels": {"a": None, "c": "3"}}, "spec": {"leaseDurationSeconds": 7}}
    second = api.patch(LEASES, "x", patch, namespace)
    assert second["metadata"]["labels"] == {"b": "2", "c": "3"}
    assert second["spec"] == {"holderIdentity": "a", "leaseDurationSeconds": 7}
    # The same once more changes nothing, not even the version.
    assert api.patch(LEASES, "x", patch, namespace) == second
    stale = {"metadata": {"resourceVersion": first["resourceVersion"]}, "spec": {"holderIdentity": "b"}}
    status, reason, text = refusal(partial(api.patch, LEASES, "x", stale, namespace))
    assert (status, reason) == (409, "Conflict")
    assert "the object has been modified" in text
    foreign = {"metadata": {"uid": "7a3e0b3c-0000-4000-8000-000000000000"}, "spec": {"holderIdentity": "b"}}
    assert refusal(partial(api.patch, LEASES, "x", foreign, namespace))[:2] == (422, "Invalid")
    current = {"uid": second["metadata"]["uid"], "resourceVersion": second["metadata"]["resourceVersion"]}
    third = api.patch(LEASES, "x", {"metadata": current, "spec": {"holderIdentity": "b"}}, namespace)
    assert third["spec"]["holderIdentity"] == "b"
    assert refusal(partial(api.patch, LEASES, "y", patch, namespace))[:2] == (404, "NotFound")


def a_deletion_may_have_conditions(api: Api, namespace: str) -> None:
    made = create(api, namespace)["metadata"]
    for wrong in ({"uid": "7a3e0b3c-0000-4000-8000-000000000000"}, {"resource_version": "1"}):
        status, reason, text = refusal(partial(api.delete, LEASES, "x", namespace, **wrong))
        assert (status, reason) == (409, "Conflict")
        assert "recondition" in text
    api.delete(LEASES, "x", namespace, uid=made["uid"], resource_version=made["resourceVersion"])
    assert refusal(partial(api.delete, LEASES, "x", namespace))[:2] == (404, "NotFound")


def an_object_with_finalizers_stays_until_they_are_gone(api: Api, namespace: str) -> None:
    create(api, namespace, finalizers=[FINALIZER])
    api.delete(LEASES, "x", namespace)
    api.delete(LEASES, "x", namespace)
    marked = api.get(LEASES, "x", namespace)
    assert marked["metadata"]["deletionTimestamp"]
    status, reason, text = refusal(lambda: create(api, namespace))
    assert (status, reason) == (409, "AlreadyExists")
    assert "object is being deleted" in text
    # It can still be changed, but kept by nothing else.
    assert (
        api.patch(LEASES, "x", {"spec": {"holderIdentity": "b"}}, namespace)["spec"]["holderIdentity"] == "b"
    )
    more = {"metadata": {"finalizers": [FINALIZER, f"{FINALIZER}-too"]}}
    assert refusal(partial(api.patch, LEASES, "x", more, namespace))[:2] == (422, "Invalid")
    api.patch(LEASES, "x", {"metadata": {"finalizers": None}}, namespace)
    assert refusal(partial(api.get, LEASES, "x", namespace))[0] == 404


def a_list_selects(api: Api, namespace: str) -> None:
    create(api, namespace, "a", labels={"net": "n1", "block": "10-0-0"})
    create(api, namespace, "b", labels={"net": "n1"})
    create(api, namespace, "c", labels={"net": "n2"})

    def names(labels: str = "", fields: str = "") -> list[str]:
        items = api.list(LEASES, namespace, labels=labels, fields=fields).items
        return [each["metadata"]["name"] for each in items]

    assert names() == ["a", "b", "c"]
    assert names("net=n1") == names("net==n1") == names("net in (n1, n3)") == ["a", "b"]
    assert names("net!=n1") == names("net notin (n1)") == ["c"]
    assert names("net=n1,block=10-0-0") == names("block") == ["a"]
    assert names("!block") == ["b", "c"]
    assert names(fields="metadata.name=b") == ["b"]
    assert names("net=n2", "metadata.name=b") == []
    (only, _) = api.list(LEASES, namespace, labels="net=n1", metadata_only=True, resource_version="0").items
    assert (only["metadata"]["name"], only.get("spec")) == ("a", None)
    refused = refusal(partial(api.list, LEASES, namespace, fields="spec.holderIdentity=a"))
    assert refused[0] == 400


def a_watch_begins_behind_a_version_and_its_selector_hides_what_an_object_becomes(
    api: Api, namespace: str
) -> None:
    before = create(api, namespace, "before", labels={"node": "n1"})["metadata"]["resourceVersion"]
    create(api, namespace, labels={"node": "n1"})
    moved = api.patch(LEASES, "x", {"metadata": {"labels": {"node": "n2"}}}, namespace)
    api.patch(LEASES, "before", {"spec": {"holderIdentity": "b"}}, namespace)
    stream = api.watch(LEASES, namespace, labels="node=n1", resource_version=before)
    came, left, changed = islice(stream, 3)
    stream.close()
    assert (came.type, came.object["metadata"]["name"]) == ("ADDED", "x")
    # It is still there, and nothing says what it is now.
    assert (left.type, left.object["metadata"]["labels"]) == ("DELETED", {"node": "n1"})
    assert left.object["metadata"]["resourceVersion"] == moved["metadata"]["resourceVersion"]
    assert (changed.type, changed.object["spec"]["holderIdentity"]) == ("MODIFIED", "b")


def a_watch_without_a_version_begins_with_what_is_there(api: Api, namespace: str) -> None:
    create(api, namespace, "a")
    create(api, namespace, "b")
    stream = api.watch(LEASES, namespace, metadata_only=True)
    seen = [*islice(stream, 2)]
    api.delete(LEASES, "a", namespace)
    seen.append(next(stream))
    stream.close()
    assert [(each.type, each.object["metadata"]["name"]) for each in seen] == [
        ("ADDED", "a"),
        ("ADDED", "b"),
        ("DELETED", "a"),
    ]
    assert [each.object["kind"] for each in seen] == ["PartialObjectMetadata"] * 3


def a_watch_ends_with_its_time(api: Api, namespace: str) -> None:
    made = create(api, namespace)["metadata"]
    ends = [*api.watch(LEASES, namespace, resource_version=made["resourceVersion"], seconds=1)]
    assert {each.type for each in ends} <= {"BOOKMARK"}


SCENARIOS: dict[str, Scenario] = {
    each.__name__: each
    for each in (
        an_object_is_created_once,
        a_patch_merges_and_may_have_conditions,
        a_deletion_may_have_conditions,
        an_object_with_finalizers_stays_until_they_are_gone,
        a_list_selects,
        a_watch_begins_behind_a_version_and_its_selector_hides_what_an_object_becomes,
        a_watch_without_a_version_begins_with_what_is_there,
        a_watch_ends_with_its_time,
    )
}
