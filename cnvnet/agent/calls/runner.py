"""Whole CNI calls that launchers hand to the agent: docs/agent-protocol.md.

A call is run by the skeleton, as in an executable, in the worker that has read it or, where it had to wait
for a slot, in the one that has just ended another.
"""

from __future__ import annotations

import resource
import time
from _thread import get_ident
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from typing import Final

from cnvnet import call_context
from cnvnet.agent.calls import call_log
from cnvnet.agent.calls.call import Call, has_absolute_paths
from cnvnet.agent.calls.call_log import FinishedCall
from cnvnet.agent.calls.remote_caller import AgentView, RemoteCaller
from cnvnet.agent.calls.run_lock import RunLock
from cnvnet.agent.calls.scheduler import MAX_DELETES, MAX_RUNNING, CallKey, CallScheduler, QueueFull
from cnvnet.agent.connection import CallerConnection, Document
from cnvnet.attachment import files
from cnvnet.call_context import Service
from cnvnet.cni import skel
from cnvnet.cni.document import encode, error_document
from cnvnet.cni.errors import DECODING_FAILURE, TRY_AGAIN_LATER, CNIError
from cnvnet.cni.skel import Load, Response
from cnvnet.kernel.netns import LostNamespace
from cnvnet.launch import protocol
from cnvnet.launch.protocol import MalformedMessage
from cnvnet.resident import log

# The PATH of programs that a call starts: the caller does not send its own.
# Descriptors that the workers may need: ten for each that runs a call, or has just received one.
_OF_WORKERS: Final = 10 * (MAX_RUNNING + MAX_DELETES)
# How long a launcher may take to read the result of an ADD, in seconds; it does nothing else meanwhile.
_READING: Final = 1.0
# Bytes. An answer has room for 16 MiB in base64, and diagnostics are the part that nothing depends on.
_LONGEST_STDERR: Final = 1 << 20

# Launchers wait for so many seconds (cnvnet.launch.forward): a call that still runs will hardly end.
_STUCK: Final = 120.0

# Called for each call when it has been answered.
Observe = Callable[[FinishedCall], None]


