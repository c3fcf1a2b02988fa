"""Whether the agent still is what is installed: an upgrade replaces files that a process runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from cnvnet import VERSION
from cnvnet.attachment.record import FileVersion
from cnvnet.resident import log


class OwnFiles:
    """The files whose code this process runs, as they were at `remember`."""

    def __init__(self) -> None:
        self._versions: dict[str, FileVersion | None] = {}
        self._reported = False

    def remember(self, paths: Iterable[str] | None = None) -> None:
        """By default those of all modules of the project that have been imported."""
        self._versions = {path: _version(path) for path in (_imported() if paths is None else paths)}

    def replaced(self) -> bool:
        """Whether one of them is another file now, or has gone."""
        return any(_version(path) != before for path, before in self._versions.items())

    def check(self) -> None:
        """Logs once that files were replaced. Takes 0.3 ms: a stat of each file."""
        if not self._reported and self.replaced():
            self._reported = True
            log.warning(
                "the agent's files were replaced: it goes on with those from before",
                version=VERSION,
                remedy="systemctl restart cnvnet-agent",
            )


def _imported() -> list[str]:
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "cnvnet"]
    return [path for module in modules if (path := getattr(module, "__file__", None))]


def _version(path: str) -> FileVersion | None:
    try:
        return FileVersion.of(os.stat(path))
    except OSError:
        return None
