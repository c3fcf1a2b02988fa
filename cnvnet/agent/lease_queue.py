"""What DEL and GC could not write to the Kubernetes API, and killed ADDs: a thread works it off."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cnvnet.agent.repeated_look import RepeatedLook
from cnvnet.resident import log

if TYPE_CHECKING:
    from cnvnet.ipam.store.kubernetes import Drained

# Seconds between two looks at the hold files: addresses are free soon when the API is back. A look asks it
# only where something is due; with 250 pods it takes 11 ms.
_PERIOD: Final = 5.0


class LeaseQueue(RepeatedLook):
    """The thread. `drain` is static-ip's."""

    def __init__(self, drain: Callable[[], Drained | None], period: float = _PERIOD) -> None:
        super().__init__("lease-queue", self._work_off, self._complain, period)
        self._drain = drain
        # What was last logged: an API that is away is one line.
        self._trouble = ""

    def _work_off(self) -> None:
        drained = self._drain()
        if drained is None:
            return
        if drained.done:
            log.info("holds of ended pods released", count=len(drained.done))
        self._complain(drained.left[0] if drained.left else "", len(drained.left))

    def _complain(self, trouble: str, count: int = 1) -> None:
        if trouble and trouble != self._trouble:
            log.error("holds of ended pods wait for the Kubernetes API", count=count, error=trouble)
        self._trouble = trouble
