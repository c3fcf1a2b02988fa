"""A client of QEMU's machine protocol, QMP (docs/interop/qmp-spec): one command at a time."""

from __future__ import annotations

import json
import socket
from typing import Any


class Qmp:
    """`connection` is a stream to a QEMU that has been started; it is not closed here."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pending = b""
        self._events: list[dict[str, Any]] = []

    def negotiate(self) -> None:
        """Leave the mode in which QEMU takes no commands but this one."""
        greeting = self._receive()
        assert "QMP" in greeting, greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, *, send: int | None = None, **arguments: object) -> dict[str, Any]:
        """What the command returned; RuntimeError with QEMU's words if it failed.

        `send` is a descriptor that goes along.
        """
        text = json.dumps({"execute": command, "arguments": arguments}).encode()
        socket.send_fds(self._connection, [text], [] if send is None else [send])
        while True:
            message = self._receive()
            if "error" in message:
                raise RuntimeError(f"{command}: {message['error']['desc']}")
            if "return" in message:
                result: dict[str, Any] = message["return"]
                return result
            self._events.append(message)

    def wait(self, event: str, **data: object) -> None:
        """Until QEMU has reported this event, with these data among others; it is then forgotten."""
        while True:
            for message in self._events:
                if message["event"] == event and data.items() <= message.get("data", {}).items():
                    self._events.remove(message)
                    return
            self._events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        while b"\n" not in self._pending:
            read = self._connection.recv(65536)
            if not read:
                raise RuntimeError("QEMU has closed the connection")
            self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message
