"""The packet loop's process: starts it, sends it requests, and starts it again when it has died."""

from __future__ import annotations

import json
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from cnvnet.guest.channel import LARGEST, VERSION
from cnvnet.guest.events import Event
from cnvnet.resident import log

# Seconds. An answer takes a millisecond; a loop that needs this long is stuck, and is killed.
_ANSWER: Final = 5.0
# Seconds between the death of a loop and the start of another one: doubled each time, up to the longest.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
# Seconds. A loop that has lived so long did not die of being started: the pause is the first again.
_STABLE: Final = 10.0


class LoopError(Exception):
    """The loop does not run, does not answer, or refuses; the text says which."""


class Totals(NamedTuple):
    """What has been counted since the agent was started."""

    # By (service, event).
    events: Mapping[tuple[str, str], int]
    # Frames that did not fit into a guest's socket buffer.
    dropped: int
    # How often a guest was paused because it sent more than its share.
    throttled: int


class Lost(NamedTuple):
    """A guest whose socket failed: it is not served any more."""

    name: str
    reason: str


class PacketLoopProcess:
    """The loop, whichever process it is at the moment.

    `changed` is called, in a thread of this object, when the process has died or has lost a guest: then
    `keep_alive` and `take_lost` have something to do. `on_event`, called in that thread, too, gets each
    event of a guest; it must not wait for this object.
    """

    def __init__(
        self, changed: Callable[[], None], on_event: Callable[[str, Event], None] | None = None
    ) -> None:
        self._changed = changed
        self._on_event = on_event
        self._process: _Process | None = None
        self._one_at_a_time = threading.Lock()
        self._start = threading.Condition()
        self._lost: deque[Lost] = deque()
        self._pause = 0.0
        self._not_before = 0.0
        self._before = Totals(Counter(), 0, 0)  # of processes that have died
        self._latest = Totals(Counter(), 0, 0)  # of the one there is
        self.restarts = -1  # the first start is none

    def keep_alive(self) -> bool:
        """Starts a process if there is none, not too often. True: it was started and serves no guest."""
        now = time.monotonic()
        process = self._process
        if process is not None and process.is_alive():
            return False
        if process is not None:
            self._reap(process, now)
        if now < self._not_before:
            return False
        try:
            process = _Process(self._changed, self._lost, self._on_event)
        except OSError as e:
            log.error("the packet loop cannot be started", error=str(e))
            self._delay(now)
            return False
        self.restarts += 1
        with self._start:
            self._process = process
            self._start.notify_all()
        log.info("packet loop started", pid=process.pid, restarts=self.restarts)
        return True

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.end()

    def is_alive(self) -> bool:
        """Whether the process runs and answers."""
        process = self._process
        return process is not None and process.is_alive()

    @property
    def pid(self) -> int:
        """0: there is none."""
        return self._process.pid if self._process is not None else 0

    def wait(self, seconds: float) -> bool:
        """Whether there is a process that lives, now or within `seconds`."""
        with self._start:
            return self._start.wait_for(self.is_alive, seconds)

    def serve(self, name: str, settings: Mapping[str, object], tap: socket.socket) -> None:
        """The guest is served on return. LoopError."""
        request = {"serve": name, "settings": settings, "events": self._on_event is not None}
        answer = self._ask(request, ("served", "refused"), name, tap)
        if "refused" in answer:
            raise LoopError(str(answer.get("reason")))

    def drop(self, name: str) -> None:
        """The guest's socket is closed on return, be it by the end of the process."""
        try:
            self._ask({"drop": name}, ("dropped",), name)
        except LoopError as e:
            log.debug("drop", record=name, error=str(e))

    def take_lost(self) -> list[Lost]:
        """Guests that the loop has lost since the last call."""
        return [self._lost.popleft() for _ in range(len(self._lost))]

    def totals(self) -> Totals:
        """The counters; those of the last answer while there is no process to ask."""
        try:
            answer = self._ask({"counters": True}, ("counters",), None)
        except LoopError as e:
            log.debug("counters", error=str(e))
        else:
            events = Counter({(service, event): number for service, event, number in answer["counters"]})
            self._latest = Totals(events, answer["dropped"], answer["throttled"])
        return _sum(self._before, self._latest)

    def _ask(
        self,
        request: Mapping[str, object],
        replies: tuple[str, ...],
        name: str | None,
        tap: socket.socket | None = None,
    ) -> dict[str, Any]:
        with self._one_at_a_time:
            process = self._process
            if process is None or not process.is_alive():
                raise LoopError("the packet loop is not running")
            return process.ask({"v": VERSION, **request}, replies, name, tap)

    def _reap(self, process: _Process, now: float) -> None:
        self._process = None
        self._lost.clear()  # no guest is served now, and all will be again
        process.end()
        log.error("the packet loop has ended", pid=process.pid, status=process.status())
        self._before, self._latest = _sum(self._before, self._latest), Totals(Counter(), 0, 0)
        if now - process.started > _STABLE:
            self._pause = 0.0
        self._delay(now)

    def _delay(self, now: float) -> None:
        self._not_before = now + self._pause
        self._pause = min(max(self._pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)


class _Process:
    """One process, its end of the channel, and the threads that listen to it."""

    def __init__(
        self,
        changed: Callable[[], None],
        lost: deque[Lost],
        on_event: Callable[[str, Event], None] | None,
    ) -> None:
        self._changed = changed
        self._on_event = on_event
        self._lost = lost
        self._replies: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._alive = True
        self.started = time.monotonic()
        # Each request and reply is one message, and a descriptor arrives with the message it was sent with.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A loop that reads nothing fills the channel, and would hold its caller for ever.
        timeout = struct.pack("@ll", int(_ANSWER), 0)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        self._channel = ours
        # -I: no variable and no working folder decides which modules the loop imports.
        command = [sys.executable, "-I", "-m", "cnvnet.guest.packet_loop", str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the agent
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        for target in (self._read, self._log_stderr):
            threading.Thread(target=target, name=f"loop-{self.pid}", daemon=True).start()

    def is_alive(self) -> bool:
        return self._alive

    def status(self) -> int | None:
        return self._process.poll()

    def end(self) -> None:
        """Its end is the end of the channel; one that does not see that is killed."""
        self._alive = False
        try:
            self._channel.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was gone before us
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(
        self,
        request: Mapping[str, object],
        replies: tuple[str, ...],
        name: str | None,
        tap: socket.socket | None,
    ) -> dict[str, Any]:
        """The reply that is about this request. LoopError; a process that does not answer is killed."""
        aside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("@i", tap.fileno()))] if tap else []
        try:
            self._channel.sendmsg([json.dumps(request).encode()], aside)
        except OSError as e:
            raise LoopError(f"a request cannot be sent to the packet loop: {e.strerror}") from e
        deadline = time.monotonic() + _ANSWER
        while self._alive:
            try:
                reply = self._replies.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                log.error("the packet loop does not answer and is killed", pid=self.pid)
                self._process.kill()
                raise LoopError("the packet loop does not answer") from None
            if "error" in reply:
                raise LoopError(f"the packet loop: {reply['error']}")
            subject = next((reply[key] for key in replies if key in reply), None)
            if subject is not None and name in (None, subject):
                return reply
        raise LoopError("the packet loop has ended")

    def _read(self) -> None:
        """Until the process closes its end."""
        while True:
            try:
                data = self._channel.recv(LARGEST)
            except OSError:
                data = b""
            if not data:
                break
            reply: dict[str, Any] = json.loads(data)
            if "heard" in reply and self._on_event is not None:
                event = Event(reply["service"], reply["event"], reply["mac"], reply["missed"])
                self._on_event(reply["heard"], event)
            elif "lost" in reply:
                self._lost.append(Lost(reply["lost"], str(reply.get("reason"))))
                self._changed()
            else:
                self._replies.put(reply)
        self._alive = False
        self._channel.close()
        self._replies.put({})  # a thread that waits for a reply sees the end
        self._changed()

    def _log_stderr(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                log.warning(line.decode(errors="replace").rstrip(), pid=self.pid, part="packet loop")


def _sum(one: Totals, other: Totals) -> Totals:
    events = Counter(one.events) + Counter(other.events)
    return Totals(events, one.dropped + other.dropped, one.throttled + other.throttled)
