"""The process boundary of every plugin: which call it is, whether it is well formed, and what is printed.

The only module that writes to stdout and the only one that catches Exception. VERSION, the answer without a
command and a bad environment need nothing of the plugin, so nothing of it is imported for them.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Protocol

from cnvnet import VERSION, caller
from cnvnet.cni import environment
from cnvnet.cni.errors import INTERNAL, INVALID_NETNS, IO_FAILURE, CNIError
from cnvnet.cni.version import CURRENT, SUPPORTED
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
# The same in every call, and written without json to spare its import.
_LISTED: Final = ",".join(f'"{version}"' for version in SUPPORTED)
_VERSIONS: Final = f'{{"cniVersion":"{CURRENT}","supportedVersions":[{_LISTED}]}}\n'


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
    verb = env.get("CNI_COMMAND", "")
    if verb == "VERSION":
        return Response(0, _VERSIONS.encode(), b"")
    if not verb:
        about = f"CNI {name} plugin {VERSION}\nCNI protocol versions supported: {', '.join(SUPPORTED)}\n"
        return Response(0, b"", about.encode())
    with collected() as said:
        code, stdout = _answer(name, load, env, read_stdin, own_netns)
    stderr = "".join(f"{name}: {line}\n" for line in said)
    return Response(code, stdout, stderr.encode("utf-8", "replace"))


def main(name: str, load: Load) -> NoReturn:
    """The executable `name`: one call with this process' environment, stdin and stdout."""
    # A call is over before collecting garbage pays, and a process that ends needs no tidying up.
    gc.disable()
    code = 1
    try:
        _occupy_standard_descriptors()
        sys.stdout = sys.stderr  # whatever a library prints, stdout carries one document
        env, stdin = _environ(), _Stdin()
        response = _respond(name, load, env, stdin)
        told = _write(1, response.stdout)
        _write(2, response.stderr)
        if told:
            code = response.exit
        elif response.exit == 0 and env.get("CNI_COMMAND") == "ADD":
            _take_back(name, load, env, stdin)
    except KeyboardInterrupt:
        code = 130  # as a shell reports SIGINT
    except BaseException as e:  # noqa: BLE001 -- no memory, or no way back from a namespace: still no traceback
        _write(1, b'{"code": %d, "msg": "internal error outside the call"}' % INTERNAL)
        _write(2, f"{name}: {_one_line(f'{type(e).__name__}: {e}')}\n".encode("utf-8", "replace"))
    finally:
        os._exit(code)


def _take_back(name: str, load: Load, env: Mapping[str, str], stdin: _Stdin) -> None:
    """Undoes an ADD whose result nobody could be told, by the DEL that the runtime should send now."""
    _write(2, f"{name}: the result cannot be written: deleting what it tells of\n".encode())
    _write(2, _respond(name, load, {**env, "CNI_COMMAND": "DEL"}, stdin).stderr)


def _respond(name: str, load: Load, env: Mapping[str, str], stdin: _Stdin) -> Response:
    """The call's answer: the agent's if there is one, else by running it here."""
    # What can be said without the plugin is said sooner than an agent is asked.
    if env.get("CNI_COMMAND", "") not in ("", "VERSION"):
        from cnvnet.cni import launch

        response = launch.forward(name, env, stdin)
        if response is not None:
            return response
    return run(name, load, env, stdin)


def _answer(
    name: str, load: Load, env: Mapping[str, str], read_stdin: Callable[[], bytes], own_netns: str
) -> tuple[int, bytes]:
    # Not at the top: VERSION does without json and ipaddress.
    from cnvnet.cni.document import encode, error_document
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
        from cnvnet.cni.document import encode
        from cnvnet.cni.result import render

        return encode(render(plugin.add(request), request.cni_version))
    deeds = {"DEL": plugin.delete, "CHECK": plugin.check, "GC": plugin.gc, "STATUS": plugin.status}
    deeds[request.command](request)
    return b""


def _stdin(read_stdin: Callable[[], bytes]) -> bytes:
    from cnvnet.cni.document import LIMIT

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


def _environ() -> dict[str, str]:
    # Not os.environ, which decodes by the locale: a variable is UTF-8 here whatever LANG says, and the bytes
    # of one that is not come out again as they were.
    return {
        key.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for key, value in os.environb.items()
    }


def _occupy_standard_descriptors() -> None:
    # A caller may have closed any of the three. Left free, the next socket or database opened would get the
    # number and our answer would be written into it. Go does the same at its start.
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            try:
                os.open("/dev/null", os.O_RDWR)
            except OSError:
                os.open("/", os.O_RDONLY)  # inside a bare chroot; neither readable nor writable, but taken


class _Stdin:
    """All of this process' stdin, read when it is first asked for."""

    def __init__(self) -> None:
        self._content: bytes | None = None

    def __call__(self) -> bytes:
        if self._content is None:
            self._content = _read_stdin()
        return self._content


def _read_stdin() -> bytes:
    from cnvnet.cni.document import LIMIT

    chunks: list[bytes] = []
    size = 0
    while size <= LIMIT:
        try:
            chunk = os.read(0, 65536)
        except BlockingIOError:
            _wait(0)
            continue
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _write(descriptor: int, data: bytes) -> bool:
    """Whether all of it was taken."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            _wait(descriptor)
        except OSError:
            return False  # the reader has gone, or the disk is full
    return True


def _wait(descriptor: int) -> None:
    # The caller shares a non-blocking pipe or terminal with us.
    import select

    poll = select.poll()
    poll.register(descriptor)
    poll.poll()
