"""A plugin as a process: its environment, its three descriptors and what is printed.

The only module that writes to stdout. VERSION and the answer without a command need no more than this, so
whatever takes long to import, such as `typing`, is imported for the other calls only.
"""

from __future__ import annotations

import gc
import os
import sys

from cnvnet.cni.about import about
from cnvnet.cni.errors import INTERNAL

# Checkers take it for typing's, whose import takes as long as all the rest of VERSION.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from cnvnet.cni.skel import Load


def main(name: str, load: Load, purpose: str) -> NoReturn:
    """The executable `name`: one call with this process' environment, stdin and stdout.

    `purpose` is for people who give it an argument (cnvnet.launch.usage).
    """
    # A call is over before collecting garbage pays, and a process that ends needs no tidying up.
    gc.disable()
    code = 1
    try:
        _occupy_standard_descriptors()
        sys.stdout = sys.stderr  # whatever a library prints, stdout carries one document
        code = _answer(name, load, purpose, _environ())
    except KeyboardInterrupt:
        code = 130  # as a shell reports SIGINT
    except BaseException as e:  # noqa: BLE001 -- no memory, or no way back from a namespace: still no traceback
        _write(1, b'{"code": %d, "msg": "internal error outside the call"}' % INTERNAL)
        text = " ".join(f"{type(e).__name__}: {e}".split())
        _write(2, f"{name}: {text}\n".encode("utf-8", "replace"))
    finally:
        os._exit(code)


def _answer(name: str, load: Load, purpose: str, env: Mapping[str, str]) -> int:
    """Prints the answer; the process' exit status."""
    stdin = _Stdin()
    if len(sys.argv) > 1 and not env.get("CNI_COMMAND"):
        from cnvnet.launch.usage import explained

        code, stdout, stderr = explained(name, purpose, sys.argv[1])
    else:
        code, stdout, stderr = _respond(name, load, env, stdin)
    is_printed = _write(1, stdout)
    _write(2, stderr)
    if is_printed:
        return code
    if code == 0 and env.get("CNI_COMMAND") == "ADD":
        _undo_add(name, load, env, stdin)
    return 1


def _undo_add(name: str, load: Load, env: Mapping[str, str], stdin: _Stdin) -> None:
    """Undoes an ADD whose result the runtime did not get, by the DEL that it should send now."""
    _write(2, f"{name}: the result cannot be written: undoing the ADD\n".encode())
    _, _, stderr = _respond(name, load, {**env, "CNI_COMMAND": "DEL"}, stdin)
    _write(2, stderr)


def _respond(name: str, load: Load, env: Mapping[str, str], stdin: _Stdin) -> tuple[int, bytes, bytes]:
    """Exit status, stdout and stderr: of the agent if there is one, else by running the call here."""
    # What can be said without the plugin is said sooner than an agent is asked.
    introduction = about(name, env.get("CNI_COMMAND", ""))
    if introduction is not None:
        return (0, *introduction)
    from cnvnet.cni import skel
    from cnvnet.launch import forward

    response = forward.forward(name, env, stdin)
    return (response if response is not None else skel.run(name, load, env, stdin))[:3]


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
