"""One CNI call as a value: environment and configuration, parsed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Request(NamedTuple):
    """One call. Plugins read everything from here, never from os.environ: the agent serves many callers.

    `env` is the caller's whole environment, which delegates get too. `config` is the decoded stdin (`Fields`
    reads it without regard to case), `raw` the very bytes, which delegates get. `netns` is "" when there was
    none, and for a DEL whose CNI_NETNS is the plugin's own namespace, which DEL must not touch.
    """

    command: str
    container_id: str
    netns: str
    ifname: str
    args: str
    path: str
    env: Mapping[str, str]
    config: Mapping[str, Any]
    raw: bytes
    cni_version: str
    name: str
