"""Whole CNI calls that launchers hand to the agent: docs/agent-protocol.md.

A call is run by `skel.run`, as an executable runs it, in the worker that has read it or, where it had to
wait for its turn, in the one that has just ended another.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final, NamedTuple

from cnvnet import attachments, caller
from cnvnet.agent import log
from cnvnet.agent.connection import Connection, Document
from cnvnet.agent.lane import Lane
from cnvnet.agent.remote import Home, Remote
from cnvnet.agent.turns import PLACES, Full, Subject, Turns
from cnvnet.cni import forwarding, skel
from cnvnet.cni.document import encode, error_document
from cnvnet.cni.errors import DECODING_FAILURE, INTERNAL, TRY_AGAIN_LATER, CNIError
from cnvnet.cni.fields import Fields
from cnvnet.cni.forwarding import Call, Unintelligible
from cnvnet.cni.request import COMMANDS, parse
from cnvnet.cni.skel import Load, Response
from cnvnet.guest import provider
from cnvnet.ipam.static_ip.config import folder
from cnvnet.kernel.netns import LostNamespace
from cnvnet.plugins.cnv_bridge.config import OWN_IPAM

# Who ran a call would give the programs that it starts its PATH; a caller's stays with the caller.
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OF_ATTACHMENTS: Final = ("ADD", "CHECK", "DEL")
_OF_NO_PLUGIN: Final = ("", "VERSION")
# Descriptors that the workers may need: ten of each that runs a call, or has just received one.
_OF_WORKERS: Final = 10 * PLACES
# How long a launcher may take to read the result of an ADD; it does nothing else.
_READING: Final = 1.0
# An answer has room for 16 MiB in base64, and diagnostics are the part that nothing depends on.
_LONGEST_STDERR: Final = 1 << 20

# Told of each call: plugin, command, error code (0: none), seconds.
Observe = Callable[[str, str, int, float], None]


class _Job(NamedTuple):
    call: Call
    env: Mapping[str, str]
    remote: Remote
    connection: Connection
    came: float


class Calls:
    """All calls of one agent. Several threads call it, and each may be busy with calls when it does."""

    def __init__(
        self, rundir: str, plugins: Mapping[str, Load], service: provider.Service, observe: Observe
    ) -> None:
        self._rundir = rundir
        self._plugins = plugins
        self._service = service
        self._observe = observe
        self._home = Home()
        self._turns: Turns[_Job] = Turns()
        self._lane = Lane()
        self._closed = False
        self._highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OF_WORKERS

    def take(self, document: Document, connection: Connection) -> bool:
        """Runs a call or lets it wait; the connection is ours from now on, and closed in the end.

        False: it is to be answered `unsupported`, nothing has been done. CNIError 6: it is no call. In both
        cases the connection still is the other's.
        """
        job = self._job(document, connection)
        if job is None or self._closed or self._is_crowded(connection):
            return False
        # What was sent may be large, and whoever has read it holds it until the call is over.
        document.clear()
        if job.env.get("CNI_COMMAND", "") in _OF_NO_PLUGIN:
            self._run(job)
            return True
        subject = _subject(job)
        try:
            if self._turns.begin(subject, job):
                self._work(subject, job)
        except Full:
            with closing(connection):
                self._send(job, _later("the agent has more calls waiting than it has room for"))
        return True

    def close(self) -> None:
        """Running calls end; those that wait, and any that come, are for their launchers to run."""
        self._closed = True
        for job in self._turns.clear():
            _turn_away(job)

    def resume(self) -> None:
        """Runs what waits for the place of a lost thread, in the one that has come for it."""
        following = self._turns.next()
        if following is not None:
            self._work(*following)

    def running(self) -> int:
        return self._turns.running()

    def waiting(self) -> int:
        return self._turns.waiting()

    def _work(self, subject: Subject, job: _Job) -> None:
        """The job, and whatever may run because it is over."""
        while True:
            try:
                if self._closed:
                    _turn_away(job)
                else:
                    self._run(job)
            except LostNamespace:
                self._turns.leave(subject)
                raise
            except Exception:  # noqa: BLE001 -- others wait for the place
                log.crash("internal error", request="call")
            following = self._turns.done(subject)
            if following is None:
                return
            subject, job = following

    def _is_crowded(self, connection: Connection) -> bool:
        """Whether calls that run might soon find no descriptor left."""
        # The kernel gives the lowest that is free.
        if max(connection.descriptors) < self._highest:
            return False
        log.warning("a call was turned away: too many files are open", remedy="LimitNOFILE=, ulimit -n")
        return True

    def _job(self, document: Document, connection: Connection) -> _Job | None:
        """None for a call that is not for this agent."""
        try:
            call = forwarding.decode_call(document)
        except Unintelligible as e:
            raise CNIError(DECODING_FAILURE, str(e)) from e
        if call is None or call.argv0 not in self._plugins or not _has_absolute_paths(call):
            return None
        if len(connection.descriptors) != len(call.fds) or not {"self", "mnt", "root"} <= {*call.fds}:
            raise CNIError(DECODING_FAILURE, "fds: not what came along")
        descriptors = dict(zip(call.fds, connection.descriptors, strict=True))
        remote = Remote(self._home, call.env.get("CNI_NETNS", ""), descriptors)
        env = {"PATH": _PATH, **call.env, "CNVNET_AGENT": "off"}
        job = _Job(call, env, remote, connection, time.monotonic())
        return job if remote.is_neighbour() and self._shares_state(job) else None

    def _shares_state(self, job: _Job) -> bool:
        """Whether the call, run by its launcher, would find the same records and leases as here."""
        if not job.remote.finds(attachments.rundir(job.env), self._rundir):
            log.warning("a caller with other records was turned away", rundir=attachments.rundir(job.env))
            return False
        leases = "" if job.remote.same_view else _lease_folder(job.call)
        if leases and not job.remote.shares(leases):
            log.warning("a caller with other leases was turned away", folder=leases)
            return False
        return True

    def _run(self, job: _Job) -> None:
        with (
            self._passage(job) as leave,
            closing(job.connection),
            caller.acting_for(job.remote),
            provider.served_by(self._service),
        ):
            is_add = job.env.get("CNI_COMMAND") == "ADD"
            if is_add and job.connection.is_gone():
                log.info("an ADD whose caller has gone was not run", **_who(job))
                return
            try:
                response = self._respond(job, job.env)
            except LostNamespace as e:
                # As after a kill -9: the record tells the next call what to do.
                self._send(job, _later(f"the agent has lost the thread that ran this call: {e}"))
                raise
            heard = self._send(job, response)
            if not (is_add and response.exit == 0):
                return
            leave()
            if not heard or job.connection.was_left_unread(_READING):
                log.warning("nobody has taken the result of an ADD: it is undone", **_who(job))
                with self._passage(job):
                    self._respond(job, {**job.env, "CNI_COMMAND": "DEL"})

    @contextmanager
    def _passage(self, job: _Job) -> Generator[Callable[[], None]]:
        """One call behind the other from its beginning to its answer. What it gives lets others go on."""
        if job.env.get("CNI_COMMAND") not in _OF_ATTACHMENTS:
            yield lambda: None
            return
        with self._lane.passage() as leave:
            job.remote.before_program = leave
            yield leave

    def _respond(self, job: _Job, env: Mapping[str, str]) -> Response:
        plugin = job.call.argv0
        load = self._plugins[plugin]
        begun = time.monotonic()

        # Records are ours, whatever the caller calls their folder; the programs it names get its own word.
        def here(env: Mapping[str, str]) -> skel.Plugin:
            return load({**env, "CNVNET_RUNDIR": self._rundir})

        response = skel.run(plugin, here, env, lambda: job.call.stdin)
        now = time.monotonic()
        code = _code(response)
        self._observe(plugin, _command(env), code, now - begun)
        times = {"ms": round((now - begun) * 1000, 1), "waited": round((begun - job.came) * 1000, 1)}
        log.debug("call", plugin=plugin, command=_command(env), code=code, **times, **_who(job))
        return response

    def _send(self, job: _Job, response: Response) -> bool:
        """Whether the caller was there to take it."""
        answer = forwarding.encode_response(response._replace(stderr=response.stderr[-_LONGEST_STDERR:]))
        try:
            job.connection.send(answer)
        except OSError as e:
            log.debug("a caller hung up", pid=job.connection.pid, error=str(e))
            return False
        return True


def _later(msg: str) -> Response:
    return Response(1, encode(error_document(CNIError(TRY_AGAIN_LATER, msg), "")), b"")


def _turn_away(job: _Job) -> None:
    with closing(job.connection):
        try:
            job.connection.send(forwarding.encode_unsupported())
        except OSError:
            pass  # it has gone, and nothing was done


def _subject(job: _Job) -> Subject:
    network = _network(job.call.stdin)
    container, ifname = job.env.get("CNI_CONTAINERID", ""), job.env.get("CNI_IFNAME", "")
    of_attachment = container and job.env.get("CNI_COMMAND") in _OF_ATTACHMENTS
    return Subject(network, (container, ifname) if of_attachment else None, len(job.call.stdin))


def _network(stdin: bytes) -> str:
    """The network's name as far as it can be read; what is wrong with it the plugin says."""
    try:
        document: Any = json.loads(stdin)
        name = document["name"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return ""
    return name if isinstance(name, str) else ""


def _has_absolute_paths(call: Call) -> bool:
    """Whether no program is looked for below the folder that the caller is in, which is not sent along."""
    return all(path[:1] in ("/", "") for path in call.env.get("CNI_PATH", "").split(os.pathsep))


def _lease_folder(call: Call) -> str:
    """Where the leases of this call are, "" if it has none; what is wrong with it the plugin says."""
    try:
        request = parse(call.env, call.stdin)
        ours = call.argv0 == "static-ip" or (
            request.fields.has("ipam") and request.fields.fields("ipam").text("type") == OWN_IPAM
        )
        return os.path.abspath(folder(request)) if ours else ""
    except CNIError:
        return ""


def _command(env: Mapping[str, str]) -> str:
    """One of a few words: it becomes a label."""
    command = env.get("CNI_COMMAND", "")
    return command if command in COMMANDS or command == "VERSION" else "other"


def _code(response: Response) -> int:
    if response.exit == 0:
        return 0
    try:
        return Fields(json.loads(response.stdout)).integer("code", minimum=1, maximum=9999) or INTERNAL
    except (ValueError, CNIError):
        return INTERNAL


def _who(job: _Job) -> dict[str, object]:
    return {"container": job.env.get("CNI_CONTAINERID", ""), "ifname": job.env.get("CNI_IFNAME", "")}
