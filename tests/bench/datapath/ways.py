"""A way of packets between two sockets, or a socket and a tap; what it costs by the instrument."""

from __future__ import annotations

import socket
import statistics
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.nodes import run
from tests.bench.systems import Failed

_SOURCE: Final = Path(__file__).with_name("instrument.c")
_PORT: Final = 5001
# A slice in which more of the operations had to wait for another thread tells nothing.
_MOST_LATE: Final = 0.02
UDP, UDP_ROUND_TRIP, TCP_ROUND_TRIP = "udp", "udp-round-trip", "tcp-round-trip"
STREAM, CONNECTION, INTO_TAP, OUT_OF_TAP = "tcp-stream", "connection", "into-tap", "out-of-tap"
TO_GUEST, FROM_GUEST = "to the guest", "from the guest"


class Tap(NamedTuple):
    """The guest's end where no guest runs: its namespace and name, and a frame that a guest would send."""

    netns: str
    name: str
    frame: bytes


class Way(NamedTuple):
    """Both ends by their namespaces' names; `guest_address` is where the client reaches the guest.

    Addresses are IPv4 and IPv6; the latter may be "" where it is not measured.
    """

    column: str
    client: str
    guest: str
    client_address: tuple[str, str]
    guest_address: tuple[str, str]
    tap: Tap | None = None


class Slices(NamedTuple):
    """How often each way is measured, and for how many milliseconds."""

    rounds: int
    milliseconds: int


def build(folder: Path) -> Path:
    """The instrument. RuntimeError says what the compiler said."""
    program = folder / "instrument"
    run("cc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-o", str(program), str(_SOURCE))
    return program


def measure(
    instrument: Path,
    ways: Sequence[Way],
    operation: str,
    slices: Slices,
    *,
    direction: str = TO_GUEST,
    version: int = 4,
    payload: int = 18,
) -> dict[str, list[float]]:
    """Nanoseconds of processor time for each operation, round by round, by the ways' columns."""
    arguments = [word for number, way in enumerate(ways) for word in _way(way, number, direction, version)]
    command = [str(instrument), operation, str(slices.rounds), str(slices.milliseconds), str(payload)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        names = ", ".join(f"{number} is {way.column}" for number, way in enumerate(ways))
        raise Failed(f"{operation} {direction}: {done.stderr.strip()} ({names})")
    measured: dict[str, dict[int, float]] = {way.column: {} for way in ways}
    for line in done.stdout.splitlines():
        number, way, operations, nanoseconds, late = map(int, line.split())
        if operations and late <= _MOST_LATE * operations:
            measured[ways[way].column][number] = nanoseconds / operations
    # Ratios are of one round: one that a way lacks goes for all.
    complete = set[int].intersection(*(set(rounds) for rounds in measured.values()))
    if not complete:
        raise Failed(f"{operation} {direction}: packets were late in every round: the machine is too busy")
    return {column: [rounds[number] for number in sorted(complete)] for column, rounds in measured.items()}


def ratio(samples: dict[str, list[float]], column: str, peer: str) -> float:
    """The median of the rounds' ratios."""
    pairs = zip(samples[column], samples[peer], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def _way(way: Way, number: int, direction: str, version: int) -> Iterator[str]:
    family = 0 if version == 4 else 1
    client, guest = (f"/run/netns/{name}" for name in (way.client, way.guest))
    frame = "-"
    if way.tap is not None:
        guest = f"/run/netns/{way.tap.netns}:{way.tap.name}"
        frame = way.tap.frame.hex()
    ends = (client, guest) if direction == TO_GUEST else (guest, client)
    address = way.guest_address if direction == TO_GUEST else way.client_address
    yield from (str(number), *ends, address[family], str(_PORT), frame)


def datagram(*, source_mac: str, mac: str, source: str, destination: str, payload: int = 18) -> bytes:
    """A frame with a UDP datagram, as a guest sends it."""
    ethernet = bytes.fromhex((mac + source_mac).replace(":", "")) + b"\x08\x00"
    size = 28 + payload
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    header = struct.pack("!BBHIBBH", 0x45, 0, size, 0x4000, 64, socket.IPPROTO_UDP, 0) + addresses
    header = header[:10] + _checksum(header) + header[12:]
    udp = struct.pack("!HHHH", 32769, _PORT, size - 20, 0)
    return (ethernet + header + udp).ljust(14 + size, b"\0")


def _checksum(header: bytes) -> bytes:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return int(total ^ 0xFFFF).to_bytes(2, "big")
