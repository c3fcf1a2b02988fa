"""The thread that deletes retired links in a resident process (cnvnet.kernel.deferred.retired)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from cnvnet.kernel.deferred.retired import sweep
from cnvnet.kernel.stack import Kernel

# Seconds. The reaper waits until no call has retired a link for _QUIET, at most for _GATHERING: a burst of
# deletions becomes one message or a few, each of which holds the RTNL against all other changes of links.
_QUIET: Final = 0.002
_GATHERING: Final = 0.2
# Seconds before the next attempt after a refusal, which only a lack of memory explains.
_PAUSE: Final = 1.0


class ReaperThread:
    """Deletes in the network namespace in which it is made, from then until `close`.

    It begins with what a killed process has left. A deletion that fails is passed to `report` and repeated
    until it succeeds.
    """

    def __init__(self, kernel: Kernel, report: Callable[[str], None]) -> None:
        self._kernel = kernel
        self._report = report
        self._problem = ""
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._wanted.set()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Tell the thread that there is something to delete."""
        self._wanted.set()

    def problems(self) -> list[str]:
        """Why retired links are still there."""
        if not self._thread.is_alive():
            return ["the reaper of retired links has ended"]
        return [self._problem] if self._problem else []

    def close(self) -> None:
        """Deletes what is left, and ends the thread."""
        self._closing.set()
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wanted.wait()
            self._gather()
            if not self._sweep() and not self._closing.wait(_PAUSE):
                self._wanted.set()
        self._sweep()

    def _gather(self) -> None:
        deadline = time.monotonic() + _GATHERING
        while self._wanted.is_set() and not self._closing.is_set() and time.monotonic() < deadline:
            # Cleared before the sweep: a link retired meanwhile is deleted too, or notifies again.
            self._wanted.clear()
            # Not `_wanted.wait`: a notified thread would take the GIL from the call that retires a link.
            self._closing.wait(_QUIET)

    def _sweep(self) -> bool:
        try:
            with self._kernel.stack() as host:
                sweep(host)
        except Exception as e:  # noqa: BLE001 -- whatever it is, links that are retired later must be deleted
            problem = f"retired links cannot be deleted: {e}"
            if problem != self._problem:
                self._report(problem)
            self._problem = problem
            return False
        self._problem = ""
        return True
