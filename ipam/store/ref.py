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
