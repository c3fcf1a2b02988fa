"""Puts other threads in the place of those that have lost their way."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from cnvnet.agent import log
from cnvnet.kernel.netns import LostNamespace


class Foreman:
    """A thread begins in the namespace of the one that starts it: this one never leaves the agent's own."""

    def __init__(self) -> None:
        self._wanted: SimpleQueue[threading.Thread] = SimpleQueue()

    def start(self) -> None:
        # It has nothing to end, and the process does not wait for it.
        threading.Thread(target=self._run, name="foreman", daemon=True).start()

    def replace(self, lost: LostNamespace, other: threading.Thread) -> None:
        """The calling thread is stuck in a foreign namespace, does nothing any more and has to end now."""
        log.error("a thread cannot leave a foreign namespace: another takes its place", error=str(lost))
        self._wanted.put(other)

    def _run(self) -> None:
        while True:
            self._wanted.get().start()
