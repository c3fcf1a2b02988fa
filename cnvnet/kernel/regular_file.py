"""Reading files that a configuration or a pod names: its author may have put anything at that place.

A FIFO would keep the reader waiting, a device would never end, a terminal would become the process'
controlling one, and merely opening some devices (a watchdog, a tape) does something. So the path is first
opened as a place (O_PATH), which has no effect on any of them; only a regular file is then opened for
reading, by that place: the pod cannot exchange it in between.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from cnvnet.call_context import open_path

# Of a resolv.conf, which has no limit of its own: three servers and 32 search domains are a tenth of this.
LIMIT: Final = 64 * 1024


def read_file(path: str) -> bytes:
    """What a regular file contains, as this thread's caller sees the path (cnvnet.call_context).

    Raises OSError or ValueError at once for anything else, and for a large one.
    """
    place = open_path(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return read(place)
    finally:
        os.close(place)


def read(place: int, limit: int | None = None) -> bytes:
    """The content of the file that `place`, a descriptor opened with O_PATH, is at; it stays open.

    Raises OSError at once for what is no regular file, and for one of more than `limit` (None: LIMIT) bytes.
    """
    limit = LIMIT if limit is None else limit
    status = os.fstat(place)
    if not stat.S_ISREG(status.st_mode) or _is_generated(place, status):
        raise OSError(errno.EINVAL, "not a regular file")
    # Without O_NONBLOCK, open would wait for a process that holds a lease (fcntl F_SETLEASE).
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(f"/proc/thread-self/fd/{place}", flags)
    try:
        content = os.read(fd, limit + 1)
    finally:
        os.close(fd)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    return content


def _is_generated(place: int, status: os.stat_result) -> bool:
    """Whether the kernel makes the content when it is read: /proc/kmsg loses what it has given out once.

    Such files call themselves regular, of no size, in a file system that has no blocks.
    """
    return status.st_size == 0 and os.fstatvfs(place).f_blocks == 0
