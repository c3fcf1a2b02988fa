"""The thread of a process that stays which deletes retired links (cnvnet.kernel.retired)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from cnvnet.kernel.retired import sweep
from cnvnet.kernel.stack import Kernel

# Links gather until nobody has retired one for a moment, but not for longer than this: a burst of deletions
# becomes one message or a few, each of which holds up whoever changes links.
_QUIET: Final = 0.002
_GATHERING: Final = 0.2
# After a refusal, which nothing but a lack of memory explains.
_PAUSE: Final = 1.0


class ReaperThread:
    """Deletes in the network namespace in which it is made, from then until `close`.

    It begins with what a killed process has left. `report` is told of a deletion that fails; it is tried
    again until it does not.
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
            # Cleared before the deed: a link retired meanwhile is taken along or asks again.
            self._wanted.clear()
            # Not woken by each of them, which would take the interpreter from the call that retires it.
            self._closing.wait(_QUIET)

    def _sweep(self) -> bool:
        try:
            with self._kernel.stack() as host:
                sweep(host)
        except Exception as e:  # noqa: BLE001 -- whatever it is, links that are retired later are to be deleted
            problem = f"retired links cannot be deleted: {e}"
            if problem != self._problem:
                self._report(problem)
            self._problem = problem
            return False
        self._problem = ""
        return True
