"""The packet loop as the agent runs it, and guests that are file descriptors of /dev/net/tun.

What is written to such a descriptor comes out of the tap as a guest's frame, and what is sent to the tap is
read from it: no QEMU is needed to play the guest.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cnvnet.guest import services, settings_json, tap_socket
from cnvnet.guest.settings import Settings
from cnvnet.kernel import netns
from tests.functional.masquerade.masquerade_pod import PATIENCE, open_tap
from tests.harness import Sandbox, namespace

ROOT = Path(__file__).parents[3]


class Loop:
    """A running packet loop and the agent's end of its channel."""

    def __init__(self, undo: ExitStack, program: Sequence[str] = ("-m", "cnvnet.guest.packet_loop")) -> None:
        self.end, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(self.end.close)
        self.end.settimeout(PATIENCE)
        fd = other.fileno()
        command = [sys.executable, *program, str(fd)]
        self.process = subprocess.Popen(command, pass_fds=[fd], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        undo.callback(self._end)
        other.close()

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def tell(self, message: Mapping[str, object] | bytes, *fds: int) -> None:
        data = message if isinstance(message, bytes) else json.dumps({"v": 1, **message}).encode()
        aside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.end.sendmsg([data], aside)

    def hear(self) -> dict[str, Any]:
        data = self.end.recv(1 << 18)
        assert data, f"the loop has ended: {self.process.wait(PATIENCE)}"
        document: dict[str, Any] = json.loads(data)
        return document

    def ask(self, message: Mapping[str, object] | bytes, *fds: int) -> dict[str, Any]:
        self.tell(message, *fds)
        return self.hear()

    def serve(self, name: str, guest: Guest, settings: Settings) -> dict[str, Any]:
        with guest.socket(settings) as tap:
            return self.ask({"serve": name, "settings": settings_json.encode(settings)}, tap.fileno())

    def totals(self) -> dict[str, Any]:
        """`counters` as a dictionary of (service, event)."""
        answer = self.ask({"counters": True})
        return {**answer, "counters": {(service, event): n for service, event, n in answer["counters"]}}

    def counted(self, service: str, event: str) -> int:
        number: int = self.totals()["counters"].get((service, event), 0)
        return number

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits for what will be so in a moment."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, self.totals()
            time.sleep(0.02)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wakeups(self) -> int:
        """How often it has gone to sleep so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("voluntary_ctxt_switches:")]
        return int(line.split()[1])

    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> list[str]:
        folder = f"/proc/{self.process.pid}/fd"
        return [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]


class Guest:
    """A tap and the descriptor by which the guest holds it."""

    def __init__(self, sandbox: Sandbox, tap: str, undo: ExitStack, *, up: bool = True) -> None:
        self.sandbox = sandbox
        self.tap = tap
        self.fd = open_tap(sandbox, tap)
        undo.callback(self.unplug)
        if up:
            self.link("addrgenmode", "none", "up")

    def link(self, *what: str) -> None:
        self.sandbox.run("ip", "link", "set", self.tap, *what)

    def unplug(self) -> None:
        """The tap is gone with this, for it is not a persistent one."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def socket(self, settings: Settings) -> socket.socket:
        """As the agent opens it."""
        with netns.opened(self.sandbox.netns) as inside, netns.entered(inside):
            return tap_socket.open_tap(self.tap, services.prepare(settings))

    def send(self, frame: bytes) -> None:
        os.write(self.fd, frame)

    def hear(self, wanted: Callable[[bytes], bool] = lambda _: True, patience: float = PATIENCE) -> bytes:
        """The next frame that is wanted; others are passed over."""
        deadline = time.monotonic() + patience
        while True:
            left = deadline - time.monotonic()
            assert left > 0, "no answer"
            if select.select([self.fd], [], [], left)[0]:
                frame = os.read(self.fd, 70000)
                if wanted(frame):
                    return frame

    def ask(self, frame: bytes, wanted: Callable[[bytes], bool] = lambda _: True) -> bytes:
        self.send(frame)
        return self.hear(wanted)

    def heard(self) -> list[bytes]:
        """All that has come so far."""
        found: list[bytes] = []
        while True:
            try:
                found.append(os.read(self.fd, 70000))
            except BlockingIOError:
                return found


class Lab:
    """Loops and guests that end with the test."""

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo

    def loop(self, *program: str) -> Loop:
        return Loop(self._undo, *([program] if program else ()))

    def sandbox(self) -> Sandbox:
        return Sandbox(self._undo.enter_context(namespace()))

    def guest(self, sandbox: Sandbox | None = None, tap: str = "tap0", *, up: bool = True) -> Guest:
        return Guest(sandbox or self.sandbox(), tap, self._undo, up=up)


@contextmanager
def a_lab() -> Generator[Lab]:
    with ExitStack() as undo:
        yield Lab(undo)
