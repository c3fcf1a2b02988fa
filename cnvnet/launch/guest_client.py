"""What serves the guests of this node: the agent, as a plugin asks it.

A plugin says one line per command: ADD `ensure_agent` before it does anything and `serve` once its record
says "added", CHECK `check`, DEL `forget` before the links go, STATUS `ensure_available`. All that the agent
has to know is in the record.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final, NamedTuple, cast

from cnvnet.attachment.files import AttachmentFiles, rundir
from cnvnet.attachment.record import Key, file_name
from cnvnet.call_context import agent_service, log
from cnvnet.cni.errors import NOT_AVAILABLE, CNIError
from cnvnet.guest.options import GuestOptions
from cnvnet.launch.client import connect, exchange, socket_path

VERSION: Final = 1
# Seconds that an agent may take to answer: where a guest has to be served, and where it need not be.
_PATIENT: Final = 10.0
_BRIEF: Final = 2.0
# Seconds that an agent that was started may take to listen.
_STARTING: Final = 10.0
# Seconds that an ADD waits for an agent that is being restarted: a DaemonSet's pod takes some.
_RESTARTING: Final = 20.0
# An agent that was started on demand ends when it has had no guest and no call for so many seconds.
_IDLE_SECONDS: Final = 60
# Bytes of an answer; the longest tells of twenty events of a guest.
_LIMIT: Final = 1 << 20
# Seconds for which a connection is tried even where nothing is left: 0 would be for ever.
_SHORTEST: Final = 0.01
# A container's cgroup as kubelet, Docker, CRI-O, podman and containerd call it; containerd's is k8s.io/<id>
# where the kubelet makes no cgroups of its own (cgroupsPerQOS: false). Not their own services
# (containerd.service, cri-docker.service), in which the plugins of a node run.
_CONTAINER: Final = re.compile(
    r"kubepods|(?:^|[/:-])(?:docker|crio|libpod|containerd|k8s\.io)[-:/][0-9a-f]{12}"
)


class AgentUnavailable(OSError):
    """No agent answers at the socket; the text says why."""

    def __str__(self) -> str:
        return str(self.strerror)


def ensure_agent(env: Mapping[str, str], options: GuestOptions) -> None:
    """Makes sure, where the guest has to be served, that an agent answers: starts one if need be.

    Where none may be started, an agent that has been on this node since boot is waited for, for 20 seconds:
    it is being restarted or replaced. Raises CNIError 50, with what to do about it, when there is none.
    """
    reason = _missing(env, options)
    if reason is None:
        return
    obstacle = _obstacle(env, options)
    if obstacle:
        _await_restart(env, f"{reason}{obstacle}")
    else:
        _start(env)


def ensure_available(env: Mapping[str, str], options: GuestOptions) -> None:
    """Raises the CNIError 50 that `ensure_agent` would raise before it starts an agent.

    It starts nothing and waits for nothing.
    """
    reason = _missing(env, options)
    if reason is not None and (obstacle := _obstacle(env, options)):
        raise _unavailable(env, f"{reason}{obstacle}")


def serve(env: Mapping[str, str], options: GuestOptions, key: Key) -> None:
    """The agent serves the guest of this record, which says "added", from now on.

    Raises CNIError 50 when it does not though the guest has to be served.
    """
    request: dict[str, object] = {"guest": "serve", "record": file_name(key)}
    if options.required:
        try:
            _request(env, request, _PATIENT)
        except AgentUnavailable as e:
            if isinstance(e.__cause__, TimeoutError):
                raise _unavailable(env, str(e)) from e
            # The agent that answered `ensure_agent` has ended meanwhile, as one without guests does.
            ensure_agent(env, options)
            _require(env, request)
    elif options.enabled:
        _try(env, request)


def check(env: Mapping[str, str], options: GuestOptions, key: Key) -> None:
    """Raises CNIError 50 when the guest of this record has to be served and is not."""
    if options.required:
        _require(env, {"guest": "check", "record": file_name(key)})


def forget(env: Mapping[str, str], key: Key) -> None:
    """On return the agent, if there is one, has closed the attachment's tap and namespace."""
    _try(env, {"guest": "forget", "record": file_name(key)})


def ask(env: Mapping[str, str], request: Mapping[str, object]) -> dict[str, object]:
    """One request of a program that no guest depends on; returns the agent's answer.

    Raises AgentUnavailable when none answers within two seconds, CNIError 50 when the agent refuses.
    """
    return _request(env, dict(request), _BRIEF)


def _missing(env: Mapping[str, str], options: GuestOptions) -> str | None:
    """Why no agent answers; None: one does, or none needs to. CNIError 50: one does, and is not well."""
    if options.required:
        try:
            _request(env, {"status": True}, _PATIENT)
        except AgentUnavailable as e:
            return str(e)
    return None


def _await_restart(env: Mapping[str, str], reason: str) -> None:
    """Waits for the agent that has left its lock file in RUNDIR, where nothing is older than the boot."""
    seconds = (
        _RESTARTING if os.path.exists(os.path.join(os.path.dirname(socket_path(env)), "agent.lock")) else 0
    )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.05)
        try:
            _request(env, {"status": True}, _PATIENT)
        except AgentUnavailable:
            continue
        return
    waited = f"; none came back within {seconds:.0f} s" if seconds else ""
    raise _unavailable(env, f"{reason}{waited}")


def _require(env: Mapping[str, str], request: dict[str, object]) -> None:
    try:
        _request(env, request, _PATIENT)
    except AgentUnavailable as e:
        raise _unavailable(env, str(e)) from e


