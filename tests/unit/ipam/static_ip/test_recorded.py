"""Where the leases of a recorded network are."""

from __future__ import annotations

from typing import Any

import pytest

from cnvnet.ipam.static_ip import recorded
from cnvnet.ipam.store.ref import SQLITE, StoreRef


@pytest.mark.parametrize(
    ("ipam", "folder"),
    [
        ({"type": "static-ip"}, "/state"),
        ({"datadir": "/own"}, "/own"),
        ({"dataDir": "relative"}, "/state"),
        ({"dataDir": 5}, "/state"),
    ],
)
def test_the_configuration_says_where_else_the_state_folder(ipam: dict[str, Any], folder: str) -> None:
    assert recorded.store({"ipam": ipam}, "/state") == StoreRef(SQLITE, folder)


def test_the_recorded_store_counts_whatever_the_default_is_by_now() -> None:
    written = {"kind": "sqlite", "location": "/was"}
    assert recorded.store({"ipam": {}, "store": written}, "/state") == StoreRef(SQLITE, "/was")


@pytest.mark.parametrize("store", [None, "sqlite", {}, {"kind": "sqlite", "location": 5}, {"kind": "?"}])
def test_what_is_no_store_is_passed_over(store: object) -> None:
    assert recorded.store({"ipam": {}, "store": store}, "/state") == StoreRef(SQLITE, "/state")


def test_a_store_of_a_newer_version_is_known() -> None:
    written = {"kind": "of-tomorrow", "location": "there"}
    assert recorded.store({"ipam": {}, "store": written}, "/state") == StoreRef("of-tomorrow", "there")
