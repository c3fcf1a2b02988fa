"""Leases of this node whose network has become the cluster's: a thread hands them over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cnvnet.cni.errors import CNIError
from cnvnet.resident import log

if TYPE_CHECKING:
    from cnvnet.ipam.static_ip.adoption import Adopted

# Seconds between two looks. A node without leases of its own asks no API.
_PERIOD: Final = 30.0


class LeaseAdoption:
    """The thread. `adopt` is static-ip's."""

    def __init__(self, adopt: Callable[[], Adopted | None], period: float = _PERIOD) -> None:
        self._adopt = adopt
        self._period = period
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-adoption", daemon=True)
        # What was last logged: what goes on is one line.
        self._trouble: frozenset[str] = frozenset()

    def start(self) -> None:
        """Begin at once: the network may have changed while no agent ran."""
        self._thread.start()

    def stop(self) -> None:
        """End it; a request that is under way ends with the process."""
        self._end.set()

    def _run(self) -> None:
        while True:
            self.work()
            if self._end.wait(self._period):
                return

    def work(self) -> None:
        """One look."""
        try:
            adopted = self._adopt()
        except CNIError as e:
            self._report({e.msg})
            return
        except Exception as e:  # noqa: BLE001 -- what one look meets must not end all later ones
            self._report({f"{type(e).__name__}: {e}"})
            return
        for lease in adopted.leases if adopted is not None else ():
            ips = ", ".join(map(str, lease.ips))
            log.info("lease is the cluster's now", network=lease.key.network, lease=str(lease.key), ips=ips)
        self._report(set(adopted.left) if adopted is not None else set())

    def _report(self, trouble: set[str]) -> None:
        for text in sorted(trouble - self._trouble):
            log.warning("a lease of this node is not the cluster's yet", error=text)
        self._trouble = frozenset(trouble)
