"""The demo with its virtual machines; tests/functional/test_scripts.py has the one without."""

from __future__ import annotations

import pytest

from tests.functional.test_scripts import (
    OWN_DEV_NET,
    assert_all_steps_shown,
    assert_nothing_is_left_when_killed,
    run_script,
    traces,
)

# As on a machine without udev, and where no device node can be made, as in most containers.
ROOTS_DEVICE = (*OWN_DEV_NET, "mknod -m 600 tun c 10 200")
NO_MKNOD = ("setpriv", "--bounding-set=-mknod", "--inh-caps=-mknod")


@pytest.mark.parametrize("within", [ROOTS_DEVICE, (*ROOTS_DEVICE, *NO_MKNOD)], ids=["opened", "handed"])
def test_the_demo_boots_two_virtual_machines_and_leaves_nothing(within: tuple[str, ...]) -> None:
    before = traces()
    output = run_script("demo", within=within)
    assert output.count("QEMU, Linux and busybox") == 3
    assert_all_steps_shown(output)
    assert traces() == before


def test_a_demo_that_is_killed_takes_its_virtual_machines_along() -> None:
    assert_nothing_is_left_when_killed(until="vm-a# ip route")
