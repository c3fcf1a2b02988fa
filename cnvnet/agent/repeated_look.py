"""A thread that looks at something again and again until it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cnvnet.cni.errors import CNIError


class RepeatedLook:
    """The thread; `period` seconds lie between the end of a look and the next one."""

    def __init__(
        self, name: str, look: Callable[[], None], report: Callable[[str], None], period: float
    ) -> None:
        """`report` gets the text of what a look has raised."""
        self._look = look
        self._report = report
        self._period = period
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin at once: something may have been left by the agent before this one."""
        self._thread.start()

    def stop(self) -> None:
        """End it; a request that is under way ends with the process."""
        self._end.set()

    def work(self) -> None:
        """One look."""
        try:
            self._look()
        except CNIError as e:
            self._report(e.msg)
        except Exception as e:  # noqa: BLE001 -- what one look meets must not end all later ones
            self._report(f"{type(e).__name__}: {e}")

    def _run(self) -> None:
        while True:
            self.work()
            if self._end.wait(self._period):
                return
