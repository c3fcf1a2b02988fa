"""Who serves the guests of this node: the agent, as a plugin speaks to it.

A plugin says one line per command: ADD `ensure` before it does anything and `serve` once its record
says "added", CHECK `check`, DEL `forget` before the links go, STATUS `ensure_available`. All that the agent
has to know is in the record.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, cast

from cnvnet.attachments import AttachmentFiles, Key, file_name, rundir
from cnvnet.cni.errors import NOT_AVAILABLE, CNIError
from cnvnet.diagnostics import say
from cnvnet.guest.wishes import Wishes

VERSION: Final = 1
# How long an agent may take to answer: whoever depends on it is more patient than who would like to have it.
_PATIENT: Final = 10.0
_BRIEF: Final = 2.0
# How long an agent that was started may take to listen.
_STARTING: Final = 10.0
# An agent that was started on demand ends when it has had no guest and no call for so long.
_IDLE_SECONDS: Final = 60
_LIMIT: Final = 1 << 20
# A container's cgroup as kubelet, Docker, CRI-O, podman and containerd call it. Not their own services
# (containerd.service, cri-docker.service), in which the plugins of a node run.
_CONTAINER: Final = re.compile(r"kubepods|(?:^|[/:-])(?:docker|crio|libpod|containerd)[-:/][0-9a-f]{12}")


# Does a request `{"guest": ...}` or `{"status": true}`; raises CNIError.
Service = Callable[[dict[str, object]], object]
_service: ContextVar[Service | None] = ContextVar("service", default=None)


class NoAgent(OSError):
    """Nobody answers at the socket; the text says why."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def served_by(service: Service) -> Generator[None]:
    """This thread is the agent's: until the end of the block it does by itself what it would ask for.

    A worker that asked over the socket would wait for another worker, which may be waiting for the same.
    """
    token = _service.set(service)
    try:
        yield
    finally:
        _service.reset(token)


def ensure(env: Mapping[str, str], wishes: Wishes) -> None:
    """Makes sure, where the guest has to be served, that an agent answers: starts one if need be.

    Raises CNIError 50, with what to do about it, when there is none and none may be or could be started.
    """
    if not _there(env, wishes):
        _start(env)


def ensure_available(env: Mapping[str, str], wishes: Wishes) -> None:
    """Raises the CNIError 50 that `ensure` would raise before it starts one; starts nothing."""
    _there(env, wishes)


def serve(env: Mapping[str, str], wishes: Wishes, key: Key) -> None:
    """The agent serves the guest of this record, which says "added", from now on.

    Raises CNIError 50 when it does not though the guest has to be served.
    """
    request: dict[str, object] = {"guest": "serve", "record": file_name(key)}
    if wishes.required:
        try:
            _request(env, request, _PATIENT)
        except NoAgent as e:
            if isinstance(e.__cause__, TimeoutError):
                raise _unavailable(env, str(e)) from e
            # The one that `ensure` found has ended meanwhile, as one does that has no guest for a while.
            ensure(env, wishes)
            _require(env, request)
    elif wishes.enabled:
        _try(env, request)


def check(env: Mapping[str, str], wishes: Wishes, key: Key) -> None:
    """Raises CNIError 50 when the guest of this record has to be served and is not."""
    if wishes.required:
        _require(env, {"guest": "check", "record": file_name(key)})


def forget(env: Mapping[str, str], key: Key) -> None:
    """The agent has let go of the attachment's tap and namespace on return, if there is an agent."""
    _try(env, {"guest": "forget", "record": file_name(key)})


def address(env: Mapping[str, str]) -> str:
    """The agent's socket. CNVNET_AGENT=off is about who runs the plugins, not about who serves guests."""
    named = env.get("CNVNET_AGENT", "")
    return named if "/" in named else os.path.join(rundir(env), "agent.sock")


def _there(env: Mapping[str, str], wishes: Wishes) -> bool:
    """Whether an agent answers, or none needs to; False when one may be started. CNIError 50 otherwise."""
    if not wishes.required:
        return True
    try:
        _request(env, {"status": True}, _PATIENT)
    except NoAgent as e:
        obstacle = _obstacle(env, wishes)
        if obstacle:
            raise _unavailable(env, f"{e}{obstacle}") from e
        return False
    return True


