"""Network namespaces: open one, compare two, be inside one for a moment."""

from __future__ import annotations

from typing import NamedTuple


class Netns(NamedTuple):
    """An open network namespace. `inode` identifies it; `path` is what the caller named it by."""

    path: str
    fd: int
    inode: int
