"""What one ADD leaves behind, as its record keeps it, and how it is removed again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from cnvnet.attachment.record import Key, UndoKeys
from cnvnet.attachment.rollback import ErrorCollector
from cnvnet.attachment.sandbox import Pod
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import Kernel, Stack
from cnvnet.plugins.binding import ownership, sysctls
from cnvnet.plugins.binding import ruleset as vm_ruleset
from cnvnet.plugins.binding.sysctls import Change
from cnvnet.plugins.masquerade import ruleset
from cnvnet.plugins.masquerade.plan import BRIDGE_MAC

_FAMILIES: Final = ("ip", "ip6")


class MasqueradeState(NamedTuple):
    """The undo keys of a record; "" and () stand for nothing. `tables` are the families that have one."""

    bridge: str = ""
    tap: str = ""
    tables: tuple[str, ...] = ()
    sysctls: tuple[Change, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What the record keeps."""
        return self._asdict()

    @classmethod
    def parse(cls, undo: Mapping[str, Any]) -> MasqueradeState:
        """Never raises: a key of another shape than ours is one that cannot be undone."""
        keys = UndoKeys(undo)
        return cls(
            bridge=keys.text("bridge"),
            tap=keys.text("tap"),
            tables=tuple(family for family in _FAMILIES if family in keys.items("tables")),
            sysctls=ownership.changes(undo),
        )


def find(pod: Stack, key: Key) -> MasqueradeState:
    """What the links of the pod show of an attachment: nothing about the sysctls."""
    links = ownership.marked(pod, key)
    bridge = next((link.name for link in links if link.kind == "bridge"), "")
    tap = next((link.name for link in links if link.kind == "tun"), "")
    return MasqueradeState(bridge, tap, _FAMILIES if links else ())


def remove(pod: Pod, left: MasqueradeState) -> None:
    """Removes all of it that is there; then raises the first error. The guards go after what they guard."""
    kernel, netns, stack = pod
    collector = ErrorCollector()
    collector.attempt(left.tap, ownership.delete_tap, stack, left.tap)
    collector.attempt(left.bridge, delete_bridge, stack, left.bridge)
    collector.attempt("nftables", delete_tables, kernel, netns, left.tables)
    collector.attempt("sysctls", sysctls.restore, stack, left.sysctls)
    collector.raise_first()


def delete_bridge(pod: Stack, name: str) -> None:
    """Deletes the bridge, if it is one of ours."""
    ownership.delete_bridge(pod, name, BRIDGE_MAC)


def delete_tables(kernel: Kernel, netns: Netns, families: Iterable[str]) -> None:
    """Deletes the tables of these families."""
    vm_ruleset.delete(kernel, netns, map(ruleset.table, families))
