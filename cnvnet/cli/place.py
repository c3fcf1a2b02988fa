"""Where the files of the node are that a command is about, and its cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cnvnet.vm.subjects import Lookup, no_api


class Place(NamedTuple):
    """The node's folders, the environment, and the way to the cluster."""

    # The records and the agent's socket.
    rundir: str
    # The leases.
    statedir: str
    # cnvctl's own.
    env: Mapping[str, str]
    # To the Kubernetes API, if there are credentials for it.
    lookup: Lookup = no_api

    @property
    def node(self) -> str:
        """This node's name in Kubernetes, "" where the environment does not say."""
        return self.env.get("CNVNET_NODE") or self.env.get("NODE_NAME") or ""
