"""Which stores of leases the node has: in the usual folder, and in those that it lists or records name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from cnvnet.attachment.files import read_all
from cnvnet.attachment.record import Record
from cnvnet.cli.output import CommandRefused
from cnvnet.cli.place import Place
from cnvnet.cni.errors import CNIError
from cnvnet.executables import STATIC_IP
from cnvnet.ipam.static_ip import recorded
from cnvnet.ipam.store import data_dirs
from cnvnet.ipam.store.opening import open_store
from cnvnet.ipam.store.protocol import Store
from cnvnet.ipam.store.ref import SQLITE, StoreRef
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.plugins.cnv_bridge.state import PortState


class Found(NamedTuple):
    """The stores in which anything was ever kept.

    `gone` says of which listed folders that is not so any more, `unreadable` what of the list cannot be
    read, and which recorded stores this version does not know.
    """

    stores: tuple[Store, ...]
    gone: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


def find(place: Place, data_dir: str = "") -> Found:
    """All stores of the node; only that of `data_dir`, where one is given.

    Raises OSError and CNIError for what cannot be read.
    """
    if data_dir:
        store = Sqlite(data_dir)
        if not store.exists():
            raise CommandRefused(f"--data-dir: there is no {store.name}")
        return Found((store,))
    listed = data_dirs.read(place.statedir)
    remedy = f"passed over (its line in {data_dirs.path(place.statedir)} can be removed)"
    gone = [each for each in listed.folders if not Sqlite(each).exists()]
    stores: list[Store] = []
    unreadable = [listed.damage] if listed.damage else []
    folders = {StoreRef(SQLITE, each) for each in listed.folders}
    for ref in _each_once(place, folders | _recorded(place, read_all(place.rundir)[0])):
        if ref.kind == SQLITE:
            stores += _existing(ref)
            continue
        try:
            stores.append(open_store(ref))
        except CNIError as e:
            unreadable.append(e.msg)
    return Found(
        tuple(stores), tuple(f"{each} has no leases any more: {remedy}" for each in gone), tuple(unreadable)
    )


def with_records(place: Place, records: Iterable[Record]) -> tuple[Store, ...]:
    """The stores that have the leases of these records. Raises OSError and CNIError."""
    refs = _each_once(place, _recorded(place, records))
    return tuple(store for ref in refs for store in _existing(ref))


def of_network(place: Place, network: str, data_dir: str) -> Store:
    """The one store that knows the network, else the usual one, which may not exist yet."""
    if data_dir:
        return Sqlite(data_dir)
    knowing = [store for store in find(place).stores if _knows(store, network)]
    if len(knowing) > 1:
        names = ", ".join(store.name for store in knowing)
        raise CommandRefused(f"network {network} has leases in {names}: say by --data-dir which is meant")
    return knowing[0] if knowing else Sqlite(place.statedir)


def embedded_of_network(place: Place, network: str, data_dir: str, records: Iterable[Record]) -> Sqlite:
    """The embedded store of a network as a record says, else the usual one. It may have lost everything."""
    if data_dir:
        return Sqlite(data_dir)
    refs = _recorded(place, (record for record in records if record.key.network == network))
    return Sqlite(min((each.location for each in refs if each.kind == SQLITE), default=place.statedir))


def _recorded(place: Place, records: Iterable[Record]) -> set[StoreRef]:
    return {recorded.store(each.undo, place.statedir) for each in filter(has_lease, records)}


def _each_once(place: Place, refs: Iterable[StoreRef]) -> list[StoreRef]:
    """The usual store first, then all others once, by whatever paths they are named."""
    once: dict[StoreRef, StoreRef] = {}
    for ref in (StoreRef(SQLITE, place.statedir), *sorted(refs)):
        location = os.path.realpath(ref.location) if ref.kind == SQLITE else ref.location
        once.setdefault(ref._replace(location=location), ref)
    return list(once.values())


def _existing(ref: StoreRef) -> list[Store]:
    """The store, none where nothing was ever kept. CNIError."""
    if ref.kind != SQLITE:
        return [open_store(ref)]
    store = Sqlite(ref.location)
    return [store] if store.exists() else []


def _knows(store: Store, network: str) -> bool:
    return store.look(
        lambda ledger: bool(ledger.recorded_pools(network)) or any(True for _ in ledger.leases(network))
    )


def has_lease(record: Record) -> bool:
    """Whether the record's interface has its addresses from static-ip."""
    left = PortState.of(record)
    return left.ipam_type == STATIC_IP and left.ipam is not None
