"""One guest while it is served: its socket, its prepared answers, and how many frames it may still send."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from typing import Final

from cnvnet.guest import frames, services, settings_json, tap_socket
from cnvnet.guest.services import Answer

# A client at boot sends a dozen frames, with firmware and several stacks some dozens. Then one an hour.
BURST: Final = 64
FRAMES_PER_SECOND: Final = 32
# Frames of one guest before the next one has its turn.
TURN: Final = 8

_PROTOCOLS: Final = {
    frames.ETHERTYPE_ARP: "arp",
    frames.ETHERTYPE_IPV4: "dhcp4",
    frames.ETHERTYPE_IPV6: "ipv6",
}

# Told of (service, event), and of an error's text where the event is a codec's failure.
Count = Callable[[str, str, str], None]


class Guest:
    """Raises what `settings_json.parse` raises: InvalidConfig names the key."""

    __slots__ = ("_filled", "_services", "_tokens", "announcements", "name", "pause", "tap")

    def __init__(self, name: str, tap: socket.socket, settings: Mapping[str, object]) -> None:
        self.name = name
        self.tap = tap
        self._services = services.prepare(settings_json.parse(settings))
        self.announcements = services.announcements(self._services)
        self.pause = 0.0  # seconds between looks at a tap that is down; 0: it is up
        self._tokens = float(BURST)
        self._filled = 0.0

    def take_turn(self, now: float, count: Count) -> bool:
        """Answers what came in. False when the guest has had its share and has to wait.

        OSError: the tap is down (ENETDOWN) or gone.
        """
        self._tokens = min(BURST, self._tokens + (now - self._filled) * FRAMES_PER_SECOND)
        self._filled = now
        for _ in range(min(TURN, int(self._tokens))):
            try:
                frame = tap_socket.read(self.tap)
            except BlockingIOError:
                return True
            self._tokens -= 1
            if frame:
                self._answer(frame, count)
        return self._tokens >= 1

    def take_over(self, tap: socket.socket, count: Count) -> None:
        """Answers what came in at the socket that the guest was served by before: ours has none of it.

        What came since ours was opened is in both and is answered twice, which no client minds. OSError as
        above.
        """
        for _ in range(BURST):
            try:
                frame = tap_socket.read(tap)
            except BlockingIOError:
                return
            if frame:
                self._answer(frame, count)

    def _answer(self, frame: bytes, count: Count) -> None:
        try:
            answer = services.answer(self._services, frame)
        except Exception as e:  # noqa: BLE001 -- whatever a codec does wrong concerns this one frame
            count(_PROTOCOLS.get(frame[12:14], "none"), "failed", f"{type(e).__name__}: {e}")
            return
        count(answer.service, answer.event, "")
        self._send(answer, count)

    def _send(self, answer: Answer, count: Count) -> None:
        for frame in answer.frames:
            try:
                tap_socket.write(self.tap, frame)
            except OSError as e:
                count(answer.service, "unsent", "")
                # No room, or longer than the tap's MTU, concerns this frame. A socket's error is told once,
                # so this may be the only word there is of a tap that went down.
                if e.errno in (errno.ENETDOWN, errno.ENXIO):
                    raise

    def announce(self, count: Count) -> None:
        """Sends what is due unasked. OSError as above."""
        for frame in self.announcements:
            count("ra", "announcement", "")
            self._send(Answer("ra", "announcement", (frame,)), count)
