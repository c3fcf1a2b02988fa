"""Opening paths below another process' root, which may be in another mount namespace."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import cache
from typing import Final

# openat2(2), Linux 5.6; include/uapi/linux/openat2.h. The number is the same on all machines but Alpha.
_OPENAT2: Final = 437
_RESOLVE_IN_ROOT: Final = 0x10
# A directory was renamed while the kernel was on its way.
_ATTEMPTS: Final = 5


def open_in(root: int, path: str, flags: int) -> int:
    """`path` as it is for a process whose `/` is the directory `root`: mounts, `..` and absolute links too.

    Raises OSError. It may end in one of procfs' links that are no text, as /proc/PID/ns/net does.
    """
    try:
        return _openat2(root, path, flags)
    except OSError as e:
        if e.errno != errno.EXDEV:
            raise
    # The kernel follows such a link nowhere below a root, but its folder is one.
    folder = _openat2(root, os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    try:
        return os.open(os.path.basename(path), flags | os.O_CLOEXEC, dir_fd=folder)
    except OSError as e:
        raise OSError(e.errno, e.strerror, path) from e
    finally:
        os.close(folder)


def _openat2(root: int, path: str, flags: int) -> int:
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    fd, number = -1, errno.EAGAIN
    for _ in range(_ATTEMPTS):
        fd, number = _function()(root, encoded, flags | os.O_CLOEXEC)
        if number != errno.EAGAIN:
            break
    if number:
        raise OSError(number, os.strerror(number), path)
    return fd


@cache
def _function() -> Callable[[int, bytes, int], tuple[int, int]]:
    """openat2 for one root: the descriptor, and its errno."""
    import ctypes

    # PyDLL keeps the interpreter lock: no other thread runs Python between the call and its errno.
    syscall = ctypes.PyDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long

    def call(root: int, path: bytes, flags: int) -> tuple[int, int]:
        how = (ctypes.c_uint64 * 3)(flags, 0, _RESOLVE_IN_ROOT)
        fd: int = syscall(_OPENAT2, root, path, how, ctypes.c_size_t(ctypes.sizeof(how)))
        return fd, ctypes.get_errno() if fd < 0 else 0

    return call
