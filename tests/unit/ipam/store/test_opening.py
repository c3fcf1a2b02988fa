"""A reference leads to its store, or is refused before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.ipam.store.opening import open_store
from cnvnet.ipam.store.ref import SQLITE, StoreRef


def test_a_folder_is_opened_when_it_is_used(tmp_path: Path) -> None:
    ref = StoreRef(SQLITE, str(tmp_path / "state"))
    assert open_store(ref).name == f"{tmp_path}/state/leases.db"
    assert ref.folders == (f"{tmp_path}/state",)
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_a_newer_version_is_refused() -> None:
    ref = StoreRef("of-tomorrow", "there")
    with pytest.raises(
        CNIError, match="store 'of-tomorrow': this version knows sqlite and kubernetes only"
    ) as caught:
        open_store(ref)
    assert caught.value.code == 11
    assert ref.folders == ()
