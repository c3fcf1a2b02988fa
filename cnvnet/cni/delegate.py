"""Running another plugin as the spec's section 4 wants it: same environment and stdin, its errors passed on.

Look-up order, texts and the fix-up of results are those of containernetworking/cni pkg/invoke. Needs neither
cwd nor HOME nor PATH; the plugin starts from the calling thread, in whatever namespaces that thread is, and
sees the files that its caller sees (cnvnet.call_context).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from io import FileIO
from typing import Final, NamedTuple

from cnvnet import call_context
from cnvnet.call_context import Exec, log
from cnvnet.cni.document import LIMIT, Malformed, decode, decode_object, quoted
from cnvnet.cni.errors import DECODING_FAILURE, INTERNAL, TRY_AGAIN_LATER, CNIError, InvalidConfig
from cnvnet.cni.fields import Fields
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result, parse

# A plugin that is being installed right now cannot be started for a moment (ETXTBSY).
_BUSY_RETRIES: Final = 5
_BUSY_SECONDS: Final = 1.0


def find(plugin_type: str, cni_path: str) -> str:
    """The file of a plugin, the first regular `<dir>/<type>` of CNI_PATH; InvalidConfig if there is none."""
    if not plugin_type:
        raise InvalidConfig("no plugin name provided")
    if "/" in plugin_type or "\0" in plugin_type:
        raise InvalidConfig(f"invalid plugin name: {plugin_type}")
    folders = cni_path.split(":") if cni_path else []
    if not folders:
        raise InvalidConfig("no paths provided")
    for folder in folders:
        # An empty entry would mean the working directory, which a runtime may have set to any folder.
        path = os.path.join(folder, plugin_type)
        if folder and _is_regular(path):
            return path
    raise InvalidConfig(f"failed to find plugin {quoted(plugin_type)} in path [{' '.join(folders)}]")


def delegate_add(request: Request, plugin_type: str) -> Result:
    """ADD by another plugin; its result in the version it names, else the configuration's.

    The caller owes it a `delegate_delete` if its own ADD fails afterwards.
    """
    stdout = _delegate(request, plugin_type, "ADD")
    try:
        document = decode_object(stdout)
    except Malformed as e:
        raise CNIError(INTERNAL, f"{plugin_type}: its result is not JSON: {e}", _text(stdout)) from e
    try:
        return parse(document, request.cni_version)
    except CNIError as e:
        raise CNIError(DECODING_FAILURE, f"{plugin_type}: its result: {e.msg}", e.details) from e


def delegate_delete(request: Request, plugin_type: str) -> None:
    """DEL by another plugin, also as the undo of its ADD."""
    _delegate(request, plugin_type, "DEL")


def delegate_check(request: Request, plugin_type: str) -> None:
    """CHECK by another plugin."""
    _delegate(request, plugin_type, "CHECK")


def delegate_gc(request: Request, plugin_type: str) -> None:
    """GC by another plugin."""
    _delegate(request, plugin_type, "GC")


def delegate_status(request: Request, plugin_type: str) -> None:
    """STATUS by another plugin."""
    _delegate(request, plugin_type, "STATUS")


class _Overdue(Exception):
    """A program has run for longer, or printed more, than it may; the text says which."""


class Ended(NamedTuple):
    """What a process left behind. `code` is negative for a signal."""

    code: int
    stdout: bytes
    stderr: bytes


def execute(path: str, env: Mapping[str, str], stdin: bytes) -> bytes:
    """The stdout of a plugin that succeeded; CNIError with its own code, text and details otherwise."""
    try:
        ended = _run(path, env, stdin)
    except OSError as e:
        # Go's words, since runtimes show them: fork/exec is what it calls starting a process.
        problem = (e.strerror or str(e)).lower()
        raise CNIError(
            INTERNAL, f"netplugin failed with no error message: fork/exec {path}: {problem}"
        ) from e
    except _Overdue as e:
        raise CNIError(TRY_AGAIN_LATER, f"{path}: {e}: it has been killed") from e
    if ended.code:
        raise _failure(ended)
    _forward(ended.stderr)
    return ended.stdout


def _delegate(request: Request, plugin_type: str, command: str) -> bytes:
    path = find(plugin_type, request.path)
    return execute(path, {**request.env, "CNI_COMMAND": command}, request.raw)


def _failure(ended: Ended) -> CNIError:
    if not ended.stdout:
        if not ended.stderr:
            return CNIError(INTERNAL, f"netplugin failed with no error message: {_status(ended.code)}")
        return CNIError(INTERNAL, f"netplugin failed: {quoted(_text(ended.stderr))}: {_status(ended.code)}")
    _forward(ended.stderr)
    try:
        value = decode(ended.stdout)
        if not isinstance(value, dict):
            raise Malformed("not an object")
        fields = Fields(decode_object(ended.stdout))
        code = fields.integer("code", minimum=0, maximum=2**32 - 1)
        # 0 is no code of an error: it is what the library's own decoder makes of an object without one.
        return CNIError(code or INTERNAL, fields.text("msg"), fields.text("details"))
    except (Malformed, InvalidConfig) as e:
        printed = quoted(_text(ended.stdout))
        problem = f"netplugin failed but error parsing its diagnostic message {printed}: {e}"
        return CNIError(INTERNAL, problem)


def _status(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    import signal

    return f"signal: {(signal.strsignal(-code) or str(-code)).lower()}"


def _forward(stderr: bytes) -> None:
    for line in _text(stderr).splitlines():
        log(line)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(call_context.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _run(path: str, env: Mapping[str, str], stdin: bytes) -> Ended:
    import errno
    import time

    program = call_context.program(path)
    for _ in range(_BUSY_RETRIES):
        try:
            return _spawn(program, env, stdin)
        except OSError as e:
            if e.errno != errno.ETXTBSY:
                raise
            time.sleep(_BUSY_SECONDS)
    return _spawn(program, env, stdin)


def _spawn(program: Exec, env: Mapping[str, str], stdin: bytes) -> Ended:
    # posix_spawn, because importing subprocess takes 3 to 10 ms of a standalone call.
    import signal

    _let_children_be_waited_for()
    with ExitStack() as opened:
        pipes = [_pipe(opened) for _ in range(3)]
        # Each pipe is (read, write); the child reads the first and writes the others.
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        actions = [(os.POSIX_SPAWN_DUP2, end.fileno(), number) for number, end in enumerate(theirs)]
        pid = os.posix_spawn(
            program.path,
            program.argv,
            {_bytes(key): _bytes(value) for key, value in env.items()},
            file_actions=actions,
            # Python ignores these two, and a child would inherit that.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            # Its own session, so that a kill after `seconds` reaches every process that it has started.
            setsid=program.seconds is not None,
        )
        for end in theirs:
            end.close()
        try:
            stdout, stderr = _converse(pipes[0][1], pipes[1][0], pipes[2][0], stdin, seconds=program.seconds)
        except _Overdue:
            (os.kill if program.seconds is None else os.killpg)(pid, signal.SIGKILL)
            raise
        finally:
            opened.close()  # a child that still writes gets SIGPIPE, so that waitpid returns
            _, status = os.waitpid(pid, 0)
    return Ended(os.waitstatus_to_exitcode(status), stdout, stderr)


def _pipe(opened: ExitStack) -> tuple[FileIO, FileIO]:
    read, write = os.pipe()
    return opened.enter_context(FileIO(read, "r")), opened.enter_context(FileIO(write, "w"))


def _converse(
    stdin: FileIO, stdout: FileIO, stderr: FileIO, data: bytes, *, seconds: float | None
) -> tuple[bytes, bytes]:
    """Writes the child's stdin and reads what it prints, concurrently: either side may fill a pipe first."""
    import select
    import time

    os.set_blocking(stdin.fileno(), False)
    chunks: dict[int, list[bytes]] = {stdout.fileno(): [], stderr.fileno(): []}
    open_ends = {end.fileno(): end for end in (stdin, stdout, stderr)}
    poll = select.poll()
    for descriptor, end in open_ends.items():
        poll.register(descriptor, select.POLLOUT if end is stdin else select.POLLIN)
    deadline = None if seconds is None else time.monotonic() + seconds
    room = LIMIT
    while open_ends:
        left = None if deadline is None else (deadline - time.monotonic()) * 1000
        if left is not None and left <= 0:
            raise _Overdue(f"no answer in {seconds:g} seconds")
        for descriptor, _ in poll.poll(left):
            if descriptor in chunks:
                chunk = os.read(descriptor, 65536)
                chunks[descriptor].append(chunk)
                done = not chunk
                room -= len(chunk)
                if room < 0:
                    raise _Overdue(f"an answer of more than {LIMIT} bytes")
            else:
                data = _fed(descriptor, data)
                done = not data
            if done:
                poll.unregister(descriptor)
                open_ends.pop(descriptor).close()
    printed, logged = chunks.values()
    return b"".join(printed), b"".join(logged)


def _fed(descriptor: int, data: bytes) -> bytes:
    """What is still to be written; nothing once the child has closed its stdin."""
    try:
        return data[os.write(descriptor, data[:65536]) :]
    except BlockingIOError:
        return data
    except OSError:
        return b""


def _let_children_be_waited_for() -> None:
    # A caller that ignores SIGCHLD passes that on to this process, and the kernel would drop a child's
    # status.
    import signal

    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except ValueError:
            pass  # not the main thread: the agent's, which sees to its signals itself


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
