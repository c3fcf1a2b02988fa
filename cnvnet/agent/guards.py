"""The thread that reconciles the project's tables of the node's nftables when a program has flushed them."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Collection, Container, Sequence
from typing import Final, Protocol

from cnvnet.call_context import captured
from cnvnet.cni.errors import CNIError
from cnvnet.kernel.nft.events import NftChanges
from cnvnet.plugins.cnv_bridge.reconcile import ReconcileResult
from cnvnet.resident import log

# Between two passes, in seconds: a program that deletes much may do so in many transactions.
_REST: Final = 0.2
# Before another pass while calls are at work, or after one that failed: it doubles, up to these. Seconds.
_SOON: Final = 0.2
_LATEST_BUSY: Final = 2.0
_LATEST_FAILED: Final = 60.0
# A pass that takes so many seconds hangs.
_HANGS: Final = 60.0


class GuardTable(Protocol):
    """A table of the project, which can be compared with the records and repaired."""

    @property
    def family(self) -> str:
        """The nftables family, such as `inet`."""
        ...

    @property
    def table(self) -> str:
        """The table's name."""
        ...

    def reconcile(self) -> ReconcileResult:
        """Compare the table with the records, and repair it. CNIError, OSError."""
        ...


class Observer(Protocol):
    """Counts every pass over a table: was something missing, and was it loaded by a newer program?"""

    def observe_table(self, table: str, *, reconciled: bool, newer: bool) -> None:
        """Count one comparison of a table: whether it was repaired, and whether it is a newer program's."""
        ...


class GuardReconciler:
    """Reconciles the tables at its start, and whenever a program may have deleted a part of them.

    Made in the namespace whose tables they are. `programs` are the names of processes that delete only what
    is theirs to delete, `ports` those of this process' own connections to nftables.
    """

    def __init__(
        self,
        tables: Sequence[GuardTable],
        programs: Collection[str],
        observer: Observer,
        ports: Container[int] = frozenset(),
    ) -> None:
        self._tables = {f"{table.family} {table.table}": table for table in tables}
        self._observer = observer
        self._problems: dict[str, str] = {}
        self._newer: dict[str, str] = {}
        self._repeated = 0
        self._again: float | None = None
        self._begun: float | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="guards", daemon=True)
        self._changes = _subscribe([table.table for table in tables], programs, ports)

    def start(self) -> None:
        """Start the thread, if the kernel tells of changes."""
        if self._changes is not None:
            self._thread.start()

    def stop(self) -> None:
        """Returns when the pass that is under way has ended."""
        os.eventfd_write(self._wake, 1)
        if self._changes is not None:
            self._thread.join(_HANGS)

    def problems(self) -> list[str]:
        """Why guards may be missing."""
        if self._changes is None:
            return []  # without nftables there are none
        begun = self._begun
        if not self._thread.is_alive() or (begun is not None and time.monotonic() - begun > _HANGS):
            return ["the thread that reconciles nftables hangs or has ended"]
        return list(self._problems.values())

    def _run(self) -> None:
        assert self._changes is not None
        poll = select.poll()
        poll.register(self._changes.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        self._reconcile()
        while not self._is_stopping(_REST):
            poll.poll(None if self._again is None else max(0.0, self._again - time.monotonic()) * 1000)
            changed = self._changes.take()
            if changed or (self._again is not None and time.monotonic() >= self._again):
                self._reconcile()
        self._changes.close()

    def _is_stopping(self, seconds: float) -> bool:
        return bool(select.select([self._wake], [], [], seconds)[0])

    def _reconcile(self) -> None:
        self._begun = time.monotonic()
        busy = [name for name, table in self._tables.items() if self._reconcile_table(name, table)]
        if busy or self._problems:
            pause = min(_SOON * 2**self._repeated, _LATEST_BUSY if busy else _LATEST_FAILED)
            self._again = time.monotonic() + pause
            self._repeated = min(self._repeated + 1, 20)
        else:
            self._again, self._repeated = None, 0
        self._begun = None

    def _reconcile_table(self, name: str, table: GuardTable) -> bool:
        """Whether calls are at work, so that another pass has to follow."""
        try:
            with captured() as lines:
                result = table.reconcile()
        except (CNIError, OSError) as e:
            self._trouble(name, e.msg if isinstance(e, CNIError) else str(e))
            return False
        except Exception as e:  # noqa: BLE001 -- the other table is reconciled all the same
            log.crash("internal error of the guards' thread", table=name)
            self._trouble(name, f"{type(e).__name__}: {e}")
            return False
        for line in lines:
            log.warning("nftables", table=name, said=line)
        self._problems.pop(name, None)
        reconciled = result.rules or result.elements > 0
        if reconciled:
            log.warning(
                "nftables: missing, and restored", table=name, rules=result.rules, elements=result.elements
            )
        if result.newer and result.newer != self._newer.get(name):
            log.warning("nftables: a newer program's table is left as it is", table=name, chain=result.newer)
        self._newer[name] = result.newer
        self._observer.observe_table(name, reconciled=reconciled, newer=bool(result.newer))
        return result.busy

    def _trouble(self, name: str, reason: str) -> None:
        problem = f"table {name} is not reconciled: {reason}"
        if problem != self._problems.get(name):
            log.error("nftables: cannot be restored", table=name, reason=reason)
        self._problems[name] = problem


def _subscribe(
    tables: Collection[str], programs: Collection[str], ports: Container[int]
) -> NftChanges | None:
    try:
        return NftChanges(tables, programs, ports)
    except OSError as e:
        log.warning("nftables: not watched", error=str(e), needs="nfnetlink, AF_NETLINK and CAP_NET_ADMIN")
        return None
