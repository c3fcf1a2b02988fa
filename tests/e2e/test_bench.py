"""scripts/bench --cluster on little: that it measures, not what."""

from __future__ import annotations

import json

from tests.bench import cluster
from tests.functional.test_scripts import run_script
from tests.harness import peer


def test_every_case_of_a_cluster_is_measured() -> None:
    for program in cluster.PROGRAMS:
        peer(program)
    rows = json.loads(run_script("bench", "--cluster", "--quick", "--json"))
    measured = {(row["operation"], row["state"]): row["samples"] for row in rows}
    for state in ("", "no policies"):
        assert {*measured["pod ADD", state]} == {"agent", "whereabouts"}
    for which in ("first", "same VMI again", "restart"):
        assert {*measured["VM ADD", which]} == {"agent", "whereabouts"}
        assert {*measured["VM ADD", f"{which}, 30 leases"]} == {"agent", "itself"}
    bursts = [row for row in rows if row["operation"] in ("6 pods ADD", "6 VMs ADD", "8 pods ADD")]
    assert len(bursts) == 3
    assert all(goal["found"] > 0 for row in bursts for goal in row["goals"])
    (idle,) = (row for row in rows if "apart" in row["state"])
    assert [goal["unit"] for goal in idle["goals"]] == ["new connections"]
    assert all(spent > 0 for samples in measured.values() for each in samples.values() for spent in each)
