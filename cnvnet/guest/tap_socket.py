"""The packet socket on a guest's tap: what the guest sends is read from it, what is sent goes to the guest.

The tap may be a bridge port. Then only ETH_P_ALL sees anything: the bridge takes a frame before the handlers
of one protocol are asked.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from typing import Final

from cnvnet.guest import bpf
from cnvnet.guest.services import Services
from cnvnet.kernel.tap import IFREQ

# include/uapi/linux/if_packet.h, if_ether.h, asm-generic/socket.h, sockios.h, if.h
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_PACKET_AUXDATA: Final = 8
_PACKET_QDISC_BYPASS: Final = 20
_PACKET_IGNORE_OUTGOING: Final = 23
_ETH_P_ALL: Final = 3
_SO_ATTACH_FILTER: Final = 26
_SIOCGIFFLAGS: Final = 0x8913
_IFF_UP: Final = 1
_IFF_RUNNING: Final = 1 << 6
_TP_STATUS_VLAN_VALID: Final = 1 << 4
_AUXDATA: Final = struct.Struct("=IIIHHHH")
_FILTER: Final = struct.Struct("@HP")

# Bytes, which the kernel doubles: some forty small frames, far more than a client ever sends at once. A
# flood can fill no more than this.
_RECEIVE_BUFFER: Final = 32768

UP: Final = "up"
DOWN: Final = "down"
GONE: Final = "gone"


def open_tap(ifname: str, services: Services) -> socket.socket:
    """A non-blocking socket on the tap `ifname` in the calling thread's network namespace, where it stays.

    It sees only what the services of this guest answer. The tap may be down. OSError (ENODEV: no such tap);
    it keeps the namespace alive until it is closed.
    """
    # Protocol 0 receives nothing: no frame comes in before the filter is there.
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        attach(made, bpf.program(services))
        made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        made.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        made.bind((ifname, _ETH_P_ALL))
    except OSError:
        made.close()
        raise
    return made


def attach(to: socket.socket, program: bpf.Block) -> None:
    """Makes the socket receive only what passes the program. OSError."""
    code = array.array("B", bpf.encode(program))
    to.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _FILTER.pack(len(program), code.buffer_info()[0]))


def adopt(fd: int) -> socket.socket:
    """The socket that another process opened. OSError when it is no packet socket: then `fd` is closed."""
    try:
        taken = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise
    if (taken.family, taken.type) != (socket.AF_PACKET, socket.SOCK_RAW):
        taken.close()
        raise OSError(errno.ENOTSOCK, "the descriptor is no packet socket")
    taken.setblocking(False)
    return taken


def read(tap: socket.socket) -> bytes:
    """The next frame; empty for one that was tagged, which is not for us. BlockingIOError: there is none.

    OSError ENETDOWN says once that the tap went down or away (see `state`).
    """
    frame, aside, _, _ = tap.recvmsg(bpf.LONGEST_FRAME, socket.CMSG_SPACE(_AUXDATA.size))
    for level, kind, data in aside:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA) and len(data) >= _AUXDATA.size:
            status = _AUXDATA.unpack_from(data)[0]
            return b"" if status & _TP_STATUS_VLAN_VALID else frame
    return frame


def write(tap: socket.socket, frame: bytes) -> None:
    """Sends a frame to the guest. OSError: the tap has no room for it (ENOBUFS), is down or gone.

    After the guest has opened its tap, the kernel needs the RTNL to set up the tap's queue, and silently
    drops what is sent there until it has got it: such a frame bypasses the queue. The others do not, because
    tcpdump does not see a frame that does.
    """
    past = not _is_ready(tap)
    if past:
        tap.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    try:
        tap.send(frame)
    finally:
        if past:
            tap.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 0)


def _is_ready(tap: socket.socket) -> bool:
    """Whether the kernel has set up the queue of a tap that the guest has open; True if it is gone."""
    try:
        return bool(_flags(tap) & _IFF_RUNNING)
    except OSError:
        return True  # sending says what is wrong


def state(tap: socket.socket) -> str:
    """UP, DOWN, or GONE for a tap that is deleted or was moved to another namespace.

    Both end the socket's reading with ENETDOWN. It goes on by itself when a tap that was down is up again.
    """
    if not _name(tap):  # the socket lost its ifindex
        return GONE
    try:
        return UP if _flags(tap) & _IFF_UP else DOWN
    except OSError as e:
        if e.errno != errno.ENODEV:
            raise
        return DOWN  # renamed between the two calls, or being deleted: the next look tells


def _name(tap: socket.socket) -> str:
    name: str = tap.getsockname()[0]
    return name


def _flags(tap: socket.socket) -> int:
    """The link's. OSError ENODEV: it has none."""
    request = fcntl.ioctl(tap, _SIOCGIFFLAGS, IFREQ.pack(os.fsencode(_name(tap)), 0))
    return int(IFREQ.unpack(request)[1])


def take_drops(tap: socket.socket) -> int:
    """How many frames found no room in the socket since the last call."""
    _, drops = struct.unpack("=II", tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    return int(drops)
