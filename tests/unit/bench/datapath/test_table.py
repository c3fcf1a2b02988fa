"""The tables of the data path."""

from __future__ import annotations

import json

import pytest

from tests.bench.datapath import table
from tests.bench.datapath.table import Goal, PathRow

GOALS = (Goal("ours", "peer", 1.02), Goal("ours", "veth"))
FAST = PathRow("behind it", "udp", {"ours": [100.0, 204.0], "peer": [100.0, 200.0]}, GOALS[:1])
SLOW = PathRow("behind it", "connection", {"ours": [3300.0], "peer": [3000.0], "veth": [1100.0]}, GOALS)


def test_a_ratio_is_the_median_of_the_ratios_of_the_same_round() -> None:
    row = FAST._replace(samples={"ours": [1.0, 20.0, 33.0], "peer": [2.0, 20.0, 30.0]})
    assert row.found(GOALS[0]) == 1.0


def test_rows_of_a_table_share_its_columns_and_a_missed_goal_is_marked() -> None:
    lines = table.markdown([FAST, SLOW]).splitlines()
    assert lines[0] == "| behind it | ours | peer | veth | ours ÷ peer | ours ÷ veth |"
    assert lines[2] == "| udp | 152 | 150 |  | 1.010 (≤ 1.02) |  |"
    assert lines[3] == "| connection | 3,300 | 3,000 | 1,100 | 1.100 (≤ 1.02, missed) | 3.000 |"


def test_it_is_said_how_many_goals_are_met() -> None:
    assert "1 of 2 goals are met." in " ".join(table.markdown([FAST, SLOW]).split())


def test_json_says_of_each_goal_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    table.as_json([SLOW])
    (row,) = json.loads(capsys.readouterr().out)
    assert [(goal["peer"], goal["found"], goal["met"]) for goal in row["goals"]] == [
        ("peer", pytest.approx(1.1), False),
        ("veth", 3.0, True),
    ]
