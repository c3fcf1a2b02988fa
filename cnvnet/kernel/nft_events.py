"""Whether somebody changes what is ours in nftables: heard from the kernel, which tells of all changes.

Other programs of a node write thousands of objects at a time, each of which is an event. So what has not one
of the tables' names in it costs one search of its bytes, and is never taken apart.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection, Iterator
from typing import Final

from cnvnet.kernel import nfnetlink as wire
from cnvnet.kernel.netlink import HEADER_SIZE, attributes, text

# include/uapi/linux/netfilter/nf_tables.h
_NEWGEN: Final = 10 << 8 | 15
# The table's name has the same number in the messages of tables, chains, rules, sets, elements and objects.
_TABLE: Final = 1
_THREAD, _PROGRAM = 2, 3
# More than kube-proxy says at once with 20,000 chains. What does not fit is lost, and known to be.
_ROOM: Final = 32 << 20
_HEADER: Final = struct.Struct("=IHHII")


class Changes:
    """A subscription, for some tables, to the namespace its thread is in when it is made.

    What programs of the `trusted` names change is their own, and so is what this process changes. (The names
    are those of their processes, of which the kernel knows 15 bytes.) Raises OSError where there is no
    nfnetlink.
    """

    def __init__(self, tables: Collection[str], trusted: Collection[str]) -> None:
        self._tables = [table.encode() + b"\0" for table in tables]
        self._trusted = frozenset(trusted)
        self._subscription = wire.Subscription(_ROOM)
        self._changed = False

    def fileno(self) -> int:
        """Readable when there is something to take."""
        return self._subscription.fileno()

    def close(self) -> None:
        self._subscription.close()

    def take(self) -> bool:
        """Whether, since the last call, anybody else may have changed something of the tables. Never waits.

        Whatever it was: a rule put before ours, a table put to sleep (`flags dormant`), an element deleted.
        True as well when the kernel had more to say than there was room for.
        """
        found = False
        while True:
            try:
                data = self._subscription.receive()
            except BlockingIOError:
                return found
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise
                found = True
                continue
            # A transaction's end, which tells whose it was, comes after all the rest and by itself.
            if _kind(data) == _NEWGEN:
                found = found or (self._changed and not self._is_trusted(data))
                self._changed = False
            elif not self._changed and any(table in data for table in self._tables):
                self._changed = any(map(self._is_about_ours, _messages(data)))

    def _is_about_ours(self, message: bytes) -> bool:
        name = text(attributes(message, wire.BODY).get(_TABLE, b"")).encode() + b"\0"
        return name in self._tables

    def _is_trusted(self, end: bytes) -> bool:
        author = attributes(end, wire.BODY)
        program = text(author.get(_PROGRAM, b""))
        return program in self._trusted or program == _name_of_ours(int.from_bytes(author.get(_THREAD, b"")))


def _name_of_ours(thread: int) -> str | None:
    """What a thread of this process is called, None if there is none of that number.

    The number alone says little: a container's threads have others than those that the kernel tells, and one
    of these may be a stranger's.
    """
    try:
        with open(f"/proc/self/task/{thread}/comm") as file:
            return file.read().removesuffix("\n")
    except OSError:
        return None


def _kind(message: bytes) -> int:
    return int(_HEADER.unpack_from(message)[1]) if len(message) >= HEADER_SIZE else 0


def _messages(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + HEADER_SIZE <= len(data):
        length = max(_HEADER.unpack_from(data, offset)[0], HEADER_SIZE)
        yield data[offset : offset + length]
        offset += (length + 3) & ~3
