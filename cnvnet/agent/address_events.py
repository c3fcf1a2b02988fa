"""Kubernetes events about addresses, as the agent writes them for the calls that it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cnvnet.cni.errors import CNIError
from cnvnet.kube.api import Api
from cnvnet.kube.events import EventWriter, KubernetesEvent
from cnvnet.resident import log
from cnvnet.vm.subjects import Lookup

COMPONENT: Final = "cnvnet-agent"
# Seconds for events that still wait at the end.
_LAST: Final = 2.0
# Seconds between two lines about events that could not be written: what hinders one hinders others.
_PAUSE: Final = 600.0


class AddressEvents:
    """Writes them in a thread of its own: no call waits, and an event that is lost harms none."""

    def __init__(self, lookup: Lookup, dropped: Callable[[], None]) -> None:
        """`dropped` counts the events that could not be written."""
        self._lookup = lookup
        self._observe = dropped
        self._writer = EventWriter(self._api, COMPONENT, self._dropped)
        # When a line was last logged, on time.monotonic()'s clock.
        self._logged = -_PAUSE

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    def stop(self) -> None:
        """Write what waits, for a moment."""
        self._writer.stop(_LAST)

    def put(self, event: KubernetesEvent) -> None:
        """An event of a call."""
        self._writer.put(event)

    def _api(self) -> Api | None:
        try:
            directory = self._lookup()
        except CNIError as e:
            self._dropped(e.msg)
            return None
        return directory.api if directory is not None else None

    def _dropped(self, why: str) -> None:
        self._observe()
        now = time.monotonic()
        if now - self._logged >= _PAUSE:
            self._logged = now
            log.warning("events are not written", error=why)
