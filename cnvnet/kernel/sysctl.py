"""Sysctls of one namespace, read and written below /proc/sys."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, NamedTuple, Protocol

from cnvnet.kernel.netns import Netns, entered

# These two change others along with them: `forwarding` of every link and of new ones (the kernel's
# inet_forward_change and addrconf_forward_change), even when they are set to the value they have.
IPV4_FORWARDING: Final = "net/ipv4/ip_forward"
IPV6_FORWARDING: Final = "net/ipv6/conf/all/forwarding"
FORWARDING: Final = (IPV4_FORWARDING, IPV6_FORWARDING)

_ROOT: Final = "/proc/sys/"
# include/uapi/linux/mount.h: MS_NOSUID, MS_NODEV, MS_NOEXEC, which a container's /proc has and keeps.
_RESTRICTED: Final = 0x2 | 0x4 | 0x8


def ensure_writable() -> bool:
    """Whether /proc/sys had to be mounted anew to be writable.

    Containers that are not privileged have it read-only. Raises OSError: mounting takes CAP_SYS_ADMIN.
    """
    if not os.statvfs(_ROOT).f_flag & os.ST_RDONLY:
        return False
    from cnvnet.kernel.syscalls import remount  # loads ctypes

    remount(_ROOT, _RESTRICTED)
    return True


class Sysctls(Protocol):
    """The sysctls of one namespace by their path below /proc/sys, as `net/ipv4/conf/eth0/arp_notify`.

    `get` is None where there is no such key; `set` raises KernelError (ENOENT, EINVAL, EACCES).
    """

    def get(self, key: str) -> str | None:
        """A value without its line end, None where there is no such key. OSError."""
        ...

    def set(self, key: str, value: str) -> None:
        """Write a value. KernelError."""
        ...


class Setting(NamedTuple):
    """A sysctl to set."""

    key: str
    value: str
    # Whether the caller cannot do without it: one that is not required may be missing or refused.
    required: bool = True


def apply(sysctls: Sysctls, settings: Iterable[Setting]) -> None:
    """Sets them, in order. Raises OSError for a required one that neither has the value nor takes it.

    Forwarding that is on already is not written again, because that would end the exceptions of single
    links. Of the others a write costs no more than a look, which is only taken when the write fails.
    """
    for setting in settings:
        if setting.key in FORWARDING and sysctls.get(setting.key) == setting.value:
            continue
        try:
            sysctls.set(setting.key, setting.value)
        except OSError:
            if setting.required and sysctls.get(setting.key) != setting.value:
                raise


class NamespaceSysctls:
    """The sysctls of a namespace (None: the caller's).

    /proc/sys/net shows the one the calling thread is in.
    """

    def __init__(self, netns: Netns | None = None) -> None:
        self._netns = netns

    def get(self, key: str) -> str | None:
        """The value without its line end, None where this kernel or namespace has no such key.

        OSError otherwise.
        """
        with self._inside():
            try:
                with open(_path(key), "rb", buffering=0) as file:
                    return (file.read() or b"").decode().strip()
            except FileNotFoundError:
                return None

    def set(self, key: str, value: str) -> None:
        """Writes it.

        OSError that names key and value: ENOENT when there is no such key, EINVAL for a bad value.
        """
        with self._inside():
            try:
                # O_CREAT would turn a missing key into EACCES.
                fd = os.open(_path(key), os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, value.encode())
                finally:
                    os.close(fd)
            except OSError as e:
                number = e.errno or errno.EIO
                raise OSError(number, f"sysctl {key}={value}: {os.strerror(number).lower()}") from e

    def _inside(self) -> AbstractContextManager[None]:
        return entered(self._netns) if self._netns is not None else nullcontext()


def _path(key: str) -> str:
    # A tenant may choose an interface's name, which becomes part of the path.
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"sysctl {key!r}: not a path below /proc/sys")
    return _ROOT + key
