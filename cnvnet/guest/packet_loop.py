"""The packet loop: one process, one thread, all guests of a node (python -m cnvnet.guest.packet_loop FD).

A guest's frame is answered at once or never. One guest's frames delay no other guest: the loop answers a few
of each in turn, and does not read from one that sends too much for a while; its socket's small buffer fills,
and the kernel drops the rest.
"""

from __future__ import annotations

import errno
import heapq
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from cnvnet.call_context import log
from cnvnet.cni.errors import CNIError
from cnvnet.guest import channel, tap_socket
from cnvnet.guest.channel import Channel, Drop, RefusedRequest, Serve
from cnvnet.guest.session import GuestSession

# Seconds between advertisements. A router's lifetime is 18 hours: this is for a guest that has missed it.
_ANNOUNCE: Final = 600.0
# Seconds without reading from a guest that has used up its tokens.
_CALM: Final = 0.25
# Seconds between two looks at a tap that is down: the kernel does not report the deletion of such a one.
_FIRST_LOOK: Final = 0.05
_LAST_LOOK: Final = 10.0

# Ready sockets of one step, so that the channel is read among hundreds of guests; epoll rotates them itself.
_AT_ONCE: Final = 64
# Characters: an answer has to fit into the channel, whatever it quotes.
_LONGEST_REASON: Final = 400

_TROUBLE: Final = select.EPOLLERR | select.EPOLLHUP
_ENDED: Final = select.EPOLLHUP | select.EPOLLRDHUP


class Timer(NamedTuple):
    """What is due when, for which guest."""

    when: float
    serial: int
    action: Callable[[GuestSession], None]
    guest: GuestSession