def _require(env: Mapping[str, str], request: dict[str, object]) -> None:
    try:
        _request(env, request, _PATIENT)
    except NoAgent as e:
        raise _unavailable(env, str(e)) from e


def _try(env: Mapping[str, str], request: dict[str, object]) -> None:
    """For a guest that nobody has to serve: an agent that is there and cannot is worth a line."""
    if _service.get() is None and not os.path.exists(address(env)):
        return
    try:
        _request(env, request, _BRIEF)
    except NoAgent:
        pass  # nobody has to be there
    except CNIError as e:
        say(e.msg)


def _unavailable(env: Mapping[str, str], reason: str) -> CNIError:
    remedy = "start cnvnet-agent on this node, or leave the key out"
    return CNIError(NOT_AVAILABLE, f"guestServices: no agent at {address(env)} ({reason}): {remedy}")


def _request(env: Mapping[str, str], request: dict[str, object], seconds: float) -> None:
    """One request. NoAgent when nobody answers within `seconds`, CNIError 50 when the agent refuses."""
    service = _service.get()
    if service is not None:
        try:
            service({"v": VERSION, **request})
        except CNIError as e:
            raise CNIError(NOT_AVAILABLE, f"guestServices: {e.msg}") from e
        return
    try:
        answer = _exchange(address(env), {"v": VERSION, **request}, time.monotonic() + seconds)
    except (OSError, ValueError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise NoAgent(0, reason.lower()) from e
    if answer.get("ok") is True:
        return
    error = answer.get("error")
    if isinstance(error, dict):
        said = cast("dict[str, object]", error).get("msg")
        raise CNIError(NOT_AVAILABLE, f"guestServices: {said}")
    raise CNIError(NOT_AVAILABLE, f"guestServices: the agent at {address(env)} is of another version")


def _exchange(path: str, request: dict[str, object], deadline: float) -> dict[str, object]:
    content = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        # With Python's own timeout connecting would not wait while the agent's queue is full, but fail.
        seconds = max(0.01, deadline - time.monotonic())
        timeout = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        connection.connect(path)
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        connection.sendall(len(content).to_bytes(4, "big") + content)
        size = int.from_bytes(_exactly(connection, 4, deadline), "big")
        if size > _LIMIT:
            raise ValueError("its answer is too long")
        answer: Any = json.loads(_exactly(connection, size, deadline))
    if not isinstance(answer, dict):
        raise ValueError("its answer is no object")
    return cast("dict[str, object]", answer)


def _exactly(connection: socket.socket, size: int, deadline: float) -> bytes:
    received = b""
    while len(received) < size:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        chunk = connection.recv(size - len(received))
        if not chunk:
            raise ValueError("it hung up")
        received += chunk
    return received


def _obstacle(env: Mapping[str, str], wishes: Wishes) -> str:
    """Why no agent may be started from here, "" when one may."""
    if not wishes.autostart:
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
    try:
        return not os.path.samestat(os.stat("/"), os.stat("/proc/1/root"))
    except PermissionError:
        # Some systems do not let even root look into process 1. A root that is no mount is one of a chroot.
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
            except NoAgent as e:
                reason = str(e)
            if started is None:
                started = _spawn(env)
            elif os.waitpid(started.pid, os.WNOHANG)[0]:
                raise _unavailable(env, f"{reason}; one was started and ended, {started.log} says why")
            if time.monotonic() >= deadline:
                raise _unavailable(env, f"{reason}; one was started and does not answer, see {started.log}")
            time.sleep(0.02)


def _spawn(env: Mapping[str, str]) -> _Started:
    """An agent in a session of its own, with nothing of ours open: the runtime waits until our pipes close.

    Not fork, which a thread must not do: once this process ends, init is the agent's parent.
    """
    folder = rundir(env)
    log = os.path.join(folder, "agent.log")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    # 0 to 2 are replaced, in this order, and everything else is closed, whoever has left it open.
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
