"""Where the files of the node are that a command is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Place(NamedTuple):
    """The node's folders, and the environment."""

    # The records and the agent's socket.
    rundir: str
    # The leases.
    statedir: str
    # cnvctl's own.
    env: Mapping[str, str]
