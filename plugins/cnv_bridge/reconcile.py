"""Reconciles the plugin's nftables with the records, after another program has removed some of them.

The node's agent calls it when it notices a change. Calls of the plugin run concurrently: what a DEL removes
is not restored, and an ADD that still runs is compared again when it is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from sys import intern
from typing import Final, NamedTuple

from cnvnet.attachment.record import (
    ADDED,
    ADDING,
    Attachments,
    FileVersion,
    Key,
    LockedRecord,
    UnreadableRecord,
)
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.executables import CNV_BRIDGE, SECOND_NAMES
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.links import Link
from cnvnet.kernel.nft import tables as kernel_nft
from cnvnet.kernel.nft.reconcile import TableReconciler
from cnvnet.kernel.nft.tables import Element, Nft
from cnvnet.kernel.stack import Kernel
from cnvnet.plugins.cnv_bridge import guards, ip_masq
from cnvnet.plugins.cnv_bridge.state import Context, PortState, is_port

# What the plugin's processes are called: `bridge` is the reference's name for the same program.
PROGRAMS: Final = (CNV_BRIDGE, *SECOND_NAMES, "bridge")
# How many attachments are locked for one transaction: calls of these wait for some milliseconds.
_TOGETHER: Final = 64


class KnownPort(NamedTuple):
    """What matters of a record, and which version of its file said so."""

    key: Key
    state: str
    left: PortState
    version: FileVersion


class KnownPorts:
    """The ports of this boot's records. A file is read again only when it has changed. For one thread."""

    def __init__(self, attachments: Attachments) -> None:
        self._attachments = attachments
        self._versions: dict[str, FileVersion] = {}
        self._ports: dict[str, KnownPort] = {}

    def refresh(self) -> list[KnownPort]:
        """As the files are now, read without their locks. Raises OSError where they cannot be listed."""
        boot = boot_id()
        for name, record in self._attachments.changed(CNV_BRIDGE, self._versions):
            if record is None or record.boot_id != boot:
                self._ports.pop(name, None)
            else:
                left = _compact(PortState.of(record))
                self._ports[name] = KnownPort(record.key, record.state, left, self._versions[name])
        return list(self._ports.values())


class ReconcileResult(NamedTuple):
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

    def __init__(self, context: Context, known_ports: KnownPorts) -> None:
        self._kernel = context.kernel
        self._attachments = context.attachments
        self._known_ports = known_ports
        self._keeper = TableReconciler(guards.FAMILY, guards.TABLE, guards.VERSION, guards.TEXT)

    def reconcile(self) -> ReconcileResult:
        """Raises CNIError or OSError; what has been restored until then stays."""
        wanted = [
            known
            for known in self._known_ports.refresh()
            if known.state in (ADDED, ADDING) and known.left.elements
        ]
        with self._kernel.nft() as nft:
            with self._attachments.shared(guards.LOCK):
                rules = self._keeper.repair(nft, needed=bool(wanted))
            newer = kernel_nft.newer(nft, guards.FAMILY, guards.TABLE, guards.VERSION)
            lost = set(nft.missing([element for known in wanted for element in known.left.elements]))
            short = [known for known in wanted if not lost.isdisjoint(known.left.elements)]
            if not short:
                return ReconcileResult(rules, 0, newer)
            with self._kernel.stack() as host:
                ports = {link.name: link for link in host.links()}
            elements, busy = self._restore_elements(nft, short, lost, ports)
        return ReconcileResult(rules, elements, newer, busy)

    def _restore_elements(
        self, nft: Nft, short: Sequence[KnownPort], lost: set[Element], ports: Mapping[str, Link]
    ) -> tuple[int, bool]:
        """How many elements were restored, and whether calls work on other attachments now."""
        number, busy = 0, False
        rest = iter(short)
        while together := list(islice(rest, _TOGETHER)):
            # Locked, so that no DEL comes between reading the record and restoring its elements.
            with ExitStack() as locks:
                add: list[Element] = []
                for known in together:
                    try:
                        locked = locks.enter_context(self._attachments.locked(known.key, wait_seconds=0))
                        wanted = _elements(known, locked, ports)
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

    family, table = ip_masq.FAMILY, ip_masq.TABLE

    def __init__(self, context: Context, known_ports: KnownPorts) -> None:
        self._context = context
        self._known_ports = known_ports
        self._keeper = TableReconciler(ip_masq.FAMILY, ip_masq.TABLE, ip_masq.VERSION, ip_masq.TEXT)

    def reconcile(self) -> ReconcileResult:
        """Raises CNIError or OSError; what has been restored until then stays."""
        # An attachment's marker comes and goes with its element: what state its record is in says less.
        keys = [known.key for known in self._known_ports.refresh() if known.left.masqueraded]
        with self._context.kernel.nft() as nft:
            rules, elements = self._context.masquerade.reconcile(
                nft, keys, lambda needed: self._keeper.repair(nft, needed=needed)
            )
            newer = kernel_nft.newer(nft, ip_masq.FAMILY, ip_masq.TABLE, ip_masq.VERSION)
        return ReconcileResult(rules, elements, newer)


def tables(rundir: str, kernel: Kernel) -> tuple[GuardsTable, MasqueradeTable]:
    """The plugin's tables of the node whose records are below `rundir`, for one thread."""
    context = Context.of(rundir, kernel)
    known_ports = KnownPorts(context.attachments)
    return GuardsTable(context, known_ports), MasqueradeTable(context, known_ports)


def _elements(known: KnownPort, locked: LockedRecord, ports: Mapping[str, Link]) -> tuple[Element, ...]:
    """What the sets should hold for an attachment: nothing for a port that has gone, or is another's now."""
    state, left = known.state, known.left
    if locked.version() != known.version:
        record = locked.read()
        if record is None:
            return ()
        state, left = record.state, PortState.of(record)
    port = ports.get(left.host)
    return left.elements if state == ADDED and port is not None and is_port(port, left) else ()


def _compact(left: PortState) -> PortState:
    """What is kept in memory for every port of a node: a port has ten elements of nearly the same words."""
    return left._replace(ipam=None, elements=tuple(map(_interned, left.elements)))


def _interned(element: Element) -> Element:
    types, key = (tuple(map(intern, words)) for words in (element.types, element.key))
    return Element(intern(element.family), intern(element.table), intern(element.set), types, key)
