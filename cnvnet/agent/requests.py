"""The kinds of requests there are, and who does them."""

from __future__ import annotations

from collections.abc import Callable

from cnvnet.agent.connection import Document
from cnvnet.agent.guests import Guests
from cnvnet.agent.loop_process import PacketLoop
from cnvnet.agent.server import Find, Kind
from cnvnet.cni.errors import INVALID_CONFIG, NOT_AVAILABLE, CNIError
from cnvnet.guest.provider import Service

# How long "is anybody there" waits for a packet loop that is being started.
_LOOP_SECONDS = 5.0


def of_guests(guests: Guests, loop: PacketLoop) -> Find:
    """`{"guest": "serve" | "check" | "forget", "record": NAME}` and `{"status": true}`."""

    def status(_: Document) -> Document:
        if not loop.wait(_LOOP_SECONDS):
            raise CNIError(NOT_AVAILABLE, "the agent's packet loop does not run")
        return {"ok": True}

    kinds = {
        "serve": Kind("serve", _about_record(guests.serve)),
        "check": Kind("check", _about_record(guests.check)),
        "forget": Kind("forget", _about_record(guests.forget)),
    }
    there = Kind("status", status)

    def find(document: Document) -> Kind | None:
        if "guest" in document:
            wanted = document["guest"]
            return kinds.get(wanted) if isinstance(wanted, str) else None
        return there if document.get("status") is True else None

    return find


def in_process(find: Find) -> Service:
    """The same for calls that the agent runs itself."""

    def do(document: Document) -> None:
        kind = find(document)
        if kind is None:
            raise CNIError(NOT_AVAILABLE, "the agent does not know this request")
        kind.do(document)

    return do


def _about_record(do: Callable[[str], None]) -> Callable[[Document], Document]:
    def answer(document: Document) -> Document:
        name = document.get("record")
        if not isinstance(name, str):
            raise CNIError(INVALID_CONFIG, "record: required")
        do(name)
        return {"ok": True}

    return answer
