"""A tap as `ip` sees it: what QEMU's open() depends on."""

from __future__ import annotations

import fcntl
import os
import struct

import pytest

from cnvnet.kernel import netns
from cnvnet.kernel.stack import LinuxKernel
from cnvnet.kernel.tap import CreateTap
from tests.harness import Sandbox, namespace

TUNSETIFF = 0x400454CA
TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000
MULTI_QUEUE = 0x0100


@pytest.mark.parametrize("multi_queue", [False, True], ids=["one queue", "multi-queue"])
def test_a_tap_belongs_to_its_owner_and_opens_as_qemu_opens_it(multi_queue: bool) -> None:
    kernel = LinuxKernel()
    with namespace() as path, kernel.netns(path) as pod, kernel.stack(pod) as stack:
        stack.apply(CreateTap("tap0", owner=54320, group=54321, multi_queue=multi_queue))
        shown = Sandbox(path).link("tap0")
        assert shown is not None
        data = shown["linkinfo"]["info_data"]
        assert (data["type"], data["user"], data["group"]) == ("tap", 54320, 54321)
        assert (data["persist"], data["multi_queue"]) == (True, multi_queue)
        with netns.entered(pod):
            right, wrong = (os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC) for _ in range(2))
        flags = [
            TAP_NO_PI_VNET_HDR | (MULTI_QUEUE if queues else 0) for queues in (multi_queue, not multi_queue)
        ]
        try:
            fcntl.ioctl(right, TUNSETIFF, struct.pack("=16sH22x", b"tap0", flags[0]))
            with pytest.raises(OSError, match="Invalid argument"):
                fcntl.ioctl(wrong, TUNSETIFF, struct.pack("=16sH22x", b"tap0", flags[1]))
        finally:
            os.close(right)
            os.close(wrong)
