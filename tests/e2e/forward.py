"""Connections from this process's network namespace into a machine's, for clients that cannot enter it."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

from cnvnet.kernel import netns


class Forwarder:
    """Listens on a port of 127.0.0.1 and passes bytes on to `host`:`port` of the namespace, both ways."""

    def __init__(self, namespace: str, host: str, port: int) -> None:
        self._namespace = namespace
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Forwarder:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Unlike close, shutdown ends an accept that waits in another thread.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with netns.opened(self._namespace) as there, netns.entered(there):
                server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client, server:
            answers = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            answers.start()
            _pass_on(client, server)
            answers.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """All that comes, and then its end, so that the other side sees a connection closed in half as one."""
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # not connected any more
