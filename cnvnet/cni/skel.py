"""The process boundary of every plugin: which call it is, whether it is well formed, and what is printed."""

from __future__ import annotations

from typing import Protocol

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
