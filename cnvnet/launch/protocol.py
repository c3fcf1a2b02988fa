"""The messages by which a call goes to the node's agent and its answer comes back: docs/agent-protocol.md.

Pure: bytes in, values out. `launch` sends them, and so does launcher/agent.c, for which the format is
kept so plain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from cnvnet.cni.skel import Response

VERSION: Final = 1
# Bytes of a message at most: a stdin of document.LIMIT in base64 with the largest environment the kernel
# passes on (2 MiB, some of it escaped), and what the launchers are willing to hold of an answer.
REQUEST_LIMIT: Final = 32 * 1024 * 1024
ANSWER_LIMIT: Final = 16 * 1024 * 1024
# What else a request carries, in this order: the call's namespace (missing where it cannot be opened), the
# network and mount namespaces of the caller and its `/`.
DESCRIPTORS: Final = ("netns", "self", "mnt", "root")

_PREFIXES: Final = ("CNI_", "CNVNET_")


class MalformedMessage(ValueError):
    """Not a message of this protocol; the text says why."""


class ForwardedCall(NamedTuple):
    """One call as its caller made it: plugin, environment and stdin, and which descriptors came along."""

    argv0: str
    env: Mapping[str, str]
    stdin: bytes
    fds: tuple[str, ...] = DESCRIPTORS[1:]


def forwarded(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that go along; PATH, HOME and whatever secrets there are stay with the caller."""
    return {
        name: value for name, value in env.items() if name.startswith(_PREFIXES) or name == "TRACEPARENT"
    }


def framed(message: bytes) -> bytes:
    """A message with its length in front, as it goes over the socket."""
    return len(message).to_bytes(4, "big") + message


def encode_call(call: ForwardedCall) -> bytes:
    """The request. What is no UTF-8 in the environment (surrogateescape) is escaped and comes through."""
    return _dump(
        {
            "v": VERSION,
            "argv0": call.argv0,
            "fds": call.fds,
            "env": dict(call.env),
            "stdin": _base64(call.stdin),
        }
    )


def decode_call(message: Mapping[str, Any]) -> ForwardedCall | None:
    """The call in a request that `json.loads` has read; None for one that is to be answered `unsupported`.

    Not document.decode, which would lose bytes that are no UTF-8. MalformedMessage for a request that says
    v 1 and argv0 but is not well formed.
    """
    if not is_version(message.get("v")) or "argv0" not in message:
        return None
    argv0: object = message["argv0"]
    env = cast("Mapping[str, object] | None", message.get("env"))
    fds = cast("Sequence[str] | None", message.get("fds"))
    if not isinstance(argv0, str):
        raise MalformedMessage("argv0: expected a string")
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise MalformedMessage("env: expected an object of strings")
    if not isinstance(fds, list) or [name for name in DESCRIPTORS if name in fds] != fds:
        raise MalformedMessage(f"fds: expected some of {', '.join(DESCRIPTORS)}, in this order")
    return ForwardedCall(argv0, cast("Mapping[str, str]", env), _bytes(message, "stdin"), tuple(fds))


def is_version(value: object) -> bool:
    """Whether a message's `v` is ours; `true` and 1.0, which equal 1 in Python, are not."""
    return type(value) is int and value == VERSION


def encode_response(response: Response) -> bytes:
    """The answer to a call that was run."""
    stdout, stderr = _base64(response.stdout), _base64(response.stderr)
    return _dump({"v": VERSION, "exit": response.exit, "stdout": stdout, "stderr": stderr})


def encode_unsupported() -> bytes:
    """The answer to a request of which nothing was done: the caller runs the call itself."""
    return _dump({"v": VERSION, "unsupported": True})


def decode_response(raw: bytes) -> Response | None:
    """The answer, None for `unsupported`; MalformedMessage for anything else."""
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise MalformedMessage("no JSON") from e
    if not isinstance(message, dict):
        raise MalformedMessage("no JSON object")
    answer = cast("Mapping[str, object]", message)
    if answer.get("unsupported") is True:
        return None
    code = answer.get("exit")
    if not is_version(answer.get("v")) or type(code) is not int or not 0 <= code <= 255:
        raise MalformedMessage("no answer to a call")
    return Response(code, _bytes(answer, "stdout"), _bytes(answer, "stderr"))


def _dump(message: Mapping[str, object]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


# base64 itself imports re and struct.
def _base64(data: bytes) -> str:
    import binascii

    return binascii.b2a_base64(data, newline=False).decode()


def _bytes(message: Mapping[str, object], key: str) -> bytes:
    import binascii

    value = message.get(key)
    if isinstance(value, str):
        try:
            return binascii.a2b_base64(value, strict_mode=True)
        except ValueError:
            pass  # not ASCII, or not base64
    raise MalformedMessage(f"{key}: expected a string in base64")
