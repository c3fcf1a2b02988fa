"""One CNI call on its way through the agent: decoded once, and one value from its arrival to its answer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final, NamedTuple

from cnvnet.agent.calls.remote_caller import RemoteCaller
from cnvnet.agent.calls.scheduler import CallKey
from cnvnet.agent.connection import CallerConnection
from cnvnet.cni import request as requests
from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request
from cnvnet.launch import protocol

# The commands that are about one attachment: an interface of a container.
_OF_ATTACHMENT: Final = ("ADD", "CHECK", "DEL")
_WITHOUT_PLUGIN: Final = ("", "VERSION")


class Call(NamedTuple):
    """A call that the agent has taken over. Its connection stays open until `connection` is closed."""

    # The executable's name.
    plugin: str
    # The caller's CNI_* and CNVNET_*, with the agent's own PATH.
    env: Mapping[str, str]
    stdin: bytes
    remote: RemoteCaller
    connection: CallerConnection
    # By time.monotonic().
    arrived: float
    # The decoded stdin; empty where it is no JSON object, and until `parsed`.
    config: Mapping[str, Any] = {}
    # None until `parsed`; the error with which the plugin is to answer a call that is malformed.
    request: Request | CNIError | None = None

    def parsed(self) -> Call:
        """The call with its configuration and request. A parsed call takes eight times the memory."""
        if self.request is not None:
            return self
        config: Mapping[str, Any] = {}
        try:
            config = requests.decode(self.stdin)
            request: Request | CNIError = requests.from_config(self.env, self.stdin, config)
        except CNIError as e:
            request = e
        return self._replace(config=config, request=request)

    def read_request(self) -> Request:
        """The request of a parsed call. Raises the CNIError of a malformed one."""
        if isinstance(self.request, CNIError):
            raise self.request
        assert self.request is not None, "not parsed"
        return self.request

    def as_delete(self) -> Call:
        """The DEL that undoes this ADD."""
        env = {**self.env, "CNI_COMMAND": "DEL"}
        request = self.request
        if isinstance(request, Request):
            request = request._replace(command="DEL", env=env)
        return self._replace(env=env, request=request)

    @property
    def command(self) -> str:
        """CNI_COMMAND as the caller gave it, which may be anything."""
        return self.env.get("CNI_COMMAND", "")

    @property
    def needs_plugin(self) -> bool:
        """Whether a plugin answers it: not VERSION, nor a call without a command."""
        return self.command not in _WITHOUT_PLUGIN

    @property
    def is_of_attachment(self) -> bool:
        """Whether it is about one attachment: ADD, DEL or CHECK."""
        return self.command in _OF_ATTACHMENT

    @property
    def container_id(self) -> str:
        """CNI_CONTAINERID as the caller gave it; empty without one."""
        return self.env.get("CNI_CONTAINERID", "")

    @property
    def ifname(self) -> str:
        """CNI_IFNAME as the caller gave it; empty without one."""
        return self.env.get("CNI_IFNAME", "")

    @property
    def network(self) -> str:
        """The network's name as far as the configuration can be read."""
        if isinstance(self.request, Request):
            return self.request.name
        name = self.config.get("name")
        return name if isinstance(name, str) else ""

    def key(self) -> CallKey:
        """What the scheduler has to know of a parsed call."""
        attachment = (
            (self.container_id, self.ifname) if self.is_of_attachment and self.container_id else None
        )
        return CallKey(self.network, attachment, len(self.stdin), is_delete=self.command == "DEL")

    def description(self) -> str:
        """The attachment in words, for messages about a parsed call."""
        return f"{self.ifname} of container {self.container_id} in network {self.network}"

    def log_fields(self) -> dict[str, object]:
        """What its lines in the log have in common."""
        return {"container": self.container_id, "ifname": self.ifname}

    def turn_away(self) -> None:
        """Tells the launcher to run the call itself, as nothing of it was done, and hangs up."""
        with closing(self.connection):
            try:
                self.connection.send(protocol.encode_unsupported())
            except OSError:
                pass  # the launcher has gone


def has_absolute_paths(env: Mapping[str, str]) -> bool:
    """Whether no folder in CNI_PATH is relative to the caller's working directory, which is not sent."""
    return all(path[:1] in ("/", "") for path in env.get("CNI_PATH", "").split(os.pathsep))
