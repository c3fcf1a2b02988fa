"""One call of any plugin: which one it is, whether it is well formed, and what the answer is.

The only module that catches Exception. A malformed call needs nothing of the plugin, so nothing of it is
imported for one. What is printed is printed by `executable`, or by the launcher of a call in the agent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from cnvnet import call_context
from cnvnet.call_context import captured, log
from cnvnet.cni import environment
from cnvnet.cni.about import about
from cnvnet.cni.document import encode, error_document
from cnvnet.cni.errors import INTERNAL, INVALID_NETNS, IO_FAILURE, CNIError

if TYPE_CHECKING:
    from cnvnet.cni.request import Request
    from cnvnet.cni.result import Result


# Seconds from a call's arrival in which it may ask other machines. An ADD is answered within 10: there has
# to be time for taking back what it has done. A DEL, which succeeds without an answer, within 3.
REQUEST_SECONDS: Final[dict[str, float]] = {"ADD": 7.0, "DEL": 1.5}


class Plugin(Protocol):
    """What a plugin is to the skeleton. Each method raises CNIError; `add` alone has a result."""

    name: str

    def add(self, request: Request) -> Result:
        """ADD: attach the container, and return what it was given. CNIError, and then nothing is left."""
        ...

    def delete(self, request: Request) -> None:
        """DEL: detach it; what is gone already is no error. CNIError."""
        ...

    def check(self, request: Request) -> None:
        """CHECK: CNIError if the attachment is not as ADD made it."""
        ...

    def gc(self, request: Request) -> None:
        """GC: remove what belongs to no valid attachment. CNIError."""
        ...

    def status(self, request: Request) -> None:
        """STATUS: CNIError if an ADD could not be done now."""
        ...

    def shared_folders(self, request: Request) -> tuple[str, ...]:
        """The folders, besides RUNDIR, in which this call finds and leaves what outlives it.

        A process that runs the call for another one has to see the same folders there. CNIError.
        """
        ...


# Makes the plugin from the caller's environment; called only for the commands that need one.
Load = Callable[[Mapping[str, str]], Plugin]


class Response(NamedTuple):
    """What the caller's process prints and exits with, and what the agent counts and logs of the call."""

    # The exit code: 0, or 1 with an error document on stdout.
    exit: int
    stdout: bytes
    stderr: bytes
    # Keys of the configuration that no plugin knows.
    unknown_keys: int = 0
    # The error whose document `stdout` is; None for a success, and for an answer that came from an agent.
    error: CNIError | None = None
    # The VM that the call was for, as "namespace/name", where the call itself does not say it.
    vm: str = ""

    @property
    def code(self) -> int:
        """The CNI error's code; 0: none."""
        return self.error.code if self.error is not None else 0


def run(
    name: str,
    load: Load,
    env: Mapping[str, str],
    read_stdin: Callable[[], bytes],
    *,
    own_netns: str = call_context.OWN_NETNS,
) -> Response:
    """One call from start to end; touches nothing of this process, for the agent's workers call it too.

    `env` is the caller's whole environment; `read_stdin`, not called for VERSION, may raise OSError;
    `own_netns` is a path to the namespace the caller runs in. Never raises an Exception.
    """

    def read_request() -> Request:
        # Not at the top: an executable that hands its call to the agent does without ipaddress.
        from cnvnet.cni.request import parse

        return parse(env, _stdin(read_stdin))

    return run_request(name, load, env, read_request, own_netns=own_netns)


