"""What a record may hold that no plugin writes: no other guest is affected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.functional.agent.own_agent import eventually, running_agent
from tests.functional.agent.test_guests import attached_without_agent, record, replace
from tests.functional.masquerade.masquerade_pod import Lab

pytestmark = pytest.mark.alone

ODD: dict[str, Any] = {
    "no object": "x",
    "half a character": {"private_options": [[224, "\ud800"]]},
    "more servers than an option holds": {"nameservers": [f"fd00::{n:x}" for n in range(1, 5000)]},
    "numbers": {"mtu": 1 << 80, "lease_seconds": -1},
    "shapes": {"v4": {"address": "10.0.2.2/24", "server": {"a": [1]}}},
    "more than the packet loop takes": {"boot_file": "x" * 300_000},
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_record_is_no_other_guests_trouble(lab: Lab, case: str) -> None:
    attached_without_agent(lab)
    path = record(lab)
    good = json.loads(path.read_text())
    settings = ODD[case] if case == "no object" else {**good["guest"]["settings"], **ODD[case]}
    odd = json.dumps({**good, "guest": {**good["guest"], "settings": settings}})
    # Before and behind the good one, whichever way they are gone through.
    others = [path.with_name(f"masquerade-{number}.json") for number in range(4)]
    for other in others:
        replace(other, odd)
    with running_agent(lab.node) as agent:
        assert is_served(agent, path), agent.log()
        path.unlink()
        assert eventually(lambda: not is_served(agent, path))
        for other in others:
            replace(other, odd)
        replace(path, json.dumps(good))
        assert eventually(lambda: is_served(agent, path)), agent.log()
        assert "Traceback" not in agent.log()
        for other in others:
            other.unlink()


def is_served(agent: Any, path: Path) -> bool:
    return bool(agent.ask(guest="check", record=path.name).get("ok"))
