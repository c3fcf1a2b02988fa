"""The mark beside a database of leases: that leases were kept there, and how many transactions it has had.

Without it a database that is gone, or has lost its write-ahead log or what a backup did not have, would look
like a new one, and addresses in use would be given out again. A transaction is on the disk before the mark
counts it, so a crash leaves a mark that is behind the database, never one that is ahead: one that is ahead
says that the database has lost something. The mark itself is synced only when it is made, and overwritten in
place after that: no ADD pays for an fsync of it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from cnvnet.kernel import private_folder

# Enough for a 64-bit count; of one length, so that a number is written over the one before in place.
_DIGITS: Final = 20
_EXPLAINED: Final = b" transactions of leases.db: with fewer it has lost leases (docs/static-ip.md)\n"


class Mark:
    """`leases.kept` in the folder of a database. Used with the database's lock held."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "leases.kept")

    def read(self) -> int | None:
        """What it counts, None where there is no mark. Raises OSError."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            content = os.read(fd, _DIGITS)
        finally:
            os.close(fd)
        # Whatever has become of what is in it, it is there.
        return int(content) if len(content) == _DIGITS and content.isdigit() else 0

    def make(self, count: int) -> None:
        """Write it as a whole, on the disk when this returns. Raises OSError."""
        private_folder.put(self.path, b"%0*d" % (_DIGITS, count) + _EXPLAINED)

    def count(self, count: int) -> None:
        """Overwrite what it counts. The transaction is done: trouble only leaves a mark that is behind."""
        with suppress(OSError):
            try:
                fd = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                self.make(count)
                return
            try:
                os.pwrite(fd, b"%0*d" % (_DIGITS, count), 0)
            finally:
                os.close(fd)
