"""One CNI call as a value: environment and configuration, parsed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cnvnet.cni import environment, version
from cnvnet.cni.document import Malformed, decode_object
from cnvnet.cni.errors import DECODING_FAILURE, INVALID_ENVIRONMENT, CNIError, InvalidConfig
from cnvnet.cni.fields import Fields

COMMANDS = ("ADD", "CHECK", "DEL", "GC", "STATUS")


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

    @property
    def fields(self) -> Fields:
        """The configuration, to be read key by key."""
        return Fields(self.config)


def parse(env: Mapping[str, str], raw: bytes) -> Request:
    """The call that a complete environment (`environment.command`) and the bytes of stdin describe.

    Raises CNIError with the codes, texts and order of containernetworking/cni pkg/skel.
    """
    command = env.get("CNI_COMMAND", "")
    try:
        config = decode_object(raw)
    except Malformed as e:
        raise CNIError(DECODING_FAILURE, f"error unmarshall network config: {e}") from e
    fields = Fields(config)
    name = _text(fields, "name", "error unmarshall network config")
    if not name:
        raise InvalidConfig("missing network name")
    if not environment.is_name(name):
        raise InvalidConfig("invalid characters found in network name", name)
    if command not in COMMANDS:
        raise CNIError(INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {command}")
    cni_version = _text(fields, "cniVersion", "decoding version from network config") or version.IMPLIED
    version.ensure_compatible(command, cni_version)
    return Request(
        command=command,
        container_id=env.get("CNI_CONTAINERID", ""),
        netns=env.get("CNI_NETNS", ""),
        ifname=env.get("CNI_IFNAME", ""),
        args=env.get("CNI_ARGS", ""),
        path=env.get("CNI_PATH", ""),
        env=env,
        config=config,
        raw=raw,
        cni_version=cni_version,
        name=name,
    )


def _text(fields: Fields, key: str, what: str) -> str:
    try:
        return fields.text(key)
    except InvalidConfig as e:
        # The one place where a wrong type is a failure to decode (code 6), as for the reference.
        raise CNIError(DECODING_FAILURE, f"{what}: {e.msg}") from e
