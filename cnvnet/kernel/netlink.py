"""The transport: a small blocking AF_NETLINK socket, and the packing of the messages of every ADD and DEL.

A socket acts in the namespace it was opened in, wherever its thread goes later, and is used by one thread.
All other messages are encoded and decoded by pyroute2's classes (cnvnet.kernel.pyroute2_light).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

# include/uapi/linux/netlink.h
REQUEST: Final = 0x1
ACK: Final = 0x4
ECHO: Final = 0x8
DUMP_INTERRUPTED: Final = 0x10
REPLACE: Final = 0x100
EXCL: Final = 0x200
CREATE: Final = 0x400
APPEND: Final = 0x800
DUMP: Final = 0x300
_ERROR: Final = 2
_DONE: Final = 3
_CAPPED: Final = 0x100
_ACK_TLVS: Final = 0x200
_ATTR_MSG: Final = 1
_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_CAP_ACK: Final = 10
_EXT_ACK: Final = 11
_GET_STRICT_CHK: Final = 12
# NLA_F_NESTED marks an attribute that holds others; the type is what the two highest bits leave.
NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF

HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ATTRIBUTE: Final = struct.Struct("=HH")
_INT: Final = struct.Struct("=i")
HEADER_SIZE: Final = 16

# The kernel never puts more than 32 KiB into one datagram of a dump (netlink_dump in af_netlink.c).
_RECEIVE_SIZE: Final = 65536
# A dump is repeated when links come or go while it runs; with 16 busy threads that happens many times in a
# row.
_DUMP_ATTEMPTS: Final = 200


class NetlinkMessage(NamedTuple):
    """One request: its type (RTM_*), the flags besides REQUEST and ACK, and all that follows the header."""

    type: int
    flags: int
    body: bytes


class NetlinkError(OSError):
    """The kernel's answer to one message: its errno, and its own words (extended ack) where it gave any."""

    def __init__(self, number: int, explanation: str = "") -> None:
        text = os.strerror(number).lower()
        super().__init__(number, f"{text} ({explanation})" if explanation else text)
        self.text = f"{text} ({explanation})" if explanation else text


