"""The nfnetlink wire: nf_tables' messages as bytes, and a whole transaction as one send.

libnftables lists all tables of the namespace before every change; nothing here ever does. Numbers are those
of include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from cnvnet.kernel.netlink import (
    ACK,
    HEADER,
    HEADER_SIZE,
    REQUEST,
    NetlinkError,
    NetlinkMessage,
    Socket,
    nested,
)

# The protocol, the families (NFPROTO_*) and messages (NFT_MSG_*) of nf_tables, from include/uapi/linux/.
NETLINK_NETFILTER: Final = 12
FAMILIES: Final = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
NEWTABLE, GETTABLE, DELTABLE, GETCHAIN, DELCHAIN, GETRULE, GETSET = 0, 1, 2, 4, 5, 7, 10
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
GETOBJ = 19

# The body of an answer follows its header and its struct nfgenmsg.
BODY: Final = HEADER_SIZE + 4
# NFNL_SUBSYS_NFTABLES, the high byte of a message's type. What is between the two others takes effect as a
# whole, or not at all.
_SUBSYSTEM: Final = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_ERROR: Final = 2
# The multicast group (NFNLGRP_NFTABLES) that gets every transaction.
_NFTABLES: Final = 7
_RECEIVE_SIZE: Final = 65536
# Both set a buffer beyond net.core.wmem_max and rmem_max, where CAP_NET_ADMIN permits it.
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
# Fits the default send buffer (net.core.wmem_default, 212,992 bytes) with room for the kernel's own headers.
_DEFAULT_ROOM: Final = 100_000
# An attribute's length has 16 bits: a longer list of elements becomes several messages.
_LIST_LIMIT: Final = 60_000
_NFGENMSG: Final = struct.Struct("!BBH")


class NftConnection(Socket):
    """A socket to nfnetlink in the namespace its thread is in when it is made.

    `port` is its number there: the kernel says it with each change that the socket has made.
    """

    def __init__(self) -> None:
        super().__init__(NETLINK_NETFILTER)
        self.port = self.bound()
        self._room = _DEFAULT_ROOM

    def __enter__(self) -> NftConnection:
        return self

    def transaction(self, messages: Sequence[NetlinkMessage]) -> dict[int, int]:
        """All messages or none: {} when they are committed, else the errno of each refused one by its index.

        Index -1 is the errno of the transaction as a whole.
        """
        begin = self._sequence + 1
        data = bytearray(_marker(_BATCH_BEGIN, begin))
        last = len(messages) - 1
        for index, (kind, flags, body) in enumerate(messages):
            flags |= REQUEST | (ACK if index == last else 0)
            data += HEADER.pack(HEADER_SIZE + len(body), kind, flags, begin + 1 + index, 0) + body
        self._sequence = begin + len(messages) + 1
        data += _marker(_BATCH_END, self._sequence)
        self._make_room(len(data))
        self._socket.send(data)
        answers = {sequence - begin - 1: error for sequence, error in self._answers()}
        refused = {index: error for index, error in answers.items() if error}
        # Without a refusal the last message was acknowledged, or the answers were lost.
        return refused if refused or last in answers else {-1: errno.EIO}

    def _answers(self) -> Iterator[tuple[int, int]]:
        # The kernel works inside send(): all it has to say is in the queue by now, and errors come first.
        while True:
            try:
                data, sender = self._socket.recvfrom(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            offset = 0
            while sender[0] == 0 and offset + HEADER_SIZE + 4 <= len(data):
                length, kind, _, sequence, _ = HEADER.unpack_from(data, offset)
                if kind == _ERROR:
                    yield sequence, -struct.unpack_from("=i", data, offset + HEADER_SIZE)[0]
                offset += (max(length, HEADER_SIZE) + 3) & ~3

    def _make_room(self, size: int) -> None:
        """Lets a transaction of `size` bytes out in one piece, and a refusal of each of its messages in."""
        if size <= self._room:
            return
        for forced, plain, room in (
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF, 2 * size),
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF, 10 * size),
        ):
            _enlarge(self._socket, forced, plain, min(room, 1 << 29))
        self._room = size


class Subscription(Socket):
    """A socket that hears of every change in the namespace its thread is in when it is made."""

    def __init__(self, room: int) -> None:
        super().__init__(NETLINK_NETFILTER)
        try:
            _enlarge(self._socket, _SO_RCVBUFFORCE, socket.SO_RCVBUF, room)
            self.join(_NFTABLES)
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Subscription:
        return self

    def receive(self) -> bytes:
        """The messages of the next datagram. BlockingIOError: there is none; ENOBUFS: some are lost."""
        return self._socket.recv(_RECEIVE_SIZE, socket.MSG_DONTWAIT)


def message(kind: int, family: str, *attributes: bytes, flags: int = 0) -> NetlinkMessage:
    """A message of nf_tables about an object of that family."""
    body = _NFGENMSG.pack(FAMILIES[family], 0, 0) + b"".join(attributes)
    return NetlinkMessage(_SUBSYSTEM << 8 | kind, flags, body)


def lists(kind: int, members: Iterable[bytes]) -> Iterator[bytes]:
    """The members in as few nested attributes as hold them."""
    group: list[bytes] = []
    size = 0
    for member in members:
        if size + len(member) > _LIST_LIMIT:
            yield nested(kind, *group)
            group, size = [], 0
        group.append(member)
        size += len(member)
    if group:
        yield nested(kind, *group)


def members(data: bytes) -> Iterator[bytes]:
    """The values of a list's members, which all have the same type."""
    offset = 0
    while offset + 4 <= len(data):
        length = struct.unpack_from("=H", data, offset)[0]
        if length < 4:
            return
        yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def absent(error: NetlinkError) -> bool:
    """Whether an answer means that there is no such object, or no nftables at all."""
    # Without nf_tables in the kernel nfnetlink answers EINVAL; without the family, EOPNOTSUPP or
    # EAFNOSUPPORT.
    return error.errno in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)


def _enlarge(sock: socket.socket, forced: int, plain: int, room: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, room)
    except PermissionError:  # it takes CAP_NET_ADMIN of the first user namespace
        sock.setsockopt(socket.SOL_SOCKET, plain, room)


def _marker(kind: int, sequence: int) -> bytes:
    header = HEADER.pack(HEADER_SIZE + 4, kind, REQUEST, sequence, 0)
    return header + _NFGENMSG.pack(0, 0, _SUBSYSTEM)