def run_request(
    name: str,
    load: Load,
    env: Mapping[str, str],
    read_request: Callable[[], Request],
    *,
    own_netns: str = call_context.OWN_NETNS,
    arrived: float | None = None,
) -> Response:
    """`run` for a caller that parses the request itself; `read_request` raises CNIError as `parse` does.

    `arrived` is when the call came, by time.monotonic(), where that was before now.
    """
    introduction = about(name, env.get("CNI_COMMAND", ""))
    if introduction is not None:
        return Response(0, *introduction)
    with captured() as lines, _limited(env.get("CNI_COMMAND", ""), arrived):
        stdout, error = _answer(load, env, read_request, own_netns)
    stderr = "".join(f"{name}: {line}\n" for line in lines).encode("utf-8", "replace")
    return Response(0 if error is None else 1, stdout, stderr, lines.unknown_keys, error, lines.vm)


def _limited(command: str, arrived: float | None) -> AbstractContextManager[None]:
    seconds = REQUEST_SECONDS.get(command)
    if seconds is None:
        return nullcontext()
    return call_context.ending_at((time.monotonic() if arrived is None else arrived) + seconds)


def _answer(
    load: Load, env: Mapping[str, str], read_request: Callable[[], Request], own_netns: str
) -> tuple[bytes, CNIError | None]:
    """The document for stdout, and the error that it is about, if it is one."""
    cni_version = ""
    if env.get("CNI_COMMAND") == "DEL" and not environment.is_text(env.get("CNI_IFNAME", "")):
        log("CNI_IFNAME is not UTF-8: no ADD takes such a name, so there is nothing to delete")
        return b"", None
    try:
        environment.command(env)
        request = read_request()
        cni_version = request.cni_version
        request = _outside_own_netns(request, own_netns)
        return _call(load(env), request), None
    except CNIError as e:
        error = e
    except OSError as e:
        error = CNIError(IO_FAILURE, _one_line(_described(e)))
        log(f"{error.msg} ({_place(e)})")
    except Exception as e:  # noqa: BLE001 -- the runtime gets an error object and no traceback
        error = CNIError(INTERNAL, _one_line(f"internal error: {type(e).__name__}: {e}"))
        log(f"{error.msg} ({_place(e)})")
    return encode(error_document(error, cni_version)), error


def _call(plugin: Plugin, request: Request) -> bytes:
    if request.command == "ADD":
        from cnvnet.cni.result import render

        return encode(render(plugin.add(request), request.cni_version))
    methods = {"DEL": plugin.delete, "CHECK": plugin.check, "GC": plugin.gc, "STATUS": plugin.status}
    methods[request.command](request)
    return b""


def _stdin(read_stdin: Callable[[], bytes]) -> bytes:
    try:
        return read_stdin()
    except OSError as e:
        problem = (e.strerror or str(e)).lower()
        raise CNIError(IO_FAILURE, f"error reading from stdin: read /dev/stdin: {problem}") from e


def _outside_own_netns(request: Request, own_netns: str) -> Request:
    """The request, unless it is about the namespace the plugin itself runs in: the node's.

    ADD and CHECK are refused there before anything is done (the reference complains when all is done). DEL
    goes on without a namespace: it cleans up by the records and touches nothing of the node's.
    """
    if request.command not in ("ADD", "CHECK", "DEL") or environment.overrides_netns(request.env):
        return request
    try:
        target = call_context.stat(request.netns)
    except (OSError, ValueError):
        return request  # no namespace, or none that can be opened: the plugin reports that
    try:
        if not os.path.samestat(target, os.stat(own_netns)):
            return request
    except OSError as e:
        if request.command != "DEL":
            raise CNIError(INVALID_NETNS, "get plugin's netns failed") from e
    if request.command != "DEL":
        raise CNIError(INVALID_NETNS, "plugin's netns and netns from CNI_NETNS should not be the same")
    log(f"CNI_NETNS {request.netns} is the plugin's own namespace: nothing in it is deleted")
    return request._replace(netns="", env={**request.env, "CNI_NETNS": ""})


def _described(error: OSError) -> str:
    text = (error.strerror or str(error) or type(error).__name__).lower()
    return f"{os.fsdecode(error.filename)}: {text}" if isinstance(error.filename, (str, bytes)) else text


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "nowhere"
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
