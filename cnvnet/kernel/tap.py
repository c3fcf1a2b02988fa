"""Persistent tap devices for QEMU, made the way KubeVirt makes its own.

Its way is in cmd/virt-chroot/tap-device-maker.go.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final, NamedTuple

_DEVICE: Final = "/dev/net/tun"
_SELINUX: Final = "/sys/fs/selinux"
_EXEC_CONTEXT: Final = "/proc/thread-self/attr/exec"
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
# MAX_MTU of the kernel's tun driver: 65,535 less a header of 14 bytes.
MAX_MTU: Final = 65521
# struct ifreq, 40 bytes: the name, and a union of which TUNSETIFF and SIOCGIFFLAGS use the flags.
IFREQ: Final = struct.Struct("=16sH22x")


class CreateTap(NamedTuple):
    """A persistent tap that the user `owner` and the group `group` may open; EBUSY when the name is taken.

    QEMU must open it with as many queues as it was made for: `multi_queue` and a single-queue QEMU do not
    match, nor the other way round (EINVAL). VNET_HDR, offloads and vhost are QEMU's to choose. The MAC is
    the kernel's, the link down. Made in `selinux_context`, QEMU's own, it can be opened by a QEMU that
    SELinux confines: with the plugin's own context it could not (relabelfrom tun_socket).
    """

    name: str
    owner: int = 0
    group: int = 0
    multi_queue: bool = False
    selinux_context: str = ""


class TapUnavailable(OSError):
    """This node lacks what a tap needs; the text says what."""

    def __str__(self) -> str:
        return str(self.strerror)


def ensure_available(selinux_context: str = "") -> None:
    """Raises TapUnavailable when no tap could be made here, or none in this context."""
    if not os.path.exists(_DEVICE):
        raise TapUnavailable(errno.ENOENT, f"{_DEVICE} is missing (modprobe tun)")
    if selinux_context and not knows_selinux():
        raise TapUnavailable(
            errno.EOPNOTSUPP, f"context {selinux_context}: SELinux does not run on this node"
        )


def knows_selinux() -> bool:
    """Whether SELinux runs on this node."""
    return os.path.isdir(_SELINUX)


def create(wanted: CreateTap) -> None:
    """Makes the tap in the calling thread's namespace; OSError. A half-made one goes away by itself."""
    if wanted.selinux_context:
        _create_in_context(wanted)
    else:
        _create(wanted)


def _create(wanted: CreateTap) -> None:
    # KubeVirt asks exclusively (EBUSY when the name is taken) for single-queue taps only; without it a
    # second call would add a queue to a tap that another program made.
    mode = _IFF_MULTI_QUEUE | _IFF_NO_PI if wanted.multi_queue else _IFF_ONE_QUEUE
    flags = _IFF_TAP | _IFF_TUN_EXCL | mode
    fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, IFREQ.pack(wanted.name.encode(), flags))
        fcntl.ioctl(fd, _TUNSETOWNER, wanted.owner)
        fcntl.ioctl(fd, _TUNSETGROUP, wanted.group)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)  # without TUNSETPERSIST this deletes the link


def _create_in_context(wanted: CreateTap) -> None:
    """The same in a child: a device gets the context of the process that makes it, for good."""
    ensure_available(wanted.selinux_context)
    _set_exec_context(wanted.selinux_context)
    try:
        run_child(wanted)
    finally:
        _set_exec_context("")


def run_child(wanted: CreateTap) -> None:
    """Makes the tap in a program of its own, which SELinux can give another context. OSError."""
    import subprocess
    import sys

    arguments = [wanted.name, str(wanted.owner), str(wanted.group), str(int(wanted.multi_queue))]
    child = [sys.executable, "-I", "-S", "-c", _CHILD, os.path.abspath(__file__), *arguments]
    done = subprocess.run(child, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        printed = done.stdout.decode(errors="replace")
        number = int(printed) if printed.isdigit() else errno.EIO
        raise OSError(number, os.strerror(number))


# This file alone, without the package around it.
_CHILD: Final = """
import runpy, sys
own = runpy.run_path(sys.argv[1])
try:
    own["create"](own["CreateTap"](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "1"))
except OSError as e:
    sys.stdout.write(str(e.errno))
    sys.exit(1)
"""


def _set_exec_context(context: str) -> None:
    """What the next program that this thread starts runs as; "" for SELinux's own choice."""
    fd = os.open(_EXEC_CONTEXT, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, context.encode() or b"\0")
    finally:
        os.close(fd)
