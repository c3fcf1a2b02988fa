"""What one ADD leaves behind, as its record keeps it, and how it is taken away again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from cnvnet.attachments import Key
from cnvnet.attempts import Attempts
from cnvnet.cni.errors import CNIError
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import Kernel, Stack
from cnvnet.plugins.masquerade import ruleset
from cnvnet.plugins.masquerade.plan import BRIDGE_MAC
from cnvnet.vm import ruleset as vm_ruleset
from cnvnet.vm import sysctls, traces
from cnvnet.vm.pod import Pod
from cnvnet.vm.sysctls import Change

_FAMILIES: Final = ("ip", "ip6")


class Leftovers(NamedTuple):
    """The undo keys of a record; "" and () stand for nothing. `tables` are the families that have one."""

    bridge: str = ""
    tap: str = ""
    tables: tuple[str, ...] = ()
    sysctls: tuple[Change, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    @classmethod
    def parse(cls, undo: Mapping[str, Any]) -> Leftovers:
        """Never raises: a key of another shape than ours is one that cannot be undone."""
        return cls(
            bridge=traces.text(undo, "bridge"),
            tap=traces.text(undo, "tap"),
            tables=tuple(family for family in _FAMILIES if family in traces.items(undo, "tables")),
            sysctls=traces.changes(undo, "sysctls"),
        )


def find(pod: Stack, key: Key) -> Leftovers:
    """What the links of the pod tell of an attachment; nothing about the sysctls."""
    mine = traces.marked(pod, key)
    bridge = next((link.name for link in mine if link.kind == "bridge"), "")
    tap = next((link.name for link in mine if link.kind == "tun"), "")
    return Leftovers(bridge, tap, _FAMILIES if mine else ())


def remove(pod: Pod, left: Leftovers) -> list[CNIError | OSError]:
    """Takes all of it away, whatever of it is there. The guards go after what they guard."""
    kernel, netns, stack = pod
    tries = Attempts()
    tries.attempt(left.tap, traces.delete_tap, stack, left.tap)
    tries.attempt(left.bridge, delete_bridge, stack, left.bridge)
    tries.attempt("nftables", delete_tables, kernel, netns, left.tables)
    tries.attempt("sysctls", sysctls.restore, stack, left.sysctls)
    return tries.errors


def delete_bridge(pod: Stack, name: str) -> None:
    """Deletes the bridge, if it is one of ours."""
    traces.delete_bridge(pod, name, BRIDGE_MAC)


def delete_tables(kernel: Kernel, netns: Netns, families: Iterable[str]) -> None:
    """Deletes the tables of these families."""
    vm_ruleset.delete(kernel, netns, map(ruleset.table, families))
