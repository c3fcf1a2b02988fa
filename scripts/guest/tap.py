"""How QEMU comes by its tap: it opens the device itself, as KubeVirt's does, or is handed a descriptor.

The tap has an owner, but /dev/net/tun has a mode, too. In a pod any user may open it; on a machine without
udev it is root's (0600), so QEMU gets a /dev/net of its own. Where no device node can be made, as in most
containers, the tap is opened for it, as libvirt does; the tap's owner is then not asked.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from functools import cache
from typing import Final

from cnvnet.kernel import netns

DEVICE: Final = "/dev/net/tun"
# Runs the rest of the command line. Its mount namespace ends with it.
WITH_OWN_DEVICE: Final = (
    *("unshare", "--mount", "--propagation=slave", "sh", "-ec"),
    f'mount -t tmpfs -o mode=755 net /dev/net; mknod -m 666 {DEVICE} c 10 200; exec "$@"',
    "sh",
)
# include/uapi/linux/if_tun.h
VNET_HDR: Final = 0x4000
MULTI_QUEUE: Final = 0x0100
_TAP_NO_PI: Final = 0x1002
_TUNSETIFF: Final = 0x400454CA


@cache
def can_have_own_device() -> bool:
    """Whether a device node can be made and opened here."""
    tried = subprocess.run([*WITH_OWN_DEVICE, "sh", "-c", f": <>{DEVICE}"], capture_output=True, check=False)
    return tried.returncode == 0


def open_tap(path: str, name: str, flags: int = 0) -> int:
    """A queue of a tap of the network namespace at `path`; the tap is made if it is not there.

    The descriptor stays where it was opened. RuntimeError with the remedy if it cannot be.
    """
    with netns.opened(path) as opened, netns.entered(opened):
        try:
            fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as e:
            raise RuntimeError(with_remedy(f"could not open {DEVICE}: {e.strerror}")) from e
        try:
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("=16sH22x", name.encode(), _TAP_NO_PI | flags))
        except OSError as e:
            os.close(fd)
            raise RuntimeError(f"could not configure {DEVICE} ({name}): {e.strerror}") from e
    return fd


def with_remedy(message: str) -> str:
    """The same, QEMU's or ours, and what to do if the device could not be opened."""
    if f"could not open {DEVICE}: No such" in message:
        return f"{message.rstrip()} (modprobe tun)"
    if f"could not open {DEVICE}" in message:
        return (
            f"{message.rstrip()} (chmod 666 {DEVICE}; a container needs it as a device: --device {DEVICE})"
        )
    return message
