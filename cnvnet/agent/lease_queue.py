"""What DEL and GC could not write to the Kubernetes API, and killed ADDs: a thread works it off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cnvnet.cni.errors import CNIError
from cnvnet.resident import log

if TYPE_CHECKING:
    from cnvnet.ipam.store.kubernetes import Drained

# Seconds between two looks at the hold files: addresses are free soon when the API is back. A look asks it
# only where something is due; with 250 pods it takes 11 ms.
_PERIOD: Final = 5.0


class LeaseQueue:
    """The thread. `drain` is static-ip's."""

    def __init__(self, drain: Callable[[], Drained | None], period: float = _PERIOD) -> None:
        self._drain = drain
        self._period = period
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-queue", daemon=True)
        # What was last logged: an API that is away is one line.
        self._trouble = ""

    def start(self) -> None:
        """Begin at once: what was left by a boot before this one."""
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
            drained = self._drain()
        except CNIError as e:
            self._report(e.msg)
            return
        except Exception as e:  # noqa: BLE001 -- what one look meets must not end all later ones
            self._report(f"{type(e).__name__}: {e}")
            return
        if drained is None:
            return
        if drained.done:
            log.info("holds of ended pods released", count=len(drained.done))
        self._report(drained.left[0] if drained.left else "", len(drained.left))

    def _report(self, trouble: str, count: int = 1) -> None:
        if trouble and trouble != self._trouble:
            log.error("holds of ended pods wait for the Kubernetes API", count=count, error=trouble)
        self._trouble = trouble