class PacketLoop:
    """The loop and its state. Closing the other end of the channel is all that ends it."""

    def __init__(self, control: Channel) -> None:
        self._control = control
        self._epoll = select.epoll()
        self._epoll.register(control, select.EPOLLIN | select.EPOLLRDHUP)
        self._guests: dict[str, GuestSession] = {}
        self._by_fd: dict[int, GuestSession] = {}
        self._timers: list[Timer] = []
        self._serial = 0
        self._counters: dict[tuple[str, str], int] = {}
        self._complained: set[tuple[str, str]] = set()
        self._dropped = 0
        self._throttled = 0

    def run(self) -> None:
        """Serves until the channel's other end is closed."""
        try:
            while True:
                self._step()
        except channel.Closed:
            return
        finally:
            for guest in list(self._guests.values()):
                self._forget(guest)
            self._epoll.close()

    def _step(self) -> None:
        timeout = max(self._timers[0].when - time.monotonic(), 0.0) if self._timers else None
        for fd, events in self._epoll.poll(timeout, _AT_ONCE):
            guest = self._by_fd.get(fd)
            if guest is not None:
                self._look_at(guest, events)
            elif fd == self._control.fileno():
                self._attend(events)
        while self._timers and self._timers[0].when <= time.monotonic():
            timer = heapq.heappop(self._timers)
            timer.action(timer.guest)

    def _after(self, seconds: float, action: Callable[[GuestSession], None], guest: GuestSession) -> None:
        self._serial += 1
        heapq.heappush(self._timers, Timer(time.monotonic() + seconds, self._serial, action, guest))

    def _attend(self, events: int) -> None:
        """One request from the channel, or room in it."""
        if self._control.is_full():
            self._control.flush()
            if not self._control.is_full():
                self._epoll.modify(self._control, select.EPOLLIN | select.EPOLLRDHUP)
            return
        try:
            answer = self._do(self._control.receive(ended=bool(events & _ENDED)))
        except BlockingIOError:
            return
        except RefusedRequest as e:
            answer = {"refused": e.name, "reason": str(e)} if e.name else {"error": str(e)}
        self._tell(answer)

    def _tell(self, answer: Mapping[str, object]) -> None:
        self._control.send(answer)
        if self._control.is_full():
            self._epoll.modify(self._control, select.EPOLLOUT | select.EPOLLRDHUP)

    def _do(self, request: channel.Request) -> Mapping[str, object]:
        if isinstance(request, Serve):
            return self._serve(request)
        if isinstance(request, Drop):
            guest = self._guests.get(request.name)
            if guest is not None:
                self._forget(guest)
            return {"dropped": request.name}
        return self._totals()

    def _serve(self, request: Serve) -> Mapping[str, object]:
        """A guest whose new settings cannot be used goes on being served with its old ones."""
        tap = None
        try:
            tap = tap_socket.adopt(request.fd)
            guest = GuestSession(request.name, tap, request.settings, tells=request.events)
            self._epoll.register(tap, select.EPOLLIN)
        except Exception as e:  # noqa: BLE001 -- a record of another version may hold anything
            if tap is not None:
                tap.close()
            return {"refused": request.name, "reason": _reason(e)[:_LONGEST_REASON]}
        before = self._guests.get(request.name)
        if before is not None:
            self._hand_over(before, guest)
        self._guests[guest.name] = guest
        self._by_fd[tap.fileno()] = guest
        self._after(0.0, self._announce, guest)  # behind the answer
        return {"served": guest.name}

    def _hand_over(self, before: GuestSession, guest: GuestSession) -> None:
        """Answers what the guest has asked already: it would wait for seconds before it asks again."""
        try:
            guest.take_over(before.tap, self._count)
        except OSError:
            guest.pause = _FIRST_LOOK
            self._after(0.0, self._look_for, guest)
        self._forget(before)

    def _totals(self) -> Mapping[str, object]:
        for guest in self._guests.values():
            self._dropped += tap_socket.take_drops(guest.tap)
        counters = [[service, event, number] for (service, event), number in sorted(self._counters.items())]
        return {
            "counters": counters,
            "guests": len(self._guests),
            "dropped": self._dropped,
            "throttled": self._throttled,
        }

    def _count(self, service: str, event: str, error: str) -> None:
        key = service, event
        self._counters[key] = self._counters.get(key, 0) + 1
        kind = service, error.partition(":")[0]
        if error and kind not in self._complained:
            self._complained.add(kind)
            log(f"{service}: a frame could not be answered: {error} (said once)")

    def _look_at(self, guest: GuestSession, events: int) -> None:
        try:
            if events & _TROUBLE:
                number = guest.tap.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # reading it clears it
                if number:
                    raise OSError(number, os.strerror(number))
            if not events & select.EPOLLIN:
                return
            calm = guest.take_turn(time.monotonic(), self._count)
        except OSError as e:
            self._on_error(guest, e)
            return
        self._tell_events(guest)
        if not calm:
            self._throttled += 1
            self._epoll.modify(guest.tap, 0)  # errors still come
            self._after(_CALM, self._resume, guest)

    def _tell_events(self, guest: GuestSession) -> None:
        """Reports as many events as the channel has room for: answers to requests come first."""
        events = guest.events.take()
        while events and not self._control.is_full():
            self._tell({"heard": guest.name, **events.pop(0)._asdict()})
        guest.events.lose(events)

    def _resume(self, guest: GuestSession) -> None:
        self._epoll.modify(guest.tap, select.EPOLLIN)

    def _on_error(self, guest: GuestSession, error: OSError) -> None:
        if error.errno not in (errno.ENETDOWN, errno.ENXIO):
            self._lose(guest, _reason(error))
        elif not guest.pause:
            guest.pause = _FIRST_LOOK
            self._look_for(guest)

    def _look_for(self, guest: GuestSession) -> None:
        """Whether a tap that was down is up again, or gone: its socket reports neither for certain."""
        state = tap_socket.state(guest.tap)
        if state == tap_socket.GONE:
            self._lose(guest, channel.TAP_GONE)
        elif state == tap_socket.UP:
            guest.pause = 0.0
            self._advertise(guest)
        else:
            self._after(guest.pause, self._look_for, guest)
            guest.pause = min(guest.pause * 2, _LAST_LOOK)

    def _announce(self, guest: GuestSession) -> None:
        if guest.announcements:
            # A fifth more or less, so that the guests of a node do not get theirs all at once for ever.
            jitter = 0.8 + 0.4 * os.urandom(1)[0] / 255
            self._after(_ANNOUNCE * jitter, self._announce, guest)
            self._advertise(guest)

    def _advertise(self, guest: GuestSession) -> None:
        try:
            guest.announce(self._count)
        except OSError as e:
            self._on_error(guest, e)

    def _lose(self, guest: GuestSession, reason: str) -> None:
        self._forget(guest)
        self._tell({"lost": guest.name, "reason": reason})

    def _forget(self, guest: GuestSession) -> None:
        self._dropped += tap_socket.take_drops(guest.tap)
        del self._guests[guest.name]
        del self._by_fd[guest.tap.fileno()]
        self._timers = [timer for timer in self._timers if timer.guest is not guest]
        heapq.heapify(self._timers)
        self._epoll.unregister(guest.tap)
        guest.tap.close()


def _reason(error: Exception) -> str:
    if isinstance(error, CNIError):
        return error.msg
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"{type(error).__name__}: {error}"


def main() -> int:
    """The program. Its one argument is the descriptor of its end of the channel."""
    try:
        end = socket.socket(fileno=int(sys.argv[1]))
        if (end.family, end.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            raise ValueError("not an AF_UNIX SOCK_SEQPACKET socket")
    except (IndexError, ValueError, OSError) as e:
        log(f"cnvnet.guest.packet_loop FD: {e}")
        return 2
    end.set_inheritable(False)
    # Ctrl-C in a terminal is for the agent, which ends the loop by closing the channel. SIGTERM ends it at
    # once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))  # a blocked one would be inherited
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    PacketLoop(Channel(end)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
