"""The folders in which leases are kept beside the node's usual one, as networks with a `dataDir` have them.

Once all VMs of such a network are stopped no record names its folder any more. So the first ADD that writes
there puts it down in `leases.folders` in the usual folder: one path a line, for people and programs to read.
Lines that are no path are left as they are by those who add one, and reported by those who read.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, NamedTuple

from cnvnet.kernel import flock, private_folder, regular_file

_EXPLAINED: Final = b"# Folders with leases that an ipam.dataDir names, one a line; cnvctl looks there.\n"
# How long an ADD waits for another one that adds a folder, which takes that one a few milliseconds.
_PATIENCE: Final = 2.0


class Listed(NamedTuple):
    """`damage` says what of the list is none, "" if all of it is well."""

    folders: tuple[str, ...]
    damage: str


def path(statedir: str) -> str:
    """The list of the node whose usual folder this is."""
    return os.path.join(statedir, "leases.folders")


def read(statedir: str) -> Listed:
    """The folders in the order in which they were added; none where there is no list."""
    name = path(statedir)
    remedy = "put it right or remove it (the next ADD of each network adds its folder)"
    try:
        content = _content(name)
    except OSError as e:
        return Listed((), f"{name}: {(e.strerror or str(e)).lower()}: {remedy}")
    lines = _lines(content)
    wrong = [each for each in lines if not _is_folder(each)]
    folders = tuple(dict.fromkeys(each for each in lines if _is_folder(each)))
    damage = f"{name}: {wrong[0][:64]!r} is no absolute path: {remedy}" if wrong else ""
    return Listed(folders, damage)


def add(statedir: str, folder: str) -> None:
    """The list has the folder, on the disk when this returns. Raises OSError, with the list as it was."""
    if folder in read(statedir).folders:
        return
    private_folder.ensure(statedir)
    with _locked(statedir):
        content = _content(path(statedir)) or _EXPLAINED
        if folder not in _lines(content):
            end = b"" if content.endswith(b"\n") else b"\n"
            content += end + os.fsencode(folder) + b"\n"
            if len(content) > regular_file.LIMIT:
                raise OSError(errno.EFBIG, f"it would be larger than {regular_file.LIMIT} bytes")
            private_folder.put(path(statedir), content)


def _content(name: str) -> bytes:
    """What the file has, b"" where there is none."""
    try:
        place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    try:
        return regular_file.read(place)
    finally:
        os.close(place)


def _lines(content: bytes) -> list[str]:
    lines = os.fsdecode(content).split("\n")
    return [line for line in lines if line and not line.startswith("#")]


def _is_folder(line: str) -> bool:
    return os.path.isabs(line) and line.isprintable()


@contextmanager
def _locked(folder: str) -> Generator[None]:
    """One at a time. The folder itself is the lock: nothing else locks it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flock.acquire(fd, _PATIENCE)
        yield
    finally:
        os.close(fd)
