"""System calls that Python 3.11 has no function for, called through the C library.

Each acts on the calling thread. The library is loaded with the first call: `ctypes` takes 1.7 ms to import.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ctypes


# The number of openat2(2), Linux 5.6, on all machines but Alpha.
_OPENAT2: Final = 437
# include/uapi/linux/mount.h
_MS_REMOUNT: Final = 0x20
_MS_BIND: Final = 0x1000


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace of `fd`, of this CLONE_NEW* kind; OSError as for setns."""
    if _library().setns(fd, kind) != 0:
        raise _failure("setns")


def unshare(what: int) -> None:
    """Give the calling thread this (CLONE_*) for itself; OSError as in the manual."""
    if _library().unshare(what) != 0:
        raise _failure("unshare")


def remount(path: str, flags: int) -> None:
    """Change the mount at `path`, and no other of its file system, to these MS_*. OSError as for mount."""
    import ctypes

    wanted = ctypes.c_ulong(flags | _MS_REMOUNT | _MS_BIND)
    if _library().mount(None, os.fsencode(path), None, wanted, None) != 0:
        raise _failure(f"mount {path}")


def openat2(folder: int, path: str, flags: int, resolve: int) -> int:
    """The descriptor of `path` below `folder`, resolved by the rules RESOLVE_*. OSError as in the manual."""
    import ctypes

    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    how = (ctypes.c_uint64 * 3)(flags, 0, resolve)  # struct open_how: flags, mode, resolve
    fd: int = _syscall()(_OPENAT2, folder, encoded, how, ctypes.c_size_t(ctypes.sizeof(how)))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def _failure(call: str) -> OSError:
    import ctypes

    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number).lower()}")


@cache
def _syscall() -> Callable[..., int]:
    import ctypes

    function = _library().syscall
    function.restype = ctypes.c_long
    return function


@cache
def _library() -> ctypes.PyDLL:
    import ctypes

    # PyDLL keeps the interpreter lock: no other thread runs Python between the call and its errno.
    return ctypes.PyDLL(None, use_errno=True)
