"""Runs nft's own language: through libnftables where it is, else through the nft program.

Both list the namespace's whole ruleset first, which takes 25 ms where kube-proxy keeps 20,000 chains: for
what is loaded once, never for one call's elements.
"""

from __future__ import annotations

import errno
import os
from _thread import allocate_lock
from typing import Any, Final, Protocol, cast

from cnvnet.call_context import DEFAULT_PATH

# The soname of nftables 0.9 and newer; the program `nft` uses it, too.
_LIBRARY: Final = "libnftables.so.1"
# A runtime may start a plugin without any PATH.
# libnftables waits with select(2), and a descriptor of 1,024 or more ends the process. The limit leaves room
# for those that other threads open meanwhile.
_HIGHEST: Final = 900
# libnftables does not promise to be thread-safe.
_one_at_a_time = allocate_lock()


class _Library(Protocol):
    """What is used of libnftables."""

    def nft_ctx_new(self, flags: int) -> int | None: ...
    def nft_ctx_free(self, context: int) -> None: ...
    def nft_ctx_buffer_output(self, context: int) -> int: ...
    def nft_ctx_buffer_error(self, context: int) -> int: ...
    def nft_ctx_get_output_buffer(self, context: int) -> bytes | None: ...
    def nft_ctx_get_error_buffer(self, context: int) -> bytes | None: ...
    def nft_run_cmd_from_buffer(self, context: int, script: bytes) -> int: ...


def run(script: str) -> str:
    """Runs a script as one transaction in the thread's namespace and returns what it printed.

    Raises OSError: ENOENT when neither libnftables nor nft can be used, else EINVAL with nft's own words.
    """
    library = _library()
    if library is None:
        return _run_program(script, f"{_LIBRARY} is not here")
    if _lowest_descriptor() > _HIGHEST:
        return _run_program(script, f"{_LIBRARY} works with {_HIGHEST} open files at most")
    with _one_at_a_time:
        return _run_library(library, script)


def _lowest_descriptor() -> int:
    """The number of the next one that is opened."""
    descriptor = os.open("/", os.O_PATH | os.O_CLOEXEC)
    os.close(descriptor)
    return descriptor


def _run_library(library: _Library, script: str) -> str:
    context = library.nft_ctx_new(0)
    if not context:
        raise OSError(errno.ENOMEM, "libnftables: no context")
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        status = library.nft_run_cmd_from_buffer(context, script.encode())
        printed = library.nft_ctx_get_output_buffer(context) or b""
        complaint = library.nft_ctx_get_error_buffer(context) or b""
    finally:
        library.nft_ctx_free(context)
    if status != 0:
        raise _refused(complaint.decode(errors="replace"))
    return printed.decode(errors="replace")


def _library() -> _Library | None:
    """libnftables with its prototypes, None where it or ctypes is missing."""
    try:
        import ctypes  # 2 ms

        library: Any = ctypes.CDLL(_LIBRARY)
        library.nft_ctx_new.restype = ctypes.c_void_p
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).restype = ctypes.c_char_p
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    except (ImportError, OSError, AttributeError):
        return None
    return cast(_Library, library)


def _run_program(script: str, reason: str) -> str:
    """In the library's place, for this reason."""
    import shutil
    import subprocess  # 10 ms

    program = shutil.which("nft") or shutil.which("nft", path=DEFAULT_PATH)
    if program is None:
        raise OSError(errno.ENOENT, f"{reason}, nor is the nft program: install the package nftables")
    done = subprocess.run([program, "-f", "-"], input=script.encode(), capture_output=True, check=False)
    if done.returncode != 0:
        raise _refused(done.stderr.decode(errors="replace"))
    return done.stdout.decode(errors="replace")


def _refused(complaint: str) -> OSError:
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    # nft underlines the place in two more lines; the first one says what is wrong.
    return OSError(errno.EINVAL, f"nft: {lines[0] if lines else 'refused without a word'}")
