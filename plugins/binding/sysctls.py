"""Sysctls of a pod's namespace that a binding sets, and restores as they were."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cnvnet.kernel.stack import Stack
from cnvnet.kernel.sysctl import FORWARDING, IPV4_FORWARDING, Setting


class Change(NamedTuple):
    """A sysctl that was `before` and is `value` now; `value` "" is one that changes with another."""

    key: str
    before: str
    value: str


def changes(stack: Stack, settings: Iterable[Setting], others: Iterable[Change] = ()) -> tuple[Change, ...]:
    """What setting them will change, in their order: to be written down before it is done.

    What `others` have changed to the same value already counts as well: the last binding restores it.
    """
    theirs = {change.key: change for change in others}
    planned: list[Change] = []
    for setting in settings:
        before = stack.sysctls.get(setting.key)
        if before is not None and before != setting.value:
            planned += _side_effects(stack, setting.key)
            planned.append(Change(setting.key, before, setting.value))
        elif setting.key in theirs and theirs[setting.key].value == setting.value:
            planned.append(theirs[setting.key])
    return tuple(planned)


def unshared(changed: Iterable[Change], others: Iterable[Change]) -> tuple[Change, ...]:
    """Those that no other binding needs as they are."""
    theirs = {change.key for change in others}
    return tuple(change for change in changed if change.key not in theirs)


def restore(stack: Stack, changed: Iterable[Change]) -> None:
    """Restores those that still have the value that was set, the last first. Raises KernelError."""
    for change in reversed(tuple(changed)):
        now = stack.sysctls.get(change.key)
        if now is not None and now != change.before and now == (change.value or now):
            stack.sysctls.set(change.key, change.before)


def _side_effects(stack: Stack, key: str) -> list[Change]:
    """What forwarding takes along (inet_forward_change, addrconf_forward_change), as far as it differs.

    They stand before the change itself, so that they are restored after it.
    """
    if key not in FORWARDING:
        return []
    family = "ipv4" if key == IPV4_FORWARDING else "ipv6"
    keys = [f"net/{family}/conf/{link.name}/forwarding" for link in stack.links()]
    keys.append(f"net/{family}/conf/default/forwarding")
    if family == "ipv4":
        keys.append("net/ipv4/conf/all/accept_redirects")
    values = [(key, stack.sysctls.get(key)) for key in keys]
    return [Change(key, value, "") for key, value in values if value is not None]
