"""Replaces threads that cannot leave a foreign namespace."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from cnvnet.kernel.netns import LostNamespace
from cnvnet.resident import log


class Supervisor:
    """A thread begins in the namespace of the one that starts it: this one never leaves the agent's own."""

    def __init__(self) -> None:
        self._wanted: SimpleQueue[threading.Thread] = SimpleQueue()

    def start(self) -> None:
        """Start the thread that starts the others; `respawn` may be called before."""
        # A daemon: it holds nothing that has to be closed, and the process does not wait for it.
        threading.Thread(target=self._run, name="supervisor", daemon=True).start()

    def respawn(self, lost: LostNamespace, other: threading.Thread) -> None:
        """The calling thread is stuck in a foreign namespace, does nothing any more and has to end now."""
        log.error("a thread cannot leave a foreign namespace: another one replaces it", error=str(lost))
        self._wanted.put(other)

    def _run(self) -> None:
        while True:
            self._wanted.get().start()
