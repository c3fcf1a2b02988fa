"""An agent as far as a launcher can see: takes calls by the real protocol and answers as the test says."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cnvnet.cni.skel import Response
from cnvnet.launch.protocol import DESCRIPTORS, ForwardedCall, decode_call, encode_response, framed


class Received(NamedTuple):
    """One call, and where its descriptors lead to."""

    call: ForwardedCall
    document: dict[str, object]
    leads_to: dict[str, tuple[int, int]]


# What is sent for a call, as it goes over the wire; None hangs up. May use the connection itself.
Answer = Callable[[Received, socket.socket], bytes | None]


def responding(response: Response) -> Answer:
    return lambda received, connection: framed(encode_response(response))


def saying(message: bytes) -> Answer:
    return lambda received, connection: framed(message)


def take(connection: socket.socket) -> Received:
    """Reads one request as an agent has to: what comes by SCM_RIGHTS comes with the first byte."""
    room = socket.CMSG_SPACE(len(DESCRIPTORS) * 4)
    byte, control, flags, _ = connection.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, data in control:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        descriptors += memoryview(data).cast("i").tolist()
    try:
        assert flags & socket.MSG_CTRUNC == 0
        length = byte + exactly(connection, 3)
        document = json.loads(exactly(connection, int.from_bytes(length, "big")))
        call = decode_call(document)
        assert call is not None, document
        assert len(descriptors) == len(call.fds)
        stats = [os.fstat(descriptor) for descriptor in descriptors]
        leads_to = {name: (stat.st_dev, stat.st_ino) for name, stat in zip(call.fds, stats, strict=True)}
        return Received(call, document, leads_to)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def exactly(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        chunk = connection.recv(size - len(received))
        assert chunk, "the launcher has hung up"
        received += chunk
    return bytes(received)


class Agent:
    """A listening socket whose calls are answered by `answer`, and kept in `received`."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.answer = answer
        self.received: list[Received] = []
        self.errors: list[BaseException] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(512)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        # Ends accept(), which close() would not.
        self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listening.close()
        self.path.unlink()
        assert self.errors == []

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(60)
                received = take(connection)
                self.received.append(received)
                answer = self.answer(received, connection)
                if answer is not None:
                    connection.sendall(answer)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a launcher that has seen enough
        except BaseException as e:  # noqa: BLE001 -- close() raises it in the test
            self.errors.append(e)


@contextmanager
def agent(path: Path, answer: Answer) -> Generator[Agent]:
    made = Agent(path, answer)
    try:
        yield made
    finally:
        made.close()