class CallRunner:
    """All calls of one agent. Several threads call it, and each may be busy with calls when it does."""

    def __init__(
        self,
        rundir: str,
        plugins: Mapping[str, Load],
        service: Service,
        observe: Observe,
    ) -> None:
        self._rundir = rundir
        self._plugins = plugins
        self._service = service
        self._observe = observe
        self._agent_view = AgentView()
        self._scheduler: CallScheduler[Call] = CallScheduler()
        self._run_lock = RunLock()
        self._closed = False
        self._begun: dict[int, tuple[float, Call]] = {}  # calls that run, by the thread
        self._highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OF_WORKERS

    def take(self, document: Document, connection: CallerConnection) -> bool:
        """Runs a call or queues it, and closes the connection in the end.

        False: it is to be answered `unsupported`, nothing has been done. CNIError 6: it is no call. In both
        cases the connection is still the server's.
        """
        received = self._received(document, connection)
        if received is None:
            return False
        call = received.parsed()
        if not self._shares_state(call) or self._closed or self._is_crowded(connection):
            return False
        # What was sent may be large, and the server holds it until the call is over.
        document.clear()
        if not call.needs_plugin:
            self._run(call)
            return True
        key = call.key()
        try:
            # A call that has to wait does so without what was parsed of it.
            if self._scheduler.try_start(key, received):
                self._work(key, call)
        except QueueFull:
            with closing(connection):
                self._refuse(call, "the agent has more calls waiting than it has room for")
        return True

    def close(self) -> None:
        """Lets running calls end. Calls in the queue, and new ones, are left to their launchers."""
        self._closed = True
        for call in self._scheduler.drain():
            call.turn_away()

    def resume(self) -> None:
        """Runs what waits for the slot of a lost thread, in the thread that replaces it."""
        following = self._scheduler.next()
        if following is not None:
            self._work(*following)

    def running(self) -> int:
        """How many calls have a slot."""
        return self._scheduler.running()

    def waiting(self) -> int:
        """How many calls are queued."""
        return self._scheduler.waiting()

    def stuck(self) -> list[str]:
        """Calls that have run for longer than their launchers wait: their slots may be lost."""
        now = time.monotonic()
        return [
            f"{call.command} of {call.plugin} for {call.description()} has run for"
            f" {now - begun:.0f} s, and its launcher has given up"
            for begun, call in list(self._begun.values())
            if now - begun > _STUCK
        ]

    def _work(self, key: CallKey, call: Call) -> None:
        """The call, and every other that may run because it is over."""
        while True:
            try:
                if self._closed:
                    call.turn_away()
                else:
                    self._run(call.parsed())
            except LostNamespace:
                self._scheduler.abandon(key)
                raise
            except Exception:  # noqa: BLE001 -- others wait for the slot
                log.crash("internal error", request="call")
            following = self._scheduler.finish(key)
            if following is None:
                return
            key, call = following

    def _is_crowded(self, connection: CallerConnection) -> bool:
        """Whether calls that run might soon find no descriptor left."""
        # The kernel gives the lowest that is free.
        if max(connection.descriptors) < self._highest:
            return False
        log.warning("a call was turned away: too many files are open", remedy="LimitNOFILE=, ulimit -n")
        return True

    def _received(self, document: Document, connection: CallerConnection) -> Call | None:
        """None for a call that is not for this agent."""
        try:
            message = protocol.decode_call(document)
        except MalformedMessage as e:
            raise CNIError(DECODING_FAILURE, str(e)) from e
        if message is None or message.argv0 not in self._plugins or not has_absolute_paths(message.env):
            return None
        names = message.fds
        if len(connection.descriptors) != len(names) or not {"self", "mnt", "root"} <= {*names}:
            raise CNIError(DECODING_FAILURE, "fds: not what came along")
        descriptors = dict(zip(names, connection.descriptors, strict=True))
        remote = RemoteCaller(self._agent_view, message.env.get("CNI_NETNS", ""), descriptors)
        if not remote.shares_netns():
            return None
        env = {"PATH": call_context.DEFAULT_PATH, **message.env, "CNVNET_AGENT": "off"}
        return Call(message.argv0, env, message.stdin, remote, connection, time.monotonic())

    def _shares_state(self, call: Call) -> bool:
        """Whether the call, run by its launcher, would find the same records and leases as here."""
        if not call.remote.same_rundir(files.rundir(call.env), self._rundir):
            log.warning("a caller with other records was turned away", rundir=files.rundir(call.env))
            return False
        for folder in () if call.remote.same_view else self._shared_folders(call):
            if not call.remote.shares(folder):
                log.warning("a caller with other leases was turned away", folder=folder)
                return False
        return True

    def _shared_folders(self, call: Call) -> tuple[str, ...]:
        """What the call's plugin says; none where something is wrong with the call, which it says later."""
        try:
            request = call.read_request()
            return self._load(call)(call.env).shared_folders(request)
        except CNIError:
            return ()

    def _load(self, call: Call) -> Load:
        """The plugin of the call, with records in the agent's folder, by whichever path the caller knows it.

        Programs that the call starts get the caller's path.
        """
        load = self._plugins[call.plugin]
        return lambda env: load({**env, "CNVNET_RUNDIR": self._rundir})

    def _run(self, call: Call) -> None:
        with self._working(call) as release, closing(call.connection):
            is_add = call.command == "ADD"
            if is_add and call.connection.is_gone():
                log.info("an ADD whose caller has gone was not run", **call.log_fields())
                return
            try:
                finished = self._respond(call)
            except LostNamespace as e:
                # As after a kill -9: the record tells the next call what to do.
                self._refuse(call, f"the agent has lost the thread that ran this call: {e}")
                raise
            was_sent = self._send(call, finished.response)
            release()
            self._report(finished)
            if not (is_add and finished.response.exit == 0):
                return
            if not was_sent or call.connection.was_left_unread(_READING):
                log.warning("the result of an ADD was not read: it is undone", **call.log_fields())
                with self._working(call):
                    undone = self._respond(call.as_delete()._replace(arrived=time.monotonic()))
                self._report(undone)

    @contextmanager
    def _working(self, call: Call) -> Generator[Callable[[], None]]:
        """This thread works for the caller, under the run lock if the call is of an attachment.

        The lock is not held while the call waits for another machine. What this gives releases it early.
        """
        if not call.is_of_attachment:
            with call_context.on_behalf_of(call.remote, self._service):
                yield lambda: None
            return
        with (
            self._run_lock.held() as lock,
            call_context.on_behalf_of(call.remote, self._service, lock.paused),
        ):
            call.remote.on_exec = lock.release
            yield lock.release

    def _respond(self, call: Call) -> FinishedCall:
        begun, thread = time.monotonic(), get_ident()
        self._begun[thread] = begun, call
        try:
            response = skel.run_request(
                call.plugin, self._load(call), call.env, call.read_request, arrived=call.arrived
            )
        finally:
            del self._begun[thread]
        return _finished(call, response, begun)

    def _refuse(self, call: Call, reason: str) -> None:
        """Nothing was done, or it was broken off: the caller is to try again."""
        error = CNIError(TRY_AGAIN_LATER, reason)
        response = Response(1, encode(error_document(error, "")), b"", error=error)
        self._send(call, response)
        self._report(_finished(call, response, time.monotonic()))

    def _report(self, call: FinishedCall) -> None:
        """To the metrics and the log. The caller has its answer: nothing of it waits for this."""
        self._observe(call)
        call_log.write(call)

    def _send(self, call: Call, response: Response) -> bool:
        """Whether the caller was there to take it."""
        answer = protocol.encode_response(response._replace(stderr=response.stderr[-_LONGEST_STDERR:]))
        try:
            call.connection.send(answer)
        except OSError as e:
            log.debug("a caller hung up", pid=call.connection.pid, error=str(e))
            return False
        return True


def _finished(call: Call, response: Response, begun: float) -> FinishedCall:
    seconds, waited = time.monotonic() - begun, begun - call.arrived
    return FinishedCall(call.plugin, call.env, call.config, response, seconds, waited)
