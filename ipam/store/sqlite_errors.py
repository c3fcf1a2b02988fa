"""What can be wrong with the embedded store, as errors with the remedy."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from cnvnet.cni.errors import IO_FAILURE, TRY_AGAIN_LATER, CNIError
from cnvnet.ipam.store.protocol import LeasesLost

if TYPE_CHECKING:
    # Imported when a database is opened: 2 ms that VERSION and a refused configuration do not pay.
    import sqlite3


def unusable(name: str, e: OSError) -> CNIError:
    """What the file system says of a path of the store, code 5."""
    return CNIError(IO_FAILURE, f"{name}: {_reason(e.errno, e.strerror or str(e))}")


def lost(what: str) -> LeasesLost:
    """No database is left where leases were kept."""
    return LeasesLost(f"{what}, but leases were kept here", "starts an empty one")


def _reason(number: int | None, text: str) -> str:
    if number == errno.ENOSPC:
        return "the disk is full: make room there"
    if number == errno.EROFS:
        return (
            "the file system is read-only: remount it, or set ipam.dataDir to a folder that can be written"
        )
    if number in (errno.EACCES, errno.EPERM):
        return "no permission to write: run as root, or set ipam.dataDir to a folder that can be written"
    return f"{text[:1].lower()}{text[1:]}: set ipam.dataDir to a folder that can be written"


def locked_out(path: str, seconds: float) -> CNIError:
    """Another process has not released the lock for so many seconds, code 11."""
    text = f"{path}: another process has held it for {seconds:.0f} s (fuser -v shows which)"
    return CNIError(TRY_AGAIN_LATER, text)


def primary_code(e: sqlite3.Error) -> int:
    """SQLite's result code without what extends it."""
    # Extended codes have it in their low octet, a few errors of the module carry none: SQLITE_ERROR.
    return getattr(e, "sqlite_errorcode", 1) & 0xFF


def explained(name: str, e: sqlite3.Error, patience: float) -> CNIError:
    """What SQLite says, with what an operator can do about it: code 5, or 11 for a lock.

    `patience` is how many seconds SQLite has waited for the lock.
    """
    import sqlite3

    code = primary_code(e)
    if code == sqlite3.SQLITE_FULL:
        return CNIError(IO_FAILURE, f"{name}: {_reason(errno.ENOSPC, '')}")
    if code == sqlite3.SQLITE_READONLY:
        return CNIError(IO_FAILURE, f"{name}: {_reason(errno.EROFS, '')}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        remedy = "restore it from a backup, or move it away and start over (cnvctl leases init)"
        return CNIError(IO_FAILURE, f"{name}: damaged ({e}): {remedy}; nothing was changed")
    if code == sqlite3.SQLITE_CANTOPEN:
        return CNIError(IO_FAILURE, f"{name}: {_reason(None, 'cannot be opened')}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return locked_out(name, patience)
    return CNIError(IO_FAILURE, f"{name}: {e}: look at the disk and the kernel's log; nothing was changed")
