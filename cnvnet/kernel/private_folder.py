"""Folders that only root may change: records, locks, leases and the agent's socket are in them.

Another user who can rename a file there can put another one in its place: a socket at which launchers hand
over the pod's namespace, or a link through which root would write.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Final

from cnvnet.call_context import log

_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def ensure(*folders: str) -> None:
    """Makes sure that each folder exists and that only root can write in it. Raises OSError.

    A new folder has mode 0700, and its missing parents 0755, whatever the caller's umask. A folder that lets
    others write, as an older version may have left it, loses these bits, and one of another user becomes
    root's.
    """
    for folder in folders:
        if not _take_back(folder):
            _make(folder, 0o700)


def put(path: str, content: bytes) -> None:
    """The file has this content as a whole, on the disk when this returns; others cannot read it.

    Two at once for one path are kept apart by their callers. Raises OSError, with the file as it was.
    """
    made = f"{path}.new"
    # What is there may be another user's, who had it open before only root could write here.
    with suppress(FileNotFoundError):
        os.unlink(made)
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(made, path)
    sync(os.path.dirname(path))


def write(fd: int, content: bytes) -> None:
    """Writes all of it. Raises OSError, also where a disk has room for a part alone."""
    while content:
        content = content[os.write(fd, content) :]


def sync(folder: str) -> None:
    """What is in the folder is on the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make(folder: str, mode: int) -> None:
    parent = os.path.dirname(folder)
    if parent != folder and not os.path.isdir(parent):
        _make(parent, 0o755)
    try:
        os.mkdir(folder, mode)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None


def _take_back(folder: str) -> bool:
    """Whether it is there. Its owner alone can change it then."""
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
    if status.st_uid not in (0, os.geteuid()):
        os.chown(folder, os.geteuid(), -1)
        log(f"{folder}: belonged to user {status.st_uid}: it no longer does")
    # In one with the sticky bit, as /run or /tmp may be, others cannot rename what is not theirs.
    if status.st_mode & _OTHERS and not status.st_mode & stat.S_ISVTX:
        os.chmod(folder, stat.S_IMODE(status.st_mode) & ~_OTHERS)
        log(f"{folder}: mode {stat.S_IMODE(status.st_mode):04o} let others write: they no longer can")
    return True
