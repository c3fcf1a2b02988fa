"""Leases of this node whose network has become the cluster's: a thread hands them over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cnvnet.agent.repeated_look import RepeatedLook
from cnvnet.resident import log

if TYPE_CHECKING:
    from cnvnet.ipam.static_ip.adoption import Adopted

# Seconds between two looks. A node without leases of its own asks no API.
_PERIOD: Final = 30.0


class LeaseAdoption(RepeatedLook):
    """The thread. `adopt` is static-ip's."""

    def __init__(self, adopt: Callable[[], Adopted | None], period: float = _PERIOD) -> None:
        super().__init__("lease-adoption", self._hand_over, lambda text: self._warn({text}), period)
        self._adopt = adopt
        # What was last logged: what goes on is one line.
        self._trouble: frozenset[str] = frozenset()

    def _hand_over(self) -> None:
        adopted = self._adopt()
        for lease in adopted.leases if adopted is not None else ():
            ips = ", ".join(map(str, lease.ips))
            log.info("lease is the cluster's now", network=lease.key.network, lease=str(lease.key), ips=ips)
        self._warn(set(adopted.left) if adopted is not None else set())

    def _warn(self, trouble: set[str]) -> None:
        for text in sorted(trouble - self._trouble):
            log.warning("a lease of this node is not the cluster's yet", error=text)
        self._trouble = frozenset(trouble)
