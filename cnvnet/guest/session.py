"""One guest while it is served: its socket, its prepared answers, and how many frames it may still send."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from typing import Final

from cnvnet.guest import frames, services, settings_json, tap_socket
from cnvnet.guest.events import REPORTED, Reporter
from cnvnet.guest.services import FrameAnswer

# Frames: a client at boot sends a dozen, firmware and several network stacks some dozens. Then one an hour.
BURST: Final = 64
FRAMES_PER_SECOND: Final = 32
# Frames of one guest that are answered before the next guest's.
TURN: Final = 8

_PROTOCOLS: Final = {
    frames.ETHERTYPE_ARP: "arp",
    frames.ETHERTYPE_IPV4: "dhcp4",
    frames.ETHERTYPE_IPV6: "ipv6",
}

# Called with (service, event), and with an error's text where the event is a codec's failure.
Count = Callable[[str, str, str], None]


class GuestSession:
    """Raises what `settings_json.parse` raises: InvalidConfig names the key."""

    __slots__ = (
        "_filled",
        "_services",
        "_tells",
        "_tokens",
        "announcements",
        "events",
        "name",
        "pause",
        "tap",
    )

    def __init__(
        self, name: str, tap: socket.socket, settings: Mapping[str, object], *, tells: bool = False
    ) -> None:
        self.name = name
        self.tap = tap
        self._services = services.prepare(settings_json.parse(settings))
        self.announcements = services.announcements(self._services)
        self.events = Reporter()
        self._tells = tells
        self.pause = 0.0  # seconds between looks at a tap that is down; 0: it is up
        self._tokens = float(BURST)
        self._filled = 0.0

    def take_turn(self, now: float, count: Count) -> bool:
        """Answers what came in. False when the guest has used up its tokens and has to wait.

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
        """Answers what came in at the socket by which the guest was served before.

        A frame that came since the new socket was opened is in both and is answered twice, which is
        harmless. OSError as above.
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
        except Exception as e:  # noqa: BLE001 -- an error of a codec concerns this one frame
            count(_PROTOCOLS.get(frame[12:14], "none"), "failed", f"{type(e).__name__}: {e}")
            return
        count(answer.service, answer.event, "")
        if self._tells and answer.service in REPORTED:
            self.events.note(self._filled, answer.service, answer.event, frame[6:12].hex(":"))
        self._send(answer, count)

    def _send(self, answer: FrameAnswer, count: Count) -> None:
        for frame in answer.frames:
            try:
                tap_socket.write(self.tap, frame)
            except OSError as e:
                count(answer.service, "unsent", "")
                # No room, or a frame longer than the tap's MTU, concerns this frame. The kernel reports an
                # error of a socket once, so this may be the only report of a tap that went down.
                if e.errno in (errno.ENETDOWN, errno.ENXIO):
                    raise

    def announce(self, count: Count) -> None:
        """Sends what is due unasked. OSError as above."""
        for frame in self.announcements:
            count("ra", "announcement", "")
            self._send(FrameAnswer("ra", "announcement", (frame,)), count)
