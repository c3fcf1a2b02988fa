"""One CNI call as a value: environment and configuration, parsed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cnvnet.cni import environment, version
from cnvnet.cni.document import LIMIT, Malformed, decode_object
from cnvnet.cni.errors import DECODING_FAILURE, INVALID_ENVIRONMENT, IO_FAILURE, CNIError, InvalidConfig
from cnvnet.cni.fields import Fields

COMMANDS = ("ADD", "CHECK", "DEL", "GC", "STATUS")


class Request(NamedTuple):
    """One call. Plugins read everything from here, never from os.environ: the agent serves many callers."""

    # One of COMMANDS.
    command: str
    container_id: str
    # The path of the pod's namespace; "" without one, and for a DEL whose CNI_NETNS is the plugin's own.
    netns: str
    ifname: str
    # CNI_ARGS and CNI_PATH.
    args: str
    path: str
    # The caller's whole environment, which delegates get too.
    env: Mapping[str, str]
    # The decoded stdin. All readers share it, so that it knows which keys none of them has asked for.
    fields: Fields
    # The bytes of stdin, which delegates get.
    raw: bytes
    cni_version: str
    # The network's.
    name: str

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration as it is written, keys in any case."""
        return self.fields.data


def parse(env: Mapping[str, str], raw: bytes) -> Request:
    """The call that a complete environment (`environment.command`) and the bytes of stdin describe.

    Raises CNIError with the codes, texts and order of containernetworking/cni pkg/skel.
    """
    return from_config(env, raw, decode(raw))


def decode(raw: bytes) -> Mapping[str, Any]:
    """The configuration on stdin. CNIError 5 where it is too long, 6 where it is no JSON object."""
    if len(raw) > LIMIT:
        raise CNIError(IO_FAILURE, f"error reading from stdin: more than {LIMIT} bytes")
    try:
        return decode_object(raw)
    except Malformed as e:
        raise CNIError(DECODING_FAILURE, f"error unmarshall network config: {e}") from e


def from_config(env: Mapping[str, str], raw: bytes, config: Mapping[str, Any]) -> Request:
    """`parse` for a caller that has decoded the configuration: `raw` are its bytes."""
    command = env.get("CNI_COMMAND", "")
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
        fields=fields,
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
