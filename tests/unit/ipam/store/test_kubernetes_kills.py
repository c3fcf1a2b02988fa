"""The Kubernetes store whose process is killed at any request, or loses any answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnvnet.ipam.store.holds import COOLING, HELD
from tests.fakes.api_objects import Objects
from tests.fakes.api_server import ApiServer, drop
from tests.fakes.kubernetes_store import Killed, disagreements
from tests.unit.ipam.store.interruptions import SCENARIOS, Scenario, ensure_all_is_well, prepare
from tests.unit.ipam.store.nodes import Node


def kills() -> list[Any]:
    return [
        pytest.param(each, after, id=f"{each.__name__}-{'after' if after else 'before'}")
        for each in SCENARIOS
        for after in (False, True)
    ]


@pytest.mark.parametrize(("scenario", "after"), kills())
def test_a_kill_at_any_request_is_healed_by_the_next_drain(
    server: ApiServer, tmp_path: Path, scenario: Scenario, after: bool
) -> None:
    for request in range(40):
        server.objects = Objects()
        node = Node(server, tmp_path / str(request), direct=True, clock=lambda: 1000)
        prepare(node, scenario)
        try:
            scenario(node.killed_at(request, after=after))
        except Killed:
            healed = node.restart()
            assert healed.store.drain().left == ()
            assert disagreements(server) == [], f"killed at request {request}"
            assert {each.state for each in node.holds.all()} <= {HELD, COOLING}
            # The runtime asks again, and all is as if nothing had happened.
            scenario(healed)
            ensure_all_is_well(node, server, request)
        else:
            ensure_all_is_well(node, server, request)
            return
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_lost_answer_to_any_request_changes_nothing(
    server: ApiServer, tmp_path: Path, scenario: Scenario
) -> None:
    for request in range(40):
        server.objects = Objects()
        node = Node(server, tmp_path / str(request), clock=lambda: 1000)
        prepare(node, scenario)
        server.inject(drop, after=True, skip=request)
        count = server.count()
        scenario(node)
        was_asked = server.count() - count
        server.clear_faults()
        ensure_all_is_well(node, server, request)
        if was_asked <= request:
            return
    raise AssertionError("it never came to its end")
