"""Opening paths below another process' root, which may be in another mount namespace."""

from __future__ import annotations

import errno
import os
from typing import Final

from cnvnet.kernel import syscalls

# include/uapi/linux/openat2.h
_RESOLVE_IN_ROOT: Final = 0x10
# openat2 answers EAGAIN when a directory was renamed while the kernel walked the path.
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
    flags |= os.O_CLOEXEC
    for _ in range(_ATTEMPTS - 1):
        try:
            return syscalls.openat2(root, path, flags, _RESOLVE_IN_ROOT)
        except BlockingIOError:
            continue
    return syscalls.openat2(root, path, flags, _RESOLVE_IN_ROOT)
