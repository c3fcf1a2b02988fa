"""One call of any plugin: which one it is, whether it is well formed, and what the answer is.

The only module that catches Exception. A malformed call needs nothing of the plugin, so nothing of it is
imported for one. What is printed is printed by `executable`, or by the launcher of a call in the agent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from cnvnet import caller
from cnvnet.cni import environment
from cnvnet.cni.about import about
from cnvnet.cni.document import LIMIT, encode, error_document
from cnvnet.cni.errors import INTERNAL, INVALID_NETNS, IO_FAILURE, CNIError
from cnvnet.diagnostics import collected, say

if TYPE_CHECKING:
    from cnvnet.cni.request import Request
    from cnvnet.cni.result import Result


class Plugin(Protocol):
    """What a plugin is to the skeleton. Each method raises CNIError; only `add` has something to say."""

    name: str

    def add(self, request: Request) -> Result: ...
    def delete(self, request: Request) -> None: ...
    def check(self, request: Request) -> None: ...
    def gc(self, request: Request) -> None: ...
    def status(self, request: Request) -> None: ...


# Makes the plugin from the caller's environment; called only for the commands that need one.
Load = Callable[[Mapping[str, str]], Plugin]


class Response(NamedTuple):
    """What the caller's process gets to see."""

    exit: int
    stdout: bytes
    stderr: bytes


OWN_NETNS: Final = "/proc/thread-self/ns/net"


def run(
    name: str,
    load: Load,
    env: Mapping[str, str],
    read_stdin: Callable[[], bytes],
    *,
    own_netns: str = OWN_NETNS,
) -> Response:
    """One call from start to end; touches nothing of this process, for the agent's workers call it too.

    `env` is the caller's whole environment; `read_stdin`, not called for VERSION, may raise OSError;
    `own_netns` is a path to the namespace the caller runs in. Never raises an Exception.
    """
    introduction = about(name, env.get("CNI_COMMAND", ""))
    if introduction is not None:
        return Response(0, *introduction)
    with collected() as said:
        code, stdout = _answer(name, load, env, read_stdin, own_netns)
    stderr = "".join(f"{name}: {line}\n" for line in said)
    return Response(code, stdout, stderr.encode("utf-8", "replace"))


def _answer(
    name: str, load: Load, env: Mapping[str, str], read_stdin: Callable[[], bytes], own_netns: str
) -> tuple[int, bytes]:
    # Not at the top: an executable that hands its call to the agent does without ipaddress.
    from cnvnet.cni.request import parse

    cni_version = ""
    try:
        environment.command(env)
        request = parse(env, _stdin(read_stdin))
        cni_version = request.cni_version
        request = _outside_own_netns(request, own_netns)
        return 0, _call(load(env), request)
    except CNIError as e:
        error = e
    except OSError as e:
        error = CNIError(IO_FAILURE, _one_line(_described(e)))
        say(f"{error.msg} ({_place(e)})")
    except Exception as e:  # noqa: BLE001 -- whatever it is, the runtime gets an error object and no traceback
        error = CNIError(INTERNAL, _one_line(f"internal error: {type(e).__name__}: {e}"))
        say(f"{error.msg} ({_place(e)})")
    return 1, encode(error_document(error, cni_version))


def _call(plugin: Plugin, request: Request) -> bytes:
    if request.command == "ADD":
        from cnvnet.cni.result import render

        return encode(render(plugin.add(request), request.cni_version))
    deeds = {"DEL": plugin.delete, "CHECK": plugin.check, "GC": plugin.gc, "STATUS": plugin.status}
    deeds[request.command](request)
    return b""


def _stdin(read_stdin: Callable[[], bytes]) -> bytes:
    try:
        raw = read_stdin()
    except OSError as e:
        problem = (e.strerror or str(e)).lower()
        raise CNIError(IO_FAILURE, f"error reading from stdin: read /dev/stdin: {problem}") from e
    if len(raw) > LIMIT:
        raise CNIError(IO_FAILURE, f"error reading from stdin: more than {LIMIT} bytes")
    return raw


def _outside_own_netns(request: Request, own_netns: str) -> Request:
    """The request, unless it is about the namespace the plugin itself runs in: the node's.

    ADD and CHECK are refused there before anything is done (the reference complains when all is done). DEL
    goes on without a namespace: what the records know is cleaned up and nothing of the node's is touched.
    """
    if request.command not in ("ADD", "CHECK", "DEL") or environment.overrides_netns(request.env):
        return request
    try:
        target = caller.stat(request.netns)
    except (OSError, ValueError):
        return request  # no namespace, or none that can be opened: the plugin knows what to say about that
    try:
        if not os.path.samestat(target, os.stat(own_netns)):
            return request
    except OSError as e:
        if request.command != "DEL":
            raise CNIError(INVALID_NETNS, "get plugin's netns failed") from e
    if request.command != "DEL":
        raise CNIError(INVALID_NETNS, "plugin's netns and netns from CNI_NETNS should not be the same")
    say(f"CNI_NETNS {request.netns} is the plugin's own namespace: nothing in it is deleted")
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