def _try(env: Mapping[str, str], request: dict[str, object]) -> None:
    """For a guest that need not be served: an agent that runs and cannot serve it is worth a line."""
    if agent_service() is None and not os.path.exists(socket_path(env)):
        return
    try:
        _request(env, request, _BRIEF)
    except AgentUnavailable:
        pass  # an agent is optional here
    except CNIError as e:
        log(e.msg)


def _unavailable(env: Mapping[str, str], reason: str) -> CNIError:
    remedy = "start cnvnet-agent on this node, or leave the key out"
    return CNIError(NOT_AVAILABLE, f"guestServices: no agent at {socket_path(env)} ({reason}): {remedy}")


def _request(env: Mapping[str, str], request: dict[str, object], seconds: float) -> dict[str, object]:
    """The agent's answer. AgentUnavailable after `seconds` without one, CNIError 50 when it refuses."""
    service = agent_service()
    if service is not None:
        try:
            service({"v": VERSION, **request})
        except CNIError as e:
            raise CNIError(NOT_AVAILABLE, f"guestServices: {e.msg}") from e
        return {"ok": True}
    try:
        answer = _exchange(socket_path(env), {"v": VERSION, **request}, time.monotonic() + seconds)
    except (OSError, ValueError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise AgentUnavailable(0, reason.lower()) from e
    if answer.get("ok") is True:
        return answer
    error = answer.get("error")
    if isinstance(error, dict):
        msg = cast("dict[str, object]", error).get("msg")
        raise CNIError(NOT_AVAILABLE, f"guestServices: {msg}")
    raise CNIError(NOT_AVAILABLE, f"guestServices: the agent at {socket_path(env)} is of another version")


def _exchange(path: str, request: dict[str, object], deadline: float) -> dict[str, object]:
    with closing(connect(path, max(_SHORTEST, deadline - time.monotonic()))) as connection:
        content = exchange(connection, json.dumps(request).encode(), deadline, limit=_LIMIT)
    answer: Any = json.loads(content)
    if not isinstance(answer, dict):
        raise ValueError("its answer is no object")
    return cast("dict[str, object]", answer)


def _obstacle(env: Mapping[str, str], options: GuestOptions) -> str:
    """Why no agent may be started from here, "" when one may."""
    if not options.autostart:
        return "; autostart is false"
    if "/" in env.get("CNVNET_AGENT", ""):
        return "; CNVNET_AGENT names another's"
    try:
        # Inside a chroot (Multus thick) an agent would run in the container that has the chroot and end with
        # it; in a container's cgroup it would end with that as well.
        if _is_chroot():
            return "; none is started from inside a chroot"
        with open("/proc/self/cgroup") as file:
            if is_of_a_container(file.read()):
                return "; none is started from inside a container"
    except OSError as e:
        return f"; none is started where {e.filename} cannot be read"
    return ""


def _is_chroot() -> bool:
    from cnvnet.kernel import root_folder  # its imports take 2 ms, and most calls find an agent

    try:
        return root_folder.is_chroot()
    except PermissionError:
        # Without the capabilities to ask: a root folder that is no mount is one of a chroot.
        with open("/proc/self/mountinfo") as file:
            return all(line.split()[4] != "/" for line in file)


def is_of_a_container(cgroups: str) -> bool:
    """Whether a /proc/PID/cgroup is that of a process inside a container."""
    return _CONTAINER.search(cgroups) is not None


class _Started(NamedTuple):
    """An agent's process and where it says what it does."""

    pid: int
    log: str


def _start(env: Mapping[str, str]) -> None:
    """Starts an agent and waits until it answers. CNIError 50 when it does not within ten seconds."""
    deadline = time.monotonic() + _STARTING
    # Of many ADDs at once one starts it, and the others find it there.
    with AttachmentFiles(rundir(env)).shared("agent-start"):
        started: _Started | None = None
        while True:
            try:
                _request(env, {"status": True}, _PATIENT)
                return
            except AgentUnavailable as e:
                reason = str(e)
            if started is None:
                started = _spawn(env)
            elif os.waitpid(started.pid, os.WNOHANG)[0]:
                raise _unavailable(env, f"{reason}; one was started and ended, {started.log} says why")
            if time.monotonic() >= deadline:
                raise _unavailable(env, f"{reason}; one was started and does not answer, see {started.log}")
            time.sleep(0.02)


def _spawn(env: Mapping[str, str]) -> _Started:
    """An agent in a session of its own, with no descriptor of this process.

    The runtime waits until its pipes are closed.

    Not fork, which a thread must not do: once this process ends, init is the agent's parent.
    """
    folder = rundir(env)
    log = os.path.join(folder, "agent.log")
    # A FIFO in its place is refused at once.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    # 0 to 2 are replaced, in this order, and every other descriptor is closed.
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        *((os.POSIX_SPAWN_CLOSE, int(name)) for name in os.listdir("/proc/self/fd") if int(name) > 2),
    ]
    command = [sys.executable, "-I", "-m", "cnvnet.agent", "--rundir", folder]
    command += ["--idle-exit", str(_IDLE_SECONDS)]
    kept = {name: value for name, value in env.items() if name == "PATH" or name.startswith("CNVNET_")}
    try:
        pid = os.posix_spawn(sys.executable, command, kept, file_actions=actions, setsid=True, setsigmask=())
    except OSError as e:
        raise _unavailable(env, f"{sys.executable} cannot be started: {(e.strerror or '').lower()}") from e
    return _Started(pid, log)
