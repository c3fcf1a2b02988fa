"""The agent's server: accepts connections, hands each request to the handler of its kind, and answers.

A request is 4 bytes of length, big-endian, and one JSON object `{"v": 1, ...}`; the answer has the same
form; then the connection is closed. Callers other than root are not answered.
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

from cnvnet.agent.calls.scheduler import MAX_DELETES, MAX_RUNNING
from cnvnet.agent.connection import SECONDS, CallerConnection, Document
from cnvnet.agent.supervisor import Supervisor
from cnvnet.cni.errors import INTERNAL, CNIError
from cnvnet.kernel.netns import LostNamespace
from cnvnet.launch.protocol import is_version
from cnvnet.resident import log

# Of the requests on the socket (docs/agent.md): a request of another version is answered `unsupported`.
VERSION: Final = 1
# Four more workers than call slots, so that guest requests are answered even when all slots are busy.
WORKERS: Final = MAX_RUNNING + MAX_DELETES + 4
# How long a stop waits for workers, in seconds: each ends its call first, which may wait for a program.
_LAST_CALLS: Final = 60.0
# At a stop, callers that have connected already may send their requests: all together for so many seconds,
# and each for so many at least. A launcher sends its request at once.
_LAST_WORDS: Final = 1.0
_WORD: Final = 0.02


class Handler(NamedTuple):
    """What is to be done about one kind of request."""

    # For the counters.
    label: str
    # Returns the answer's fields or raises CNIError. It runs in one of a few threads, and delays others.
    do: Callable[[Document], Document]


# The handler of a request by its fields; None: the agent does not know it.
Route = Callable[[Document], Handler | None]
# Takes a CNI call and its connection over; False: it is to be answered `unsupported`. Raises CNIError.
TakeCall = Callable[[Document, CallerConnection], bool]
# Called for each request with its label and its code: 0 when it was done.
Observe = Callable[[str, int], None]

_UNSUPPORTED: Final[Document] = {"v": VERSION, "unsupported": True}
_DONE: Final = 0
# HTTP's code for a method that the server does not know, as CNI has none.
_UNKNOWN: Final = 501


class Server:
    """All threads accept on the one socket: no request is handed from one thread to another."""

    def __init__(
        self,
        listening: socket.socket,
        route: Route,
        observe: Observe,
        supervisor: Supervisor,
        take: TakeCall | None = None,
        resume: Callable[[], None] | None = None,
    ) -> None:
        """`resume` is what a worker that replaces a lost one does first."""
        self._listening = listening
        self._route = route
        self._observe = observe
        self._supervisor = supervisor
        self._take = take
        self._resume = resume
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopping = False
        self._threads = [_worker(self._work) for _ in range(WORKERS)]
        self.last_call = time.monotonic()

    def start(self) -> None:
        """Answer requests from now on."""
        for thread in self._threads:
            thread.start()

    def stop(self, *, for_good: bool = True) -> None:
        """Requests that are being worked on are finished, and no new connection is accepted.

        Where no agent will accept at this socket again (`for_good`), callers that have connected already are
        answered if they send their requests at once.
        """
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        deadline = time.monotonic() + _LAST_CALLS
        for thread in self._threads:
            if thread.ident is not None:  # else it is about to replace another thread
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
        """Whether every worker runs."""
        return all(thread.is_alive() for thread in self._threads)

    def _work(self, first: Callable[[], None] | None = None) -> None:
        try:
            if first is not None:
                first()
            self._accept_all()
        except LostNamespace as e:
            other = _worker(self._work, self._resume)
            self._threads[self._threads.index(threading.current_thread())] = other
            self._supervisor.respawn(e, other)

    def _accept_all(self) -> None:
        with select.epoll() as poll:
            # EPOLLEXCLUSIVE: the kernel notifies one waiting worker of a connection. All of them would only
            # delay each other.
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
        connection = CallerConnection(connected)
        taken = False
        try:
            if connection.uid != 0:
                log.warning(
                    "a caller that is not root was turned away", pid=connection.pid, uid=connection.uid
                )
                self._observe("refused", 1)
                return
            document = connection.receive(seconds)
            is_call = is_version(document.get("v")) and "argv0" in document
            taken = is_call and self._take is not None and self._take(document, connection)
            if not taken:
                _send(connection, self._answer(document))
        except CNIError as e:
            self._observe("malformed", e.code)
            _try_send(connection, _error(e))
        except (OSError, EOFError) as e:
            # A caller that only tests whether an agent listens hangs up at once.
            log.debug("a caller hung up", pid=connection.pid, error=str(e))
        except Exception:  # noqa: BLE001 -- the worker stays
            log.crash("internal error", request="call")
        finally:
            if not taken:
                connection.close()
            self.last_call = time.monotonic()

    def _answer(self, document: Document) -> Document:
        handler = self._route(document) if is_version(document.get("v")) else None
        if handler is None:
            self._observe("unknown", _UNKNOWN)
            return _UNSUPPORTED
        begun = time.monotonic()
        code = _DONE
        try:
            return {"v": VERSION, **handler.do(document)}
        except CNIError as e:
            code = e.code
            log.info("refused", request=handler.label, code=code, error=e.msg)
            return _error(e)
        except Exception as e:  # noqa: BLE001 -- the caller gets an error, and the worker stays
            code = INTERNAL
            log.crash("internal error", request=handler.label)
            return _error(CNIError(INTERNAL, f"internal error of the agent: {type(e).__name__}: {e}"))
        finally:
            self._observe(handler.label, code)
            took = round((time.monotonic() - begun) * 1000, 1)
            log.debug("request", request=handler.label, code=code, ms=took)


def _worker(work: Callable[..., None], *args: object) -> threading.Thread:
    return threading.Thread(target=work, args=args, name="worker", daemon=True)


def _error(error: CNIError) -> Document:
    return {"v": VERSION, "error": {"code": error.code, "msg": error.msg}}


def _send(connection: CallerConnection, answer: Document) -> None:
    connection.send(json.dumps(answer).encode())


def _try_send(connection: CallerConnection, answer: Document) -> None:
    try:
        _send(connection, answer)
    except OSError:
        pass  # the caller has gone
