"""The thread that keeps our tables of the node's nftables whole, whoever flushes the ruleset."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Collection, Sequence
from typing import Final, Protocol

from cnvnet.agent import log
from cnvnet.cni.errors import CNIError
from cnvnet.diagnostics import collected
from cnvnet.kernel.nft_events import Changes
from cnvnet.plugins.cnv_bridge.restoration import Restored

# After a look, before the next one: somebody who deletes much may do so in many transactions. Seconds.
_REST: Final = 0.2
# Before another look while calls are at work, or after one that failed; it doubles, up to these. Seconds.
_SOON: Final = 0.2
_LATEST_BUSY: Final = 2.0
_LATEST_FAILED: Final = 60.0
# A thread that has been at it for so long hangs.
_HANGS: Final = 60.0


class Table(Protocol):
    """A table of ours. `restore` puts back what is missing of it; CNIError or OSError where it cannot."""

    @property
    def family(self) -> str: ...
    @property
    def table(self) -> str: ...
    def restore(self) -> Restored: ...


class Observer(Protocol):
    """Told of every look at a table: whether something was missing, and whether it is a newer program's."""

    def observe_table(self, table: str, *, restored: bool, newer: bool) -> None: ...


class Upkeep:
    """Looks when it starts, and whenever somebody may have deleted what is ours.

    Made in the namespace whose tables they are. `programs` are the names of processes that delete only what
    is theirs to delete.
    """

    def __init__(self, tables: Sequence[Table], programs: Collection[str], observer: Observer) -> None:
        self._tables = {f"{table.family} {table.table}": table for table in tables}
        self._observer = observer
        self._problems: dict[str, str] = {}
        self._newer: dict[str, str] = {}
        self._repeated = 0
        self._again: float | None = None
        self._begun: float | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._changes = _subscribe([table.table for table in tables], programs)

    def start(self) -> None:
        if self._changes is not None:
            self._thread.start()

    def stop(self) -> None:
        """What it is at is finished."""
        os.eventfd_write(self._wake, 1)
        if self._changes is not None:
            self._thread.join(_HANGS)

    def problems(self) -> list[str]:
        """Why guards may be missing."""
        if self._changes is None:
            return []  # without nftables there are none
        begun = self._begun
        if not self._thread.is_alive() or (begun is not None and time.monotonic() - begun > _HANGS):
            return ["the upkeep of nftables does not come round"]
        return list(self._problems.values())

    def _run(self) -> None:
        assert self._changes is not None
        poll = select.poll()
        poll.register(self._changes.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        self._look()
        while not self._is_told_to_stop(_REST):
            poll.poll(None if self._again is None else max(0.0, self._again - time.monotonic()) * 1000)
            changed = self._changes.take()
            if changed or (self._again is not None and time.monotonic() >= self._again):
                self._look()
        self._changes.close()

    def _is_told_to_stop(self, seconds: float) -> bool:
        return bool(select.select([self._wake], [], [], seconds)[0])

    def _look(self) -> None:
        self._begun = time.monotonic()
        busy = [name for name, table in self._tables.items() if self._restore(name, table)]
        if busy or self._problems:
            pause = min(_SOON * 2**self._repeated, _LATEST_BUSY if busy else _LATEST_FAILED)
            self._again = time.monotonic() + pause
            self._repeated = min(self._repeated + 1, 20)
        else:
            self._again, self._repeated = None, 0
        self._begun = None

    def _restore(self, name: str, table: Table) -> bool:
        """Whether calls are at work, so that one has to look again."""
        try:
            with collected() as said:
                found = table.restore()
        except (CNIError, OSError) as e:
            self._trouble(name, e.msg if isinstance(e, CNIError) else str(e))
            return False
        except Exception as e:  # noqa: BLE001 -- the other table is looked after all the same
            log.crash("internal error of the upkeep", table=name)
            self._trouble(name, f"{type(e).__name__}: {e}")
            return False
        for line in said:
            log.warning("nftables", table=name, said=line)
        self._problems.pop(name, None)
        restored = found.rules or found.elements > 0
        if restored:
            log.warning(
                "nftables: missing, and put back", table=name, rules=found.rules, elements=found.elements
            )
        if found.newer and found.newer != self._newer.get(name):
            log.warning("nftables: a newer program's table is left as it is", table=name, chain=found.newer)
        self._newer[name] = found.newer
        self._observer.observe_table(name, restored=restored, newer=bool(found.newer))
        return found.busy

    def _trouble(self, name: str, reason: str) -> None:
        problem = f"table {name} is not kept: {reason}"
        if problem != self._problems.get(name):
            log.error("nftables: cannot be put back", table=name, reason=reason)
        self._problems[name] = problem


def _subscribe(tables: Collection[str], programs: Collection[str]) -> Changes | None:
    try:
        return Changes(tables, programs)
    except OSError as e:
        log.warning("nftables: not watched", error=str(e), needs="nfnetlink, AF_NETLINK and CAP_NET_ADMIN")
        return None
