"""Sysctls of one namespace, read and written below /proc/sys."""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager, nullcontext

from cnvnet.kernel.netns import Netns, entered

_ROOT = "/proc/sys/"


class NamespaceSysctls:
    """The sysctls of a namespace (None: the caller's): /proc/sys/net shows the one the calling thread is
    in.
    """

    def __init__(self, netns: Netns | None = None) -> None:
        self._netns = netns

    def get(self, key: str) -> str | None:
        """The value without its line end, None where this kernel or namespace has no such key; OSError
        otherwise.
        """
        with self._inside():
            try:
                with open(_path(key), "rb", buffering=0) as file:
                    return (file.read() or b"").decode().strip()
            except FileNotFoundError:
                return None

    def set(self, key: str, value: str) -> None:
        """Writes it. OSError that names key and value: ENOENT when there is no such key, EINVAL for a bad
        value.
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
    # Interface names are chosen by others and become part of the path.
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"sysctl {key!r}: not a path below /proc/sys")
    return _ROOT + key
