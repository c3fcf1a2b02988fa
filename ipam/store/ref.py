"""Where leases live, as a value that configurations are parsed into and records keep."""

from __future__ import annotations

import os
from typing import Final, NamedTuple, cast

# The embedded store: leases.db in a folder of this node.
SQLITE: Final = "sqlite"
# Objects of the cluster's API, with what this node holds of them in a folder.
KUBERNETES: Final = "kubernetes"


def holds_folder(statedir: str) -> str:
    """Where a node keeps what its pods hold in KUBERNETES."""
    return os.path.join(statedir, "kubernetes", "holds")


def pools_folder(statedir: str) -> str:
    """Where a node keeps what the networks have to give of which it has had an ADD in KUBERNETES."""
    return os.path.join(statedir, "kubernetes", "pools")


def pool_file(statedir: str, network: str) -> str:
    """The network's file there."""
    # No call without a cluster pays for the import.
    import hashlib

    text = network.encode(errors="surrogatepass")
    return os.path.join(pools_folder(statedir), f"{hashlib.sha256(text).hexdigest()[:40]}.json")


class StoreRef(NamedTuple):
    """A store, without opening it."""

    # SQLITE, KUBERNETES, or what a newer version has written: `open_store` refuses that.
    kind: str
    # The folder of this node.
    location: str

    @property
    def has_holds(self) -> bool:
        """Of KUBERNETES: whether pods of this node have ever held anything there."""
        return os.path.isdir(holds_folder(self.location))

    def has_served(self, network: str) -> bool:
        """Of KUBERNETES: whether an ADD of the network has ever put a lease there, on this node."""
        return os.path.isdir(pools_folder(self.location)) and os.path.exists(
            pool_file(self.location, network)
        )

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of this node in which the store keeps anything."""
        return (self.location,) if self.kind in (SQLITE, KUBERNETES) else ()

    @classmethod
    def of(cls, written: object) -> StoreRef | None:
        """A reference as a record has it, None for anything else."""
        if not isinstance(written, dict):
            return None
        document = cast("dict[str, object]", written)
        kind, location = document.get("kind"), document.get("location")
        return cls(kind, location) if isinstance(kind, str) and isinstance(location, str) else None
