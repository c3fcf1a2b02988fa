"""The kinds of requests there are, and who does them."""

from __future__ import annotations

from collections.abc import Callable

from cnvnet.agent.guests import Guests
from cnvnet.agent.loop_process import PacketLoop
from cnvnet.agent.server import Document, Find, Kind
from cnvnet.cni.errors import INVALID_CONFIG, NOT_AVAILABLE, CNIError

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


def _about_record(do: Callable[[str], None]) -> Callable[[Document], Document]:
    def answer(document: Document) -> Document:
        name = document.get("record")
        if not isinstance(name, str):
            raise CNIError(INVALID_CONFIG, "record: required")
        do(name)
        return {"ok": True}

    return answer
