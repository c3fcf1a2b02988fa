"""Waiting for the kernel: a link that comes up, addresses that pass duplicate address detection."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from cnvnet.kernel.addresses import Address
from cnvnet.kernel.links import Link
from cnvnet.kernel.stack import Stack

# Seconds. A notification of the kernel ends the wait; this is for one that got lost.
_LONGEST_NAP: Final = 1.0

T = TypeVar("T")


def wait_for_link(stack: Stack, ifindex: int, *, seconds: float) -> Link | None:
    """The link once its operstate is UP, or as it is when the time is over; None when it is gone."""
    return _until(
        stack, lambda: stack.link(ifindex), lambda link: link is None or link.operstate == "UP", seconds
    )


def wait_for_addresses(stack: Stack, ifindex: int, *, seconds: float) -> list[Address]:
    """The link's addresses once none of them is tentative, or as they are when the time is over.

    One that failed duplicate address detection (`dad_failed`) is waited for no longer.
    """
    return _until(stack, lambda: stack.addresses(ifindex), _settled, seconds)


def _settled(addresses: list[Address]) -> bool:
    return not any(address.tentative and not address.dad_failed for address in addresses)


def _until(stack: Stack, read: Callable[[], T], satisfied: Callable[[T], bool], seconds: float) -> T:
    state = read()
    if satisfied(state):
        return state
    left = seconds
    with stack.changes() as changes:
        while True:
            # Read again: a change before the subscription ends no wait.
            state = read()
            if satisfied(state) or left <= 0:
                return state
            nap = min(left, _LONGEST_NAP)
            started = time.monotonic()
            # A fake's wait takes no time: the intended length counts then.
            left -= time.monotonic() - started if changes.wait(nap) else nap
