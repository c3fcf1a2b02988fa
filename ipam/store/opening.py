"""The store that a reference means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.ipam.store.protocol import Store
from cnvnet.ipam.store.ref import KUBERNETES, SQLITE, StoreRef
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.vm.subjects import Lookup, no_api, no_credentials

if TYPE_CHECKING:
    from cnvnet.ipam.store.kubernetes import KubernetesStore


def open_store(ref: StoreRef, lookup: Lookup = no_api, node: str = "") -> Store:
    """The store that is meant. Opens no file yet. CNIError 11 for one of a kind that a newer version has.

    `lookup` leads to the Kubernetes API, `node` is this node's name there.
    """
    if ref.kind == SQLITE:
        return Sqlite(ref.location)
    if ref.kind == KUBERNETES:
        return open_kubernetes(ref, lookup, node)
    raise CNIError(
        TRY_AGAIN_LATER,
        f"store {ref.kind!r}: this version knows {SQLITE} and {KUBERNETES} only, and nothing was changed: "
        "upgrade cnvnet",
    )


def open_kubernetes(ref: StoreRef, lookup: Lookup, node: str, new_networks: str = "") -> KubernetesStore:
    """The store of the cluster. Without credentials it has what this node holds, and every request fails.

    `new_networks` is one of kubernetes_networks.NEW_NETWORKS, "" for its default.
    """
    # The API's client takes 60 ms, which no call of an embedded store pays.
    from cnvnet.ipam.store.holds import Holds
    from cnvnet.ipam.store.kubernetes import KubernetesStore
    from cnvnet.ipam.store.kubernetes_networks import NAMESPACE
    from cnvnet.ipam.store.no_api import NoApi

    try:
        directory = lookup()
    except CNIError as e:
        return KubernetesStore(NoApi(e.msg), Holds(ref.location), node)
    if directory is None:
        return KubernetesStore(NoApi(no_credentials(f"store {KUBERNETES}").msg), Holds(ref.location), node)
    return KubernetesStore(directory.api, Holds(ref.location), node, new_networks=new_networks or NAMESPACE)
