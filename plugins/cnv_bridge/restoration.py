"""What somebody else has taken away of the plugin's nftables, put back as the records say.

For the node's agent, which notices. Calls of the plugin go on meanwhile: nothing is put back that a DEL is
removing, and an ADD that is at work is looked at again when it is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Final, NamedTuple

from cnvnet.attachments import ADDED, ADDING, Attachments, Key, Record, UnreadableRecord, boot_id
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.kernel import nft as kernel_nft
from cnvnet.kernel.links import Link
from cnvnet.kernel.nft import Element, Nft
from cnvnet.kernel.stack import Kernel
from cnvnet.plugins.cnv_bridge import guards, masquerade
from cnvnet.plugins.cnv_bridge.leftovers import Leftovers, Tools, is_port

PLUGIN: Final = "cnv-bridge"
# What the plugin's processes are called; `bridge` is the same program under the reference's name.
PROGRAMS: Final = (PLUGIN, "bridge")
# How many attachments are locked for one transaction: calls of these wait for some milliseconds.
_TOGETHER: Final = 64


class Restored(NamedTuple):
    """What was missing of a table: its rules, or some of its elements.

    `newer` is the chain of a newer program's table, which stays as it is, "" mostly. `busy`: calls are at
    work that may have lost something too; it takes another look.
    """

    rules: bool = False
    elements: int = 0
    newer: str = ""
    busy: bool = False


class GuardsTable:
    """`bridge cnv_bridge` of this node."""

    family, table = guards.FAMILY, guards.TABLE

    def __init__(self, tools: Tools) -> None:
        self._kernel = tools.kernel
        self._attachments = tools.attachments

    def restore(self) -> Restored:
        """Raises CNIError or OSError; what has been put back until then stays."""
        wanted = {
            record.key: left.elements
            for record in of_this_boot(self._attachments)
            if record.state in (ADDED, ADDING) and (left := Leftovers.of(record)).elements
        }
        with self._kernel.nft() as nft:
            with self._attachments.shared(guards.LOCK):
                rules = guards.repair(nft, needed=bool(wanted))
            newer = kernel_nft.newer(nft, guards.FAMILY, guards.TABLE, guards.VERSION)
            lost = set(nft.missing([element for of_one in wanted.values() for element in of_one]))
            short = [key for key, of_one in wanted.items() if not lost.isdisjoint(of_one)]
            if not short:
                return Restored(rules, 0, newer)
            with self._kernel.stack() as host:
                ports = {link.name: link for link in host.links()}
            elements, busy = self._restore_elements(nft, short, lost, ports)
        return Restored(rules, elements, newer, busy)

    def _restore_elements(
        self, nft: Nft, keys: Sequence[Key], lost: set[Element], ports: Mapping[str, Link]
    ) -> tuple[int, bool]:
        """How many were put back, and whether attachments are being worked on."""
        number, busy = 0, False
        rest = iter(keys)
        while together := list(islice(rest, _TOGETHER)):
            # Locked, so that no DEL comes between the look at the record and the deed.
            with ExitStack() as locks:
                add: list[Element] = []
                for key in together:
                    try:
                        slot = locks.enter_context(self._attachments.locked(key, wait_seconds=0))
                        record = slot.read()
                    except UnreadableRecord:
                        continue
                    except CNIError as e:
                        if e.code != TRY_AGAIN_LATER:
                            raise
                        busy = True
                        continue
                    add += [e for e in _elements(record, ports) if e in lost]
                nft.change(add=add)
                number += len(add)
        return number, busy


class MasqueradeTable:
    """`inet cnv_masquerade` of this node."""

    family, table = masquerade.FAMILY, masquerade.TABLE

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def restore(self) -> Restored:
        """Raises CNIError or OSError; what has been put back until then stays."""
        # An attachment's marker comes and goes with its element: what state its record is in says less.
        keys = [
            record.key
            for record in of_this_boot(self._tools.attachments)
            if Leftovers.of(record).masqueraded
        ]
        with self._tools.kernel.nft() as nft:
            rules, elements = self._tools.masquerade.restore(nft, keys)
            newer = kernel_nft.newer(nft, masquerade.FAMILY, masquerade.TABLE, masquerade.VERSION)
        return Restored(rules, elements, newer)


def tables(rundir: str, kernel: Kernel) -> tuple[GuardsTable, MasqueradeTable]:
    """The plugin's tables of the node whose records are below `rundir`."""
    tools = Tools.of(rundir, kernel)
    return GuardsTable(tools), MasqueradeTable(tools)


def of_this_boot(attachments: Attachments) -> Iterator[Record]:
    """The plugin's records, read without their locks."""
    boot = boot_id()
    return (record for record in attachments.records(PLUGIN) if record.boot_id == boot)


def _elements(record: Record | None, ports: Mapping[str, Link]) -> tuple[Element, ...]:
    """What the sets should hold for an attachment: nothing for a port that has gone, or is another's now."""
    if record is None or record.state != ADDED:
        return ()
    left = Leftovers.of(record)
    port = ports.get(left.host)
    return left.elements if port is not None and is_port(port, left) else ()
