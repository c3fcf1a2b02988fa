"""Changing an interface, and reading what another ADD has kept of one."""

from __future__ import annotations

import errno
from typing import Any, cast

import pytest

from cnvnet.kernel.links import ChangeLink, Link
from cnvnet.kernel.stack import KernelError, Stack
from cnvnet.plugins.tuning import state
from cnvnet.plugins.tuning.state import LinkState

MAC, NEW_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


class BusyStack:
    """A stack whose link takes a MAC address only while it is down."""

    def __init__(self) -> None:
        self.up = True
        self.mac = MAC

    def apply(self, *operations: ChangeLink) -> None:
        for each in operations:
            if each.mac is not None and self.up:
                raise KernelError(errno.EBUSY, "device or resource busy")
            self.mac = each.mac or self.mac
            self.up = self.up if each.up is None else each.up


def test_a_link_that_is_busy_is_set_down_for_its_mac() -> None:
    pod = BusyStack()
    link = Link(1, "eth0", "bond", MAC, 1500, True, "UP")
    state.change(cast("Stack", pod), link, LinkState(mac=NEW_MAC))
    assert (pod.mac, pod.up) == (NEW_MAC, True)


@pytest.mark.parametrize(
    ("document", "read"),
    [
        ({}, LinkState()),
        ({"mac": MAC, "promisc": False, "mtu": 1500, "allmulti": True, "txQLen": 0}, None),
        ({"mac": 5, "promisc": 1, "mtu": True, "allmulti": "x", "txQLen": None}, LinkState()),
    ],
)
def test_what_was_kept_is_read(document: dict[str, Any], read: LinkState | None) -> None:
    assert state.parse(document) == (read or LinkState(MAC, False, 1500, True, 0))
