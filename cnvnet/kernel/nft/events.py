"""Whether another program changes our tables in nftables: the kernel reports every change of the namespace.

Other programs of a node write thousands of objects at a time, each of which is an event. So an event without
one of the tables' names costs one search of its bytes, and is never decoded.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Container, Iterator
from typing import Final

from cnvnet.kernel.netlink import HEADER, HEADER_SIZE, attributes, text
from cnvnet.kernel.nft import wire

# include/uapi/linux/netfilter/nf_tables.h
_NEWGEN: Final = 10 << 8 | 15
# The table's name has the same number in the messages of tables, chains, rules, sets, elements and objects.
_TABLE: Final = 1
_THREAD, _PROGRAM = 2, 3
# Bytes: more than kube-proxy causes at once with 20,000 chains. The kernel drops what does not fit, and
# reports that as ENOBUFS.
_ROOM: Final = 32 << 20


class NftChanges:
    """A subscription, for some tables, to the namespace its thread is in when it is made.

    What programs of the `trusted` names change is their own, and so is what this process changes. (The names
    are those of their processes, of which the kernel knows 15 bytes.) `ports` are those of this process'
    connections to nftables of the namespace, now and later: they are known in a container, too. Raises
    OSError where there is no nfnetlink.
    """

    def __init__(
        self, tables: Collection[str], trusted: Collection[str], ports: Container[int] = frozenset()
    ) -> None:
        self._tables = [table.encode() + b"\0" for table in tables]
        self._trusted = frozenset(trusted)
        self._ports = ports
        self._subscription = wire.Subscription(_ROOM)
        self._changed = False

    def fileno(self) -> int:
        """Readable when there is something to take."""
        return self._subscription.fileno()

    def close(self) -> None:
        """Close the subscription."""
        self._subscription.close()

    def take(self) -> bool:
        """Whether another program may have changed the tables since the last call. Never waits.

        Any change counts: a rule before ours, `flags dormant`, a deleted element. True as well when the
        kernel has dropped events because the socket was full.
        """
        changed = False
        while True:
            try:
                data = self._subscription.receive()
            except BlockingIOError:
                return changed
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise
                changed = True
                continue
            # The end of a transaction names its process; it comes last, in a datagram of its own.
            if _kind(data) == _NEWGEN:
                changed = changed or (self._changed and not self._is_trusted(data))
                self._changed = False
            elif not self._changed and any(table in data for table in self._tables):
                self._changed = any(map(self._is_about_ours, _messages(data)))

    def _is_about_ours(self, message: bytes) -> bool:
        name = text(attributes(message, wire.BODY).get(_TABLE, b"")).encode() + b"\0"
        return name in self._tables

    def _is_trusted(self, end: bytes) -> bool:
        if HEADER.unpack_from(end)[4] in self._ports:
            return True
        author = attributes(end, wire.BODY)
        program = text(author.get(_PROGRAM, b""))
        return program in self._trusted or program == _name_of_ours(int.from_bytes(author.get(_THREAD, b"")))


def _name_of_ours(thread: int) -> str | None:
    """What a thread of this process is called, None if there is none of that number.

    The number alone is not enough: in a container the kernel reports other numbers than the container's own,
    and one of these may be another program's.
    """
    try:
        with open(f"/proc/self/task/{thread}/comm") as file:
            return file.read().removesuffix("\n")
    except OSError:
        return None


def _kind(message: bytes) -> int:
    return int(HEADER.unpack_from(message)[1]) if len(message) >= HEADER_SIZE else 0


def _messages(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + HEADER_SIZE <= len(data):
        length = max(HEADER.unpack_from(data, offset)[0], HEADER_SIZE)
        yield data[offset : offset + length]
        offset += (length + 3) & ~3
