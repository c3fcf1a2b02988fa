"""The VLANs of bridge ports as values; a range is one entry, as in the kernel's own messages."""

from __future__ import annotations

from typing import NamedTuple


class VlanRange(NamedTuple):
    """VIDs first..last (both included). `pvid`: untagged frames go in; for a single VID only."""

    first: int
    last: int
    pvid: bool = False
    untagged: bool = False


class AddVlans(NamedTuple):
    """Adds the ranges to a port (or, with `on_bridge`, to the bridge itself) in one message."""

    ifindex: int
    ranges: tuple[VlanRange, ...]
    on_bridge: bool = False


class DeleteVlans(NamedTuple):
    """Removes the ranges; VIDs the port does not have are no error."""

    ifindex: int
    ranges: tuple[VlanRange, ...]
    on_bridge: bool = False
