"""Write what an import has planned for one network: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from cnvnet.cni.errors import CNIError
from cnvnet.ipam import allocator
from cnvnet.ipam.lease import Lease
from cnvnet.ipam.store.protocol import Ledger, Store


def carry_out(store: Store, leases: Sequence[Lease], *, origin: str, now: int, at_once: int) -> None:
    """Make these leases, so many in one run of the store. CNIError, and then none of them is there.

    What a process that is killed has made stays: the same import goes on with it.
    """
    made: list[Lease] = []
    try:
        for first in range(0, len(leases), at_once):
            chunk = leases[first : first + at_once]

            def adopt(ledger: Ledger, chunk: Sequence[Lease] = chunk) -> list[Lease]:
                return [allocator.adopt(ledger, each, origin=origin, now=now) for each in chunk]

            made += store.run(adopt)
    except BaseException:
        for lease in made:
            with suppress(CNIError):
                _drop(store, lease)
        raise


def _drop(store: Store, lease: Lease) -> None:
    store.run(lambda ledger: allocator.drop(ledger, lease))
