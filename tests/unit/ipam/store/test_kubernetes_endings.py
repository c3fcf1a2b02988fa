"""What a release leaves in the API for people to read."""

from __future__ import annotations

from cnvnet.ipam.store import objects
from cnvnet.ipam.store.kubernetes_endings import roles_patch
from cnvnet.vm.identity import ACTIVE
from tests.fakes.api_objects import merged
from tests.unit.ipam.store.conformance import HOLDER, LEASE
from tests.unit.ipam.store.test_objects import SECOND


def test_the_roles_that_a_lease_shows_are_made_good_after_a_release_without_a_look() -> None:
    document = objects.lease_document(LEASE._replace(holders=(SECOND, HOLDER)))
    document["metadata"]["resourceVersion"] = "7"
    assert roles_patch(objects.read_lease(document)) == {}
    ended = merged(document, objects.release_patch("c1.eth0", uid="", now=77))
    patch = roles_patch(objects.read_lease(ended))
    assert patch["metadata"]["resourceVersion"] == "7"
    assert patch["status"] == {"roles": {"c0.eth0": ACTIVE}}
    del patch["metadata"]["resourceVersion"]
    assert roles_patch(objects.read_lease(merged(ended, patch))) == {}
