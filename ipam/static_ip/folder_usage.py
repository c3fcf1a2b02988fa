"""How many addresses of a node's own leases are in which state, for the agent's metrics."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from cnvnet.cni.errors import IO_FAILURE, CNIError
from cnvnet.ipam.store import data_dirs
from cnvnet.ipam.store.protocol import Usage
from cnvnet.ipam.store.sqlite import Sqlite


def usage_of(folder: str, used: Iterable[str], now: int) -> Iterator[Usage]:
    """The counts of all networks in the store of `folder`, in those that it lists, and in those of `used`.

    Raises CNIError once all stores that can be read have been.
    """
    listed = data_dirs.read(folder)
    trouble = CNIError(IO_FAILURE, listed.damage) if listed.damage else None
    for place in sorted({os.path.realpath(each) for each in (folder, *listed.folders, *used)}):
        try:
            yield from _usage(Sqlite(place), now)
        except CNIError as e:
            trouble = trouble or e  # a store that a configuration names hides no other one
    if trouble is not None:
        raise trouble


def _usage(store: Sqlite, now: int) -> list[Usage]:
    counts = store.glance(lambda ledger: list(ledger.usage(now=now))) if store.exists() else None
    return counts or []
