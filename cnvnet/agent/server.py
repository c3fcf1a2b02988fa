"""The agent's door: requests come in, are dealt out by their kind, and answered. It knows no kind itself.

A request is 4 bytes of length, big-endian, and one JSON object `{"v": 1, ...}`; the answer has the same
form; then the connection is closed. Only root is heard.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from cnvnet.agent import log
from cnvnet.agent.connection import SECONDS, Connection, Document
from cnvnet.agent.foreman import Foreman
from cnvnet.agent.turns import PLACES
from cnvnet.cni.errors import INTERNAL, CNIError
from cnvnet.kernel.netns import LostNamespace

VERSION: Final = 1
# More than calls run at any moment: whoever wants something else is heard.
WORKERS: Final = PLACES + 4
# Whoever runs a call ends it first, and a program that it has started takes its time.
_LAST_CALLS: Final = 60.0
# What callers who come last have for their requests, all together, and each of them at least: a launcher's
# is there at once.
_LAST_WORDS: Final = 1.0
_WORD: Final = 0.02


class Kind(NamedTuple):
    """What is to be done about one kind of request. `do` returns the answer's fields or raises CNIError.

    It runs in one of a few threads; who takes long keeps others waiting. `label` is for the counters.
    """

    label: str
    do: Callable[[Document], Document]


# The kind of a request by what is in it; None: nobody here knows it.
Find = Callable[[Document], Kind | None]
# Takes a CNI call and its connection over; False: it is to be answered `unsupported`. Raises CNIError.
Take = Callable[[Document, Connection], bool]
# Told of each request: its label, and its code, 0 when it was done.
Observe = Callable[[str, int], None]

_UNSUPPORTED: Final[Document] = {"v": VERSION, "unsupported": True}
_DONE: Final = 0
# HTTP has no better word either: what was asked is not known here.
_UNKNOWN: Final = 501


class Server:
    """All threads accept on the one socket: there is no hand-over, and nobody who could be late with it."""

    def __init__(
        self,
        listening: socket.socket,
        find: Find,
        observe: Observe,
        foreman: Foreman,
        take: Take | None = None,
        resume: Callable[[], None] | None = None,
    ) -> None:
        """`resume` is what a worker in the place of a lost one begins with."""
        self._listening = listening
        self._find = find
        self._observe = observe
        self._foreman = foreman
        self._take = take
        self._resume = resume
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopping = False
        self._threads = [_worker(self._work) for _ in range(WORKERS)]
        self.last_call = time.monotonic()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, *, for_good: bool = True) -> None:
        """Requests that are being worked on are finished, and nobody else is heard.

        Where nobody will accept at the socket again (`for_good`), those who are connected already are, if
        they say at once what they want.
        """
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        deadline = time.monotonic() + _LAST_CALLS
        for thread in self._threads:
            if thread.ident is not None:  # else it is about to be started in another's place
                thread.join(max(0.0, deadline - time.monotonic()))
        if for_good:
            self._serve_the_last()

    def _serve_the_last(self) -> None:
        deadline = time.monotonic() + _LAST_WORDS
        while True:
            try:
                connected, _ = self._listening.accept()
            except OSError:
                return
            self._serve(connected, max(_WORD, deadline - time.monotonic()))

    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def _work(self, first: Callable[[], None] | None = None) -> None:
        try:
            if first is not None:
                first()
            self._accept_all()
        except LostNamespace as e:
            other = _worker(self._work, self._resume)
            self._threads[self._threads.index(threading.current_thread())] = other
            self._foreman.replace(e, other)

    def _accept_all(self) -> None:
        with select.epoll() as poll:
            # A caller wakes one of those who wait: of all of them, every other one would be in its way.
            poll.register(self._listening, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            poll.register(self._wake, select.EPOLLIN)
            self._accept(poll)

    def _accept(self, poll: select.epoll) -> None:
        while not self._stopping:
            poll.poll()
            try:
                connected, _ = self._listening.accept()
            except BlockingIOError:
                continue  # another worker was faster
            except OSError as e:
                log.error("accept", error=str(e))
                time.sleep(0.1)  # out of descriptors: not in a busy loop
                continue
            self._serve(connected)

    def _serve(self, connected: socket.socket, seconds: float = SECONDS) -> None:
        self.last_call = time.monotonic()
        connection = Connection(connected)
        taken = False
        try:
            if connection.uid != 0:
                log.warning(
                    "a caller that is not root was turned away", pid=connection.pid, uid=connection.uid
                )
                self._observe("refused", 1)
                return
            document = connection.receive(seconds)
            is_call = document.get("v") == VERSION and "argv0" in document
            taken = is_call and self._take is not None and self._take(document, connection)
            if not taken:
                _send(connection, self._answer(document))
        except CNIError as e:
            self._observe("malformed", e.code)
            _try_send(connection, _error(e))
        except (OSError, EOFError) as e:
            # A caller that only looks whether anybody is there hangs up at once.
            log.debug("a caller hung up", pid=connection.pid, error=str(e))
        except Exception:  # noqa: BLE001 -- the worker stays
            log.crash("internal error", request="call")
        finally:
            if not taken:
                connection.close()
            self.last_call = time.monotonic()

    def _answer(self, document: Document) -> Document:
        kind = self._find(document) if document.get("v") == VERSION else None
        if kind is None:
            self._observe("unknown", _UNKNOWN)
            return _UNSUPPORTED
        begun = time.monotonic()
        code = _DONE
        try:
            return {"v": VERSION, **kind.do(document)}
        except CNIError as e:
            code = e.code
            log.info("refused", request=kind.label, code=code, error=e.msg)
            return _error(e)
        except Exception as e:  # noqa: BLE001 -- the caller gets an error, and the worker stays
            code = INTERNAL
            log.crash("internal error", request=kind.label)
            return _error(CNIError(INTERNAL, f"internal error of the agent: {type(e).__name__}: {e}"))
        finally:
            self._observe(kind.label, code)
            took = round((time.monotonic() - begun) * 1000, 1)
            log.debug("request", request=kind.label, code=code, ms=took)


def _worker(work: Callable[..., None], *args: object) -> threading.Thread:
    return threading.Thread(target=work, args=args, name="worker", daemon=True)


def _error(error: CNIError) -> Document:
    return {"v": VERSION, "error": {"code": error.code, "msg": error.msg}}


def _send(connection: Connection, answer: Document) -> None:
    connection.send(json.dumps(answer).encode())


def _try_send(connection: Connection, answer: Document) -> None:
    try:
        _send(connection, answer)
    except OSError:
        pass  # it did not make sense before, either
