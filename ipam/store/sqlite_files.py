"""The folder and the files of the embedded store, as far as SQLite does not care for them itself."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from cnvnet.cni.errors import IO_FAILURE, CNIError
from cnvnet.ipam.store.sqlite_errors import unusable
from cnvnet.kernel import private_folder

# What must be left on the disk for STATUS to call the store writable.
_SPARE_BYTES: Final = 1 << 20


def is_there(path: str) -> bool:
    """Whether there is anything at the path. Raises OSError where that cannot be determined."""
    try:
        os.stat(path)
    except OSError as e:
        # Under a name that is too long there never was anything: a DEL has nothing to give back there.
        if e.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        return False
    return True


def is_read_only(folder: str) -> bool:
    """Whether the file system is mounted read-only on which the folder is, or would be made."""
    try:
        return bool(os.statvfs(nearest(folder)).f_flag & os.ST_RDONLY)
    except OSError:
        return False  # a transaction says what it is


def ensure_room(folder: str, name: str) -> None:
    """CNIError 5 if the store `name` could not be made or written in the folder."""
    # The folder may not be there before the first ADD; what counts then is where it would be made.
    folder = nearest(folder)
    if not os.path.isdir(folder):
        raise unusable(name, NotADirectoryError(errno.ENOTDIR, "not a directory"))
    try:
        space = os.statvfs(folder)
        if space.f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, "read-only")
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, "not writable")
    except OSError as e:
        raise unusable(name, e) from e
    if space.f_bavail * space.f_frsize < _SPARE_BYTES:
        raise CNIError(IO_FAILURE, f"{name}: the disk is full: make room below {folder}")


def ensure_regular(name: str) -> None:
    """CNIError 5 if a file of the database is none that SQLite may open.

    `dataDir` may name a folder of a pod's: to open a FIFO there for reading waits for a writer.
    """
    for path in (name, f"{name}-wal", f"{name}-shm", f"{name}-journal"):
        try:
            regular = stat.S_ISREG(os.stat(path).st_mode)
        except FileNotFoundError:
            continue
        except OSError as e:
            raise unusable(name, e) from e
        if not regular:
            raise CNIError(IO_FAILURE, f"{path}: not a regular file: nothing was changed")


def ensure_folder(folder: str) -> None:
    """Make the folder, for root alone, and have it on the disk. Raises OSError."""
    if os.path.isdir(folder):
        return
    private_folder.ensure(folder)
    # SQLite syncs what is in the folder; the folder itself is an entry of the one above.
    private_folder.sync(os.path.dirname(folder.rstrip("/")))


def nearest(folder: str) -> str:
    """The folder, or the one above it that exists."""
    if os.path.lexists(folder) or folder in ("/", ""):
        return folder
    return nearest(os.path.dirname(folder))


def identity(path: str) -> tuple[int, int]:
    """What tells a file from one that has replaced it: (0, 0) for none, inode 0 for an empty database."""
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return (status.st_dev, status.st_ino if status.st_size or path.endswith("-wal") else 0)
