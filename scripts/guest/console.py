"""The guest's serial line: runs commands in the guest's shell and reads their output and exit status."""

from __future__ import annotations

import secrets
import shlex
import socket
import time
from typing import NamedTuple


class CommandResult(NamedTuple):
    """A command that has ended: its exit status, and its standard output and error as one text."""

    status: int
    output: str

    def ok(self) -> str:
        """The output of a command that must have succeeded."""
        assert self.status == 0, f"exit {self.status}: {self.output}"
        return self.output


class Console:
    """`line` is the socket that QEMU connects to the guest's ttyS0; the caller closes it."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._received = b""

    def wait_ready(self, seconds: float) -> None:
        """Until the guest's first program has done its work."""
        self._read_until(b"ready\n", seconds)

    def run(self, command: str, seconds: float) -> CommandResult:
        """A command of the guest's shell, TimeoutError if it takes longer than that."""
        mark = secrets.token_hex(8)
        # Within quotes the mark is in two pieces, so that no echo of the line can be taken for the end.
        line = (
            f"sh -c {shlex.quote(command)} </dev/null 2>&1; printf '%s%s %d\\n' {mark[:8]} {mark[8:]} $?\n"
        )
        self._line.sendall(line.encode())
        output = self._read_until(mark.encode(), seconds)
        status = self._read_until(b"\n", seconds)
        return CommandResult(int(status), output.decode(errors="replace"))

    def _read_until(self, end: bytes, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while end not in self._received:
            self._line.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                read = self._line.recv(65536)
            except TimeoutError:
                raise TimeoutError(f"{seconds} s without {end!r} from the guest: {self.tail()}") from None
            if not read:
                raise RuntimeError(f"the guest is gone: {self.tail()}")
            self._received += read
        output, _, self._received = self._received.partition(end)
        return output

    def tail(self) -> str:
        """The last 2,000 bytes that came and no command has taken, for error messages."""
        return self._received[-2000:].decode(errors="replace")