class Socket:
    """A netlink socket of the namespace its thread is in when it is made."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        # Errors come without a copy of the request, with the kernel's explanation, and dumps are filtered
        # there.
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor, for select and poll."""
        return self._socket.fileno()

    def request(self, message: NetlinkMessage) -> list[bytes]:
        """Sends one message, waits for its acknowledgement and returns the replies that came before it.

        Raises NetlinkError.
        """
        self._sequence += 1
        sequence = self._sequence
        self._socket.send(pack(message, ACK, sequence))
        replies: list[bytes] = []
        while True:
            for kind, _, number, raw in self._receive():
                if number != sequence:
                    continue  # a late reply to a request whose caller was interrupted
                if kind != _ERROR:
                    replies.append(raw)
                    continue
                if failure := _failure(raw):
                    raise failure
                return replies

    def get(self, message: NetlinkMessage) -> bytes:
        """Sends one query that is answered by exactly one message.

        No acknowledgement is asked for.
        """
        self._sequence += 1
        sequence = self._sequence
        self._socket.send(pack(message, 0, sequence))
        while True:
            for kind, _, number, raw in self._receive():
                if number != sequence:
                    continue
                if kind != _ERROR:
                    return raw
                raise _failure(raw) or NetlinkError(errno.EPROTO, "acknowledged without an answer")

    def get_each(self, messages: Sequence[NetlinkMessage]) -> list[bytes | NetlinkError]:
        """The answers to queries like that of `get`, in their order, all asked for in one send().

        For some dozens: what they and their answers take has to fit into a socket's buffers.
        """
        first = self._sequence + 1
        self._sequence += len(messages)
        self._socket.send(b"".join(pack(message, 0, first + i) for i, message in enumerate(messages)))
        answers: dict[int, bytes | NetlinkError] = {}
        while len(answers) < len(messages):
            for kind, _, number, raw in self._receive():
                if number < first:
                    continue
                failure = _failure(raw) if kind == _ERROR else None
                if failure is not None and failure.errno == errno.EPERM:
                    # nfnetlink asks for the right once for all of a send(), and answers the first alone.
                    return [failure] * len(messages)
                answers[number] = failure or raw
        return [answers[first + i] for i in range(len(messages))]

    def dump(self, message: NetlinkMessage) -> list[bytes]:
        """The complete answer to a dump request; one that changes interrupted (DUMP_INTR) is repeated."""
        for _ in range(_DUMP_ATTEMPTS):
            try:
                answers = self._dump_once(message)
            except OSError as e:
                if isinstance(e, NetlinkError) or e.errno != errno.ENOBUFS:
                    raise
                continue  # replies were dropped: ask again
            if answers is not None:
                return answers
        raise NetlinkError(errno.EBUSY, f"interrupted by changes {_DUMP_ATTEMPTS} times")

    def _dump_once(self, message: NetlinkMessage) -> list[bytes] | None:
        self._sequence += 1
        sequence = self._sequence
        self._socket.send(pack(message, DUMP, sequence))
        answers: list[bytes] = []
        whole = True
        while True:
            for kind, flags, number, raw in self._receive():
                if number != sequence:
                    continue
                if flags & DUMP_INTERRUPTED:
                    whole = False
                if kind in (_DONE, _ERROR):
                    if failure := _failure(raw):
                        raise failure
                    return answers if whole else None
                answers.append(raw)

    def bound(self) -> int:
        """The socket's port, which tells it from all others of its namespace, as long as it is open."""
        self._socket.bind((0, 0))
        return int(self._socket.getsockname()[0])

    def join(self, *groups: int) -> None:
        """Subscribes to multicast groups (RTNLGRP_*); a socket that does so makes no requests."""
        self.bound()  # the kernel sends nothing to a socket without a port
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def wait(self, seconds: float) -> bool:
        """Whether the kernel has sent anything to a joined group within that time; it is thrown away.

        Callers read the state anew afterwards, so that a dropped notification (ENOBUFS) counts as one that
        came.
        """
        import select  # 0.3 ms that only waiting calls pay

        # Not select(2), which knows descriptors below 1,024 only: an agent may have more.
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(max(0.0, seconds) * 1000):
            return False
        while True:
            try:
                self._socket.recv(_RECEIVE_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """The messages of the next datagram from the kernel.

        Each is its type, flags, sequence number, and the whole message.
        """
        data, sender = self._socket.recvfrom(_RECEIVE_SIZE)
        if sender[0] != 0:
            # Any process of the namespace can write to this socket: only what the kernel (port 0) sends
            # counts.
            return
        offset, end = 0, len(data)
        while offset + HEADER_SIZE <= end:
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
            if length < HEADER_SIZE or offset + length > end:
                raise NetlinkError(errno.EPROTO, f"a message of {length} bytes in {end - offset}")
            yield kind, flags, sequence, data[offset : offset + length]
            offset += (length + 3) & ~3


def pack(message: NetlinkMessage, flags: int = 0, sequence: int = 0) -> bytes:
    """The whole message, header included."""
    kind, more, body = message
    return HEADER.pack(HEADER_SIZE + len(body), kind, REQUEST | flags | more, sequence, 0) + body


def _failure(raw: bytes) -> NetlinkError | None:
    """The error in an NLMSG_ERROR or NLMSG_DONE message; None when it says that all is well."""
    length, kind, flags, _, _ = HEADER.unpack_from(raw)
    if length < HEADER_SIZE + 4:
        return None
    number = -_INT.unpack_from(raw, HEADER_SIZE)[0]
    if number <= 0:
        return None
    explanation = ""
    if flags & _ACK_TLVS:
        offset = HEADER_SIZE + 4
        if kind == _ERROR:
            # The request's header comes back too, and its body unless the socket asked for a capped answer.
            length_of_request = HEADER.unpack_from(raw, offset)[0]
            offset += HEADER_SIZE if flags & _CAPPED else (length_of_request + 3) & ~3
        attrs = attributes(raw, offset)
        explanation = text(attrs[_ATTR_MSG]) if _ATTR_MSG in attrs else ""
    return NetlinkError(number, explanation)


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute (struct nlattr), padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def string(kind: int, value: str) -> bytes:
    """An attribute that is a name, with its closing NUL."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *members: bytes) -> bytes:
    """An attribute that holds attributes, with the flag the kernel's strict parsers want."""
    return attribute(kind | NESTED, b"".join(members))


def attributes(data: bytes, offset: int = 0, wanted: frozenset[int] | None = None) -> dict[int, bytes]:
    """The attributes from `offset` to the end by type; of one that repeats, the last.

    Of a message with many of them, only those that are `wanted`: half the time.
    """
    attrs: dict[int, bytes] = {}
    unpack, last = _ATTRIBUTE.unpack_from, len(data) - 4
    while offset <= last:
        length, kind = unpack(data, offset)
        if length < 4:
            break
        kind &= _TYPE_MASK
        if wanted is None or kind in wanted:
            attrs[kind] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return attrs


def members(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The same in their order, each as it is: its own header and padding included."""
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        end = offset + length
        yield kind & _TYPE_MASK, data[offset:end] + b"\0" * (-length % 4)
        offset = end + -length % 4


def text(payload: bytes) -> str:
    """A string attribute without its closing NUL."""
    return payload.split(b"\0", 1)[0].decode(errors="replace")
