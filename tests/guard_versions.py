"""The guards' table as an older or a newer version of the project would have it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cnvnet.plugins.cnv_bridge import guards

_DATA: Final = Path(__file__).parent / "data"
NUMBER: Final = int(guards.VERSION.removeprefix("guard_v"))
OLDER: Final = f"guard_v{NUMBER - 1}"
NEWER: Final = f"guard_v{NUMBER + 1}"


def priority(number: int) -> str:
    """The hook of a version's base chain: a later version comes after the older one, by one."""
    return f"prerouting priority {number - 311}"


def text_of(version: str) -> str:
    """The table of a version before, where it is kept; else today's under another name, at its priority."""
    kept = _DATA / f"{version}.nft"
    if kept.exists():
        return kept.read_text()
    number = int(version.removeprefix("guard_v"))
    renamed = guards.TEXT.replace(guards.VERSION, version)
    assert priority(NUMBER) in renamed
    return renamed.replace(priority(NUMBER), priority(number))
