from __future__ import annotations

import pytest

from scripts.guest.tap import with_remedy

CHMOD = "(chmod 666 /dev/net/tun; a container needs it as a device: --device /dev/net/tun)"


@pytest.mark.parametrize(
    ("complaint", "remedy"),
    [
        ("could not open /dev/net/tun: Permission denied", CHMOD),
        ("could not open /dev/net/tun: Operation not permitted", CHMOD),
        ("could not open /dev/net/tun: No such file or directory", "(modprobe tun)"),
    ],
)
def test_a_device_that_cannot_be_opened_has_a_remedy(complaint: str, remedy: str) -> None:
    # QEMU's message begins with the option and ends with a line break.
    option = "qemu-system-x86_64: -netdev tap,id=tap,ifname=tap0: "
    assert with_remedy(f"{option}{complaint}\n") == f"{option}{complaint} {remedy}"
    assert with_remedy(complaint) == f"{complaint} {remedy}"


def test_another_complaint_stays_as_it_is() -> None:
    complaint = "could not configure /dev/net/tun (tap0): Operation not permitted"
    assert with_remedy(complaint) == complaint
