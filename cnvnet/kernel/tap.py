"""Persistent tap devices for QEMU, made the way KubeVirt makes its own
(cmd/virt-chroot/tap-device-maker.go).
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final, NamedTuple

_DEVICE: Final = "/dev/net/tun"
# include/uapi/linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOWNER: Final = 0x400454CC
_TUNSETGROUP: Final = 0x400454CE
_IFF_TAP: Final = 0x0002
_IFF_MULTI_QUEUE: Final = 0x0100
_IFF_NO_PI: Final = 0x1000
_IFF_ONE_QUEUE: Final = 0x2000
_IFF_TUN_EXCL: Final = 0x8000
_IFREQ: Final = struct.Struct("=16sH22x")


class CreateTap(NamedTuple):
    """A persistent tap that the user `owner` and the group `group` may open; EBUSY when the name is taken.

    QEMU must open it with as many queues as it was made for: `multi_queue` and a single-queue QEMU do not
    match, nor the other way round (EINVAL). VNET_HDR, offloads and vhost are QEMU's to choose. The MAC is
    the kernel's, the link down.
    """

    name: str
    owner: int = 0
    group: int = 0
    multi_queue: bool = False


def create(wanted: CreateTap) -> None:
    """Makes the tap in the calling thread's namespace; OSError. A half-made one goes away by itself."""
    # KubeVirt asks exclusively (EBUSY when the name is taken) for single-queue taps only; without it a
    # second call would add a queue to somebody else's tap.
    mode = _IFF_MULTI_QUEUE | _IFF_NO_PI if wanted.multi_queue else _IFF_ONE_QUEUE
    flags = _IFF_TAP | _IFF_TUN_EXCL | mode
    fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(wanted.name.encode(), flags))
        fcntl.ioctl(fd, _TUNSETOWNER, wanted.owner)
        fcntl.ioctl(fd, _TUNSETGROUP, wanted.group)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)  # without TUNSETPERSIST this deletes the link
