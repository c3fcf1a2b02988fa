"""Frames through a port: one pod sends as fast as the kernel takes them, and another one counts."""

from __future__ import annotations

import mmap
import socket
import struct
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from cnvnet.kernel import netns
from tests.bench.systems import IFNAME

_SECONDS: Final = 0.1
# packet(7) and linux/if_packet.h: version 2 of the ring that frames are sent from.
_SOL_PACKET: Final = 263
_PACKET_VERSION, _PACKET_TX_RING, _PACKET_QDISC_BYPASS = 10, 13, 20
_TPACKET_V2: Final = 1
_HEADER: Final = struct.Struct("=IIIHHIIHH4x")
_SEND_REQUEST: Final = 1
_SLOT: Final = 256
# Few enough for the 7,000 frames a second of the slowest.
_BATCH: Final = 64
_BROADCAST: Final = bytes([0xFF] * 6)
_ETH_P_IP: Final = 0x0800


class Sender:
    """Frames of 128 bytes, an UDP datagram each, from one pod to another on the same bridge."""

    def __init__(self, pod: str, target: str) -> None:
        self._target = target
        destination = _hello(target)
        with ExitStack() as opened:
            opened.enter_context(netns.entered(opened.enter_context(netns.opened(f"/run/netns/{pod}"))))
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.bind((IFNAME, 0))
            source = self._socket.getsockname()[4]
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        ring = struct.pack("=4I", _SLOT * _BATCH, 1, _SLOT, _BATCH)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_TX_RING, ring)
        self._ring = mmap.mmap(self._socket.fileno(), _SLOT * _BATCH)
        frame = _frame(destination, source)
        header = _HEADER.pack(_SEND_REQUEST, len(frame), len(frame), 0, 0, 0, 0, 0, 0)
        self._full = (header + frame).ljust(_SLOT, b"\0") * _BATCH

    def rate(self) -> float:
        """Thousands of frames that arrive in a second."""
        before = _received(self._target)
        begun = time.perf_counter()
        while (spent := time.perf_counter() - begun) < _SECONDS:
            self._ring[:] = self._full
            self._socket.send(b"")
        time.sleep(0.01)  # what is queued arrives
        return (_received(self._target) - before) / spent / 1000

    def cycle(self, _: int) -> list[float]:
        return [self.rate()]

    def close(self) -> None:
        self._ring.close()
        self._socket.close()


def _hello(pod: str) -> bytes:
    """The address of a pod's interface, which the bridge has learned now."""
    with (
        netns.opened(f"/run/netns/{pod}") as pod_netns,
        netns.entered(pod_netns),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as speaker,
    ):
        speaker.bind((IFNAME, 0))
        address: bytes = speaker.getsockname()[4]
        speaker.send(_frame(_BROADCAST, address))
        return address


def _frame(destination: bytes, source: bytes) -> bytes:
    size = 128 - 14
    # From and to addresses that no host has: it ends where it arrives.
    addresses = bytes([192, 0, 2, 1, 192, 0, 2, 2])
    ip = struct.pack("!BBHIBBH", 0x45, 0, size, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    # A bridge that shows its packets to iptables looks at it, too.
    ip = ip[:10] + _checksum(ip) + ip[12:]
    udp = struct.pack("!HHHH", 9, 9, size - len(ip), 0)
    ethernet = destination + source + _ETH_P_IP.to_bytes(2, "big")
    return (ethernet + ip + udp).ljust(14 + size, b"\0")


def _checksum(header: bytes) -> bytes:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return int(total ^ 0xFFFF).to_bytes(2, "big")


def _received(pod: str) -> int:
    with netns.opened(f"/run/netns/{pod}") as pod_netns, netns.entered(pod_netns):
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == IFNAME:
                return int(numbers.split()[1])
    raise ValueError(f"{pod} has no {IFNAME}")
