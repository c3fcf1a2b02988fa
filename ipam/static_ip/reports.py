"""What the process that runs the calls learns: ADDs that get no address, and events about addresses."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request
from cnvnet.ipam.allocation import Allocation
from cnvnet.ipam.static_ip.config import Config
from cnvnet.ipam.store.protocol import LeaseChange
from cnvnet.vm import identity
from cnvnet.vm.launcher import Subject

if TYPE_CHECKING:
    # Imported where a process writes events, which takes a thread.
    from cnvnet.kube.events import KubernetesEvent

OnRefusal = Callable[[str, CNIError], None]
OnEvent = Callable[["KubernetesEvent"], None]


class Reports:
    """Each of the two is None where the process wants no such report; neither waits for anything."""

    def __init__(self, on_refusal: OnRefusal | None, on_event: OnEvent | None) -> None:
        self._on_refusal = on_refusal
        self._on_event = on_event

    @contextmanager
    def adding(self, request: Request, subject: Subject | None = None) -> Generator[list[Subject]]:
        """An ADD that gets no address is reported; once it is known which VM it is for, the list has it."""
        known = [subject] if subject is not None else []
        try:
            yield known
        except CNIError as e:
            if self._on_refusal is not None:
                self._on_refusal(request.name, e)
            if self._on_event is not None:
                from cnvnet.ipam.static_ip import events

                pod = identity.named(request.fields, request.args).pod
                self._say(events.of_refusal(pod, known[0] if known else None, request.name, e))
            raise

    def allocated(self, config: Config, allocation: Allocation) -> None:
        """An ADD has got this."""
        if self._on_event is not None and allocation.changes:
            from cnvnet.ipam.static_ip import events

            self._say(events.of_allocation(config.pod, config.subject, allocation))

    def ended(self, changes: tuple[LeaseChange, ...]) -> None:
        """A DEL or GC has changed this."""
        if self._on_event is not None and changes:
            from cnvnet.ipam.static_ip import events

            self._say(events.of_release(changes))

    def _say(self, events: Iterable[KubernetesEvent]) -> None:
        for each in events:
            if self._on_event is not None:
                self._on_event(each)
