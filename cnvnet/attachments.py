"""The records of what an ADD leaves behind, and the lock that makes two calls for one attachment take turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol


class Key(NamedTuple):
    """Which attachment: GC of one (plugin, network) never touches another's."""

    plugin: str
    network: str
    container_id: str
    ifname: str


class Record(NamedTuple):
    """What an ADD did, written (fsynced) before its first deed. `undo` holds the keys DEL needs, as JSON."""

    key: Key
    netns_path: str
    netns_inode: int
    boot_id: str
    state: str
    undo: dict[str, Any]


class Slot(Protocol):
    """The place of one record, locked by the holder of this object."""

    def read(self) -> Record | None: ...
    def write(self, record: Record) -> None: ...
    def remove(self) -> None: ...


class Attachments(Protocol):
    """All records below one RUNDIR."""

    def locked(self, key: Key, *, wait_seconds: float = 10.0) -> AbstractContextManager[Slot]: ...
    def of_network(self, plugin: str, network: str) -> Iterator[Key]: ...
    def shared(self, name: str) -> AbstractContextManager[None]: ...
