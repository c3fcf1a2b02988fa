"""What a record keeps of an attachment that has its addresses from static-ip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields
from cnvnet.ipam.static_ip.config import parse_store
from cnvnet.ipam.store.ref import SQLITE, StoreRef


def store(undo: Mapping[str, Any], statedir: str) -> StoreRef:
    """Where the leases of a record's attachment are, by the record's `undo`.

    Its `store` says so. A record of an older version has none, and they are where its `ipam` object says:
    in `statedir` unless that names another folder.
    """
    known = StoreRef.of(undo.get("store"))
    if known is not None:
        return known
    ipam = undo.get("ipam")
    written: Mapping[str, Any] = cast("Mapping[str, Any]", ipam) if isinstance(ipam, Mapping) else {}
    try:
        return parse_store(Fields(written, "ipam"), statedir)
    except InvalidConfig:
        return StoreRef(SQLITE, statedir)  # no ADD can have succeeded with it
