"""Which stores of leases there are: the folders that the node lists or records name, and the cluster's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

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
from cnvnet.ipam.store.ref import KUBERNETES, SQLITE, StoreRef
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kube.api import ApiError
from cnvnet.kube.resources import INSTANCES, VIRTUAL_MACHINES
from cnvnet.plugins.cnv_bridge.state import PortState
from cnvnet.vm.subjects import no_credentials

if TYPE_CHECKING:
    from cnvnet.ipam.store.kubernetes_networks import NetworkRegistry

# What the API answers about a kind that it does not know.
_UNKNOWN_KIND: Final = 404


class Found(NamedTuple):
    """The stores in which anything was ever kept.

    `gone` says of which listed folders that is not so any more, `unreadable` what of the list cannot be
    read, and which recorded stores this version does not know.
    """

    stores: tuple[Store, ...]
    gone: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


def find(place: Place, data_dir: str = "", kind: str = "") -> Found:
    """All stores of the node, and the cluster's where there are credentials for it.

    Only that of `data_dir`, where one is given, and only those of a `kind` (SQLITE, KUBERNETES). Raises
    OSError and CNIError for what cannot be read.
    """
    _ensure_of_one_kind(data_dir, kind)
    if data_dir:
        store = Sqlite(data_dir)
        if not store.exists():
            raise CommandRefused(f"--data-dir: there is no {store.name}")
        return Found((store,))
    if kind == KUBERNETES:
        return Found((of_cluster(place),))
    listed = data_dirs.read(place.statedir)
    remedy = f"passed over (its line in {data_dirs.path(place.statedir)} can be removed)"
    gone = [each for each in listed.folders if not Sqlite(each).exists()]
    stores: list[Store] = []
    unreadable = [listed.damage] if listed.damage else []
    refs = {StoreRef(SQLITE, each) for each in listed.folders}
    refs |= _recorded(place, read_all(place.rundir)[0])
    try:
        refs |= {StoreRef(KUBERNETES, place.statedir)} if not kind and _has_api(place) else set()
    except CNIError as e:
        unreadable.append(e.msg)
    for ref in _each_once(place, refs):
        if ref.kind == SQLITE:
            stores += _existing(place, ref)
        elif not kind:
            try:
                stores.append(open_store(ref, place.lookup, place.node))
            except CNIError as e:
                unreadable.append(e.msg)
    return Found(
        tuple(stores), tuple(f"{each} has no leases any more: {remedy}" for each in gone), tuple(unreadable)
    )


def of_cluster(place: Place) -> Store:
    """The store of the cluster. CNIError 11 without credentials for its API."""
    if not _has_api(place):
        raise no_credentials(f"--store {KUBERNETES}")
    return open_store(StoreRef(KUBERNETES, place.statedir), place.lookup, place.node)


def with_records(place: Place, records: Iterable[Record]) -> tuple[Store, ...]:
    """The stores that have the leases of these records. Raises OSError and CNIError."""
    refs = _each_once(place, _recorded(place, records))
    return tuple(store for ref in refs for store in _existing(place, ref))


def node_of(store: Store) -> str | None:
    """The name of this node ("" where it is none) to the store of a cluster; None for an embedded store."""
    if isinstance(store, Sqlite):
        return None
    from cnvnet.ipam.store.kubernetes import KubernetesStore

    return store.node if isinstance(store, KubernetesStore) else None


def cluster_networks(store: Store) -> NetworkRegistry | None:
    """The IPNetworks of the store of a cluster; None for an embedded store."""
    if isinstance(store, Sqlite):
        return None
    from cnvnet.ipam.store.kubernetes import KubernetesStore

    return store.networks if isinstance(store, KubernetesStore) else None


def known_machines(place: Place) -> frozenset[str]:
    """The UIDs of the cluster's VMs and instances; none where KubeVirt is not there. CNIError."""
    directory = place.lookup()
    uids: set[str] = set()
    for resource in (VIRTUAL_MACHINES, INSTANCES) if directory is not None else ():
        try:
            items = directory.api.list(resource, metadata_only=True).items if directory is not None else ()
        except ApiError as e:
            if e.status != _UNKNOWN_KIND:
                raise
            continue
        uids |= {str(each["metadata"]["uid"]) for each in items}
    return frozenset(uids)


def of_network(place: Place, network: str, data_dir: str, kind: str = "") -> Store:
    """The one store that knows the network, else the only one that can be meant, which may not exist yet.

    `kind` is the store's, "" for any. CNIError, OSError; CommandRefused where several may be meant.
    """
    _ensure_of_one_kind(data_dir, kind)
    if data_dir:
        return Sqlite(data_dir)
    if kind == KUBERNETES:
        return of_cluster(place)
    stores = find(place, kind=kind).stores
    knowing = [store for store in stores if _knows(store, network)]
    if len(knowing) > 1:
        names = ", ".join(store.name for store in knowing)
        options = "--data-dir" if all(isinstance(each, Sqlite) for each in knowing) else "--store"
        raise CommandRefused(f"network {network} has leases in {names}: say by {options} which is meant")
    if knowing:
        return knowing[0]
    clusters = [] if kind else [each for each in stores if not isinstance(each, Sqlite)]
    if clusters and len(clusters) < len(stores):
        raise CommandRefused(
            f"network {network} has no leases yet: say by --store {KUBERNETES} or {SQLITE} where they belong"
        )
    return clusters[0] if clusters else Sqlite(place.statedir)


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


def _ensure_of_one_kind(data_dir: str, kind: str) -> None:
    if data_dir and kind == KUBERNETES:
        raise CommandRefused(f"--data-dir: --store {KUBERNETES} keeps no leases in a folder")


def _has_api(place: Place) -> bool:
    """Whether there are credentials for the cluster's API. CNIError for some that cannot be used."""
    return place.lookup() is not None


def _existing(place: Place, ref: StoreRef) -> list[Store]:
    """The store, none where nothing was ever kept. CNIError."""
    if ref.kind != SQLITE:
        return [open_store(ref, place.lookup, place.node)]
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
