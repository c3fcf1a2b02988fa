"""What only the node's agent knows, asked on its socket: never needed, and said when it is not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from cnvnet.attachment.record import Key, file_name
from cnvnet.cni.errors import CNIError
from cnvnet.launch import client, guest_client


class AgentStatus(NamedTuple):
    """The agent as it answers."""

    # Why it does not answer, "" when it does.
    absent: str = ""
    # "" for an older agent, which reports nothing of what follows.
    version: str = ""
    # Guests by state.
    served: int = 0
    waiting: int = 0
    # Whether the packet loop runs.
    loop: bool = True
    # A process has the socket, and does not answer as an agent does.
    stuck: bool = False


class GuestProbe:
    """Whether guests are served: each is asked for, until the agent has not answered once."""

    def __init__(self, env: Mapping[str, str], agent: AgentStatus) -> None:
        self._env = env
        self._absent = agent.absent

    def problem(self, key: Key) -> str | None:
        """Why the guest of this record is not served, "" if it is; None without an agent that knows."""
        if self._absent:
            return None
        try:
            guest_client.ask(self._env, {"guest": "check", "record": file_name(key)})
        except guest_client.AgentUnavailable as e:
            self._absent = str(e)
            return None
        except CNIError as e:
            return e.msg.removeprefix("guestServices: ").removeprefix(f"{file_name(key)}: ")
        return ""


def environment(env: Mapping[str, str], rundir: str) -> dict[str, str]:
    """The variables by which the agent of a RUNDIR is found."""
    return {**env, "CNVNET_RUNDIR": rundir}


def ask(env: Mapping[str, str]) -> AgentStatus:
    """The agent of this environment's RUNDIR."""
    try:
        answer = guest_client.ask(env, {"about": True})
    except guest_client.AgentUnavailable as e:
        stuck = isinstance(e.__cause__, (TimeoutError, ValueError, ConnectionResetError))
        return AgentStatus(absent=f"{client.socket_path(env)}: {e}", stuck=stuck)
    except CNIError:
        return AgentStatus()  # an older one: there is no such request for it
    return AgentStatus(
        version=str(answer.get("version", "")),
        served=_number(answer, "served"),
        waiting=_number(answer, "waiting"),
        loop=answer.get("loop") is True,
    )


def _number(answer: Mapping[str, object], key: str) -> int:
    value = cast("Any", answer.get(key))
    return value if isinstance(value, int) else 0
