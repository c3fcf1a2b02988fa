"""What the records say about the plugin's nftables, remembered by a process that stays."""

from __future__ import annotations

from typing import Final, NamedTuple

from cnvnet.attachments import Attachments, Key, Record, Stamp
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.nft import Element
from cnvnet.plugins.cnv_bridge.leftovers import Leftovers

PLUGIN: Final = "cnv-bridge"


class Known(NamedTuple):
    """What matters of a record, and of which state of its file."""

    key: Key
    state: str
    left: Leftovers
    stamp: Stamp


class Inventory:
    """The records of this boot. A file is read again only when it has changed. For one thread."""

    def __init__(self, attachments: Attachments) -> None:
        self._attachments = attachments
        self._seen: dict[str, Stamp] = {}
        self._known: dict[str, Known] = {}
        # What elements have in common is kept once: there are ten of them to a port.
        self._heads: dict[tuple[object, ...], tuple[str, str, str, tuple[str, ...]]] = {}

    def look(self) -> list[Known]:
        """As they are now, read without their locks. Raises OSError where they cannot be listed."""
        boot = boot_id()
        for name, record in self._attachments.changed(PLUGIN, self._seen):
            if record is None or record.boot_id != boot:
                self._known.pop(name, None)
            else:
                self._known[name] = Known(record.key, record.state, self._compact(record), self._seen[name])
        return list(self._known.values())

    def _compact(self, record: Record) -> Leftovers:
        left = Leftovers.of(record)
        return left._replace(ipam=None, elements=tuple(self._shared(e, left.host) for e in left.elements))

    def _shared(self, element: Element, host: str) -> Element:
        head = self._heads.setdefault(element[:4], element[:4])
        return Element(*head, tuple(_same(part, host) for part in element.key), element.data)


def _same(part: str, host: str) -> str:
    return host if part == host else part
