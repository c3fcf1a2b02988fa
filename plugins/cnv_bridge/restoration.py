"""What somebody else has taken away of the plugin's nftables, put back as the records say.

For the node's agent, which notices. Calls of the plugin go on meanwhile: nothing is put back that a DEL is
removing, and an ADD that is at work is looked at again when it is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Final, NamedTuple

from cnvnet.attachments import ADDED, ADDING, Slot, UnreadableRecord
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.kernel import nft as kernel_nft
from cnvnet.kernel.links import Link
from cnvnet.kernel.nft import Element, Nft
from cnvnet.kernel.nft_upkeep import Keeper
from cnvnet.kernel.stack import Kernel
from cnvnet.plugins.cnv_bridge import guards, masquerade
from cnvnet.plugins.cnv_bridge.inventory import PLUGIN, Inventory, Known
from cnvnet.plugins.cnv_bridge.leftovers import Leftovers, Tools, is_port

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

    def __init__(self, tools: Tools, inventory: Inventory) -> None:
        self._kernel = tools.kernel
        self._attachments = tools.attachments
        self._inventory = inventory
        self._keeper = Keeper(guards.FAMILY, guards.TABLE, guards.VERSION, guards.TEXT)

    def restore(self) -> Restored:
        """Raises CNIError or OSError; what has been put back until then stays."""
        wanted = [
            known
            for known in self._inventory.look()
            if known.state in (ADDED, ADDING) and known.left.elements
        ]
        with self._kernel.nft() as nft:
            with self._attachments.shared(guards.LOCK):
                rules = self._keeper.repair(nft, needed=bool(wanted))
            newer = kernel_nft.newer(nft, guards.FAMILY, guards.TABLE, guards.VERSION)
            lost = set(nft.missing([element for known in wanted for element in known.left.elements]))
            short = [known for known in wanted if not lost.isdisjoint(known.left.elements)]
            if not short:
                return Restored(rules, 0, newer)
            with self._kernel.stack() as host:
                ports = {link.name: link for link in host.links()}
            elements, busy = self._restore_elements(nft, short, lost, ports)
        return Restored(rules, elements, newer, busy)

    def _restore_elements(
        self, nft: Nft, short: Sequence[Known], lost: set[Element], ports: Mapping[str, Link]
    ) -> tuple[int, bool]:
        """How many were put back, and whether attachments are being worked on."""
        number, busy = 0, False
        rest = iter(short)
        while together := list(islice(rest, _TOGETHER)):
            # Locked, so that no DEL comes between the look at the record and the deed.
            with ExitStack() as locks:
                add: list[Element] = []
                for known in together:
                    try:
                        slot = locks.enter_context(self._attachments.locked(known.key, wait_seconds=0))
                        wanted = _elements(known, slot, ports)
                    except UnreadableRecord:
                        continue
                    except CNIError as e:
                        if e.code != TRY_AGAIN_LATER:
                            raise
                        busy = True
                        continue
                    add += [element for element in wanted if element in lost]
                nft.change(add=add)
                number += len(add)
        return number, busy


class MasqueradeTable:
    """`inet cnv_masquerade` of this node."""

    family, table = masquerade.FAMILY, masquerade.TABLE

    def __init__(self, tools: Tools, inventory: Inventory) -> None:
        self._tools = tools
        self._inventory = inventory
        self._keeper = Keeper(masquerade.FAMILY, masquerade.TABLE, masquerade.VERSION, masquerade.TEXT)

    def restore(self) -> Restored:
        """Raises CNIError or OSError; what has been put back until then stays."""
        # An attachment's marker comes and goes with its element: what state its record is in says less.
        keys = [known.key for known in self._inventory.look() if known.left.masqueraded]
        with self._tools.kernel.nft() as nft:
            rules, elements = self._tools.masquerade.restore(
                nft, keys, lambda needed: self._keeper.repair(nft, needed=needed)
            )
            newer = kernel_nft.newer(nft, masquerade.FAMILY, masquerade.TABLE, masquerade.VERSION)
        return Restored(rules, elements, newer)


def tables(rundir: str, kernel: Kernel) -> tuple[GuardsTable, MasqueradeTable]:
    """The plugin's tables of the node whose records are below `rundir`, for one thread."""
    tools = Tools.of(rundir, kernel)
    inventory = Inventory(tools.attachments)
    return GuardsTable(tools, inventory), MasqueradeTable(tools, inventory)


def _elements(known: Known, slot: Slot, ports: Mapping[str, Link]) -> tuple[Element, ...]:
    """What the sets should hold for an attachment: nothing for a port that has gone, or is another's now."""
    state, left = known.state, known.left
    if slot.stamp() != known.stamp:
        record = slot.read()
        if record is None:
            return ()
        state, left = record.state, Leftovers.of(record)
    port = ports.get(left.host)
    return left.elements if state == ADDED and port is not None and is_port(port, left) else ()
