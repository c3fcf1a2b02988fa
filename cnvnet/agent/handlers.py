"""The kinds of requests that the agent knows, and which part of it does each."""

from __future__ import annotations

from collections.abc import Callable

from cnvnet import VERSION
from cnvnet.agent.connection import Document
from cnvnet.agent.guests.packet_loop_process import PacketLoopProcess
from cnvnet.agent.guests.serving import LOOP_SECONDS, ServedGuests
from cnvnet.agent.server import Handler, Route
from cnvnet.agent.takeover import RETIRE
from cnvnet.call_context import Service
from cnvnet.cni.errors import INVALID_CONFIG, NOT_AVAILABLE, CNIError


def guest_handlers(guests: ServedGuests, loop: PacketLoopProcess, retire: Callable[[], None]) -> Route:
    """Who answers requests about guests and about the agent.

    They are `{"guest": "serve" | "check" | "forget" | "events", "record": NAME}`, `{"status": true}`,
    `{"about": true}` and `{"retire": true}`. `retire` ends an agent on demand, and raises CNIError in any
    other.
    """

    def status(_: Document) -> Document:
        if not loop.wait(LOOP_SECONDS):
            raise CNIError(NOT_AVAILABLE, "the agent's packet loop does not run")
        return {"ok": True}

    def about(_: Document) -> Document:
        counts = {"served": guests.served(), "waiting": guests.waiting(), "loop": loop.is_alive()}
        return {"ok": True, "version": VERSION, **counts}

    def end(_: Document) -> Document:
        retire()
        return {"ok": True}

    def events(name: str) -> Document:
        return {"ok": True, "events": guests.last_events(name)}

    of_record = {
        "events": Handler("events", _about_record(events)),
        "serve": Handler("serve", _about_record(_done(guests.serve))),
        "check": Handler("check", _about_record(_done(guests.check))),
        "forget": Handler("forget", _about_record(_done(guests.forget))),
    }
    others = {
        "status": Handler("status", status),
        "about": Handler("about", about),
        RETIRE: Handler(RETIRE, end),
    }

    def route(document: Document) -> Handler | None:
        if "guest" in document:
            action = document["guest"]
            return of_record.get(action) if isinstance(action, str) else None
        return next((handler for name, handler in others.items() if document.get(name) is True), None)

    return route


def in_process(route: Route) -> Service:
    """The same for calls that the agent runs itself."""

    def do(document: Document) -> None:
        handler = route(document)
        if handler is None:
            raise CNIError(NOT_AVAILABLE, "the agent does not know this request")
        handler.do(document)

    return do


def _done(do: Callable[[str], None]) -> Callable[[str], Document]:
    def answer(name: str) -> Document:
        do(name)
        return {"ok": True}

    return answer


def _about_record(do: Callable[[str], Document]) -> Callable[[Document], Document]:
    def answer(document: Document) -> Document:
        name = document.get("record")
        if not isinstance(name, str):
            raise CNIError(INVALID_CONFIG, "record: required")
        return do(name)

    return answer
