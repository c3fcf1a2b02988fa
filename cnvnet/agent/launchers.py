"""The launchers that the agent of a container puts where the node's runtime looks for plugins."""

from __future__ import annotations

import os
import sys
from typing import Final

from cnvnet.agent.listener import Unusable
from cnvnet.executables import NAMES, SECOND_NAMES
from cnvnet.launch.ownership import is_foreign

# The static C program, below the environment of an image (scripts/build-image).
_SOURCE: Final = "libexec/cnv-launch"
_REMEDY: Final = "scripts/install-cni installs launchers on a node without an image"


def install(folder: str) -> list[str]:
    """Makes each plugin of ours a launcher there, in one step each, and leaves other programs' files alone.

    Returns what an operator should know of these. Raises Unusable.
    """
    source = os.path.join(sys.prefix, _SOURCE)
    try:
        with open(source, "rb") as file:
            launcher = file.read()
    except OSError as e:
        raise Unusable(f"{source}: {e.strerror} ({_REMEDY})") from e
    foreign: list[str] = []
    try:
        for name in NAMES:
            path = os.path.join(folder, name)
            if is_foreign(path):
                foreign.append(name)
            elif not _has(path, launcher):
                _put(path, launcher)
    except OSError as e:
        raise Unusable(f"launchers for {folder}: {e.filename or folder}: {e.strerror}") from e
    return [_explained(folder, name) for name in foreign]


def _explained(folder: str, name: str) -> str:
    second = next((other for other, first in SECOND_NAMES.items() if first == name), None)
    instead = f"; the type {second} is ours" if second else ""
    return f"{os.path.join(folder, name)} is another program's and left alone{instead}"


def _has(path: str, content: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return (
                file.read(len(content) + 1) == content and os.fstat(file.fileno()).st_mode & 0o777 == 0o755
            )
    except FileNotFoundError:
        return False


def _put(path: str, content: bytes) -> None:
    """Replaces it in one step: a runtime may start it at any moment, and a crash leaves no half one."""
    fresh = f"{path}.new"
    if os.path.lexists(fresh):
        os.unlink(fresh)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    with open(fd, "wb") as file:
        file.write(content)
        os.fchmod(fd, 0o755)
        file.flush()
        os.fsync(fd)
    os.rename(fresh, path)
