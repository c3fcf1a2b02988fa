"""One agent serves a RUNDIR, and the node's own takes over from one that a plugin has started on demand."""

from __future__ import annotations

import json
import time
from contextlib import closing
from typing import Final, cast

from cnvnet.agent import systemd
from cnvnet.agent.listener import Locked, Unusable, lock
from cnvnet.launch import client
from cnvnet.launch.protocol import MalformedMessage
from cnvnet.resident import log

RETIRE: Final = "retire"
# How long an agent on demand waits for one that is ending: the plugin that has started it waits ten seconds.
_ON_DEMAND_SECONDS: Final = 5.0
# How often the lock is tried, the holder is asked to end, and the wait is reported.
_TRY_SECONDS: Final = 0.1
_ASK_SECONDS: Final = 2.0
_REPORT_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 1.0
_ANSWER_BYTES: Final = 1 << 20
# What is reported to the service manager meanwhile; 30 s, as it is repeated every 2 s.
_PATIENCE: Final = "EXTEND_TIMEOUT_USEC=30000000\nSTATUS=waiting for another agent to end"


def take_lock(rundir: str, path: str, *, on_demand: bool) -> int:
    """A descriptor that makes this process the one agent of RUNDIR until it is closed. Raises Unusable.

    The node's own agent asks the holder, at the socket `path`, to end, which one on demand does, and waits
    for as long as it takes. One on demand gives up after five seconds: the holder is as good.
    """
    begun = time.monotonic()
    ask = report = begun
    while True:
        try:
            return lock(rundir)
        except Locked as e:
            now = time.monotonic()
            if on_demand and now - begun >= _ON_DEMAND_SECONDS:
                raise Unusable(str(e)) from e
            if not on_demand and now >= ask:
                systemd.notify(_PATIENCE)
                answer = _ask_to_end(path)
                ask = now + _ASK_SECONDS
                if now >= report:
                    log.warning("waiting for another agent to end", error=str(e), answer=answer)
                    report = now + _REPORT_SECONDS
        time.sleep(_TRY_SECONDS)


def _ask_to_end(path: str) -> str:
    """The holder's answer in words, for the log."""
    request = json.dumps({"v": 1, RETIRE: True}).encode()
    try:
        with closing(client.connect(path, _ANSWER_SECONDS)) as connection:
            deadline = time.monotonic() + _ANSWER_SECONDS
            return _in_words(client.exchange(connection, request, deadline, limit=_ANSWER_BYTES))
    except MalformedMessage as e:
        return f"{path}: {e}"
    except OSError as e:
        return f"{path}: {(e.strerror or str(e)).lower()}"


def _in_words(answer: bytes) -> str:
    try:
        document: object = json.loads(answer)
    except ValueError:
        return "none"
    if isinstance(document, dict):
        fields = cast("dict[str, object]", document)
        if fields.get("ok") is True:
            return "it ends"
        if isinstance(error := fields.get("error"), dict):
            return str(cast("dict[str, object]", error).get("msg"))
    return "it does not know the request to end: an older version"
