"""The process boundary of every plugin: which call it is, whether it is well formed, and what is printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn, Protocol

from cnvnet.cni.request import Request
from cnvnet.cni.result import Result


class Plugin(Protocol):
    """What a plugin is to the skeleton. Each method raises CNIError; only `add` has something to say."""

    name: str

    def add(self, request: Request) -> Result: ...
    def delete(self, request: Request) -> None: ...
    def check(self, request: Request) -> None: ...
    def gc(self, request: Request) -> None: ...
    def status(self, request: Request) -> None: ...


# Makes the plugin from the caller's environment; called only for the commands that need one.
Load = Callable[[Mapping[str, str]], Plugin]


class Response(NamedTuple):
    """What the caller's process gets to see."""

    exit: int
    stdout: bytes
    stderr: bytes


def run(
    name: str,
    load: Load,
    env: Mapping[str, str],
    read_stdin: Callable[[], bytes],
    *,
    own_netns: str = "/proc/thread-self/ns/net",
) -> Response:
    """One call from start to end; touches nothing of this process, for the agent's workers call it too.

    `own_netns` is a path to the namespace the caller runs in.
    """
    raise NotImplementedError


def main(name: str, load: Load) -> NoReturn:
    """The executable `name`: one call with this process' environment, stdin and stdout."""
    raise NotImplementedError
