"""Tables of a run, with another checkout and without."""

from __future__ import annotations

import pytest

from tests.bench import report
from tests.bench.report import Row
from tests.bench.rounds import Samples


def samples(agent: float, **columns: float) -> Samples:
    return {name: [value] for name, value in {"reference": 10.0, "agent": agent, **columns}.items()}


def test_a_run_without_another_checkout_has_no_columns_for_it() -> None:
    rows = [Row("L2 ADD", "", samples(5))]
    assert "other" not in report.markdown(rows)
    assert "other" not in report.line(rows[0])
    assert report.against(rows) == ""


def test_the_other_checkout_has_a_column_and_a_ratio() -> None:
    heading, _, row, *_ = report.markdown([Row("L2 ADD", "", samples(5, other=4))]).splitlines()
    assert heading == (
        "| operation | with | reference | agent, C | agent, Python | alone | other, C "
        "| × reference | × itself | × other |"
    )
    assert row == "| L2 ADD |  | 10.0 / 10.0 | 5.0 / 5.0 |  |  | 4.0 / 4.0 | 0.50 |  | 1.25 |"


def test_goals_stand_beside_their_ratios() -> None:
    row = Row("L2 ADD", "", samples(5, alone=20, other=5), limit=0.4, alone_limit=50)
    cells = row.cells()
    assert cells["× reference"] == "0.50 (≤ 0.4, missed)"
    assert cells["alone"] == "20.0 / 20.0 (≤ 50)"
    assert cells["× other"] == "1.00"


@pytest.mark.parametrize(
    ("agent", "at_least", "slower"),
    [(103, False, False), (104, False, True), (97, True, False), (96, True, True)],
)
def test_more_than_three_percent_is_slower(agent: float, at_least: bool, slower: bool) -> None:
    row = Row("L2 ADD", "1 port", samples(agent, other=100), at_least=at_least)
    assert row.is_slower_than_other() is slower
    named = f": L2 ADD, 1 port: {agent / 100:.2f}." if slower else "."
    assert report.against([row]) == f"{int(slower)} of 1 rows are more than 3% slower than the other{named}"


def test_the_table_ends_with_the_comparison() -> None:
    text = report.markdown([Row("L2 ADD", "", samples(5, other=4))])
    assert text.endswith("\n\n1 of 1 rows are more than 3% slower than the other: L2 ADD: 1.25.\n")


def test_a_document_has_no_prose_wider_than_120_columns() -> None:
    rows = [Row(f"operation {n}", "20,000 foreign chains", samples(5), limit=0.1) for n in range(9)]
    lines = report.markdown(rows).splitlines()
    prose = [line for line in lines if not line.startswith("|")]
    assert max(map(len, prose)) <= 120
    assert " ".join(filter(None, prose)).endswith(report.summary(rows))


def test_in_a_cluster_the_reference_is_whereabouts() -> None:
    slowest = report.Goal("", "× median: slowest call", 12.5, 10, at_least=False)
    row = Row("2 pods ADD", "", {"agent": [5.0], "whereabouts": [20.0]}, limit=0.2, more=(slowest,))
    heading, _, line, *_ = report.markdown([row]).splitlines()
    assert heading == "| operation | with | whereabouts | agent, C | × whereabouts | × itself |"
    assert line == (
        "| 2 pods ADD | 12.5 × median: slowest call (≤ 10, missed) | 20.0 / 20.0 | 5.0 / 5.0 "
        "| 0.25 (≤ 0.2, missed) |  |"
    )
    assert report.summary([row]).startswith("0 of 2 goals are met. Missed: 2 pods ADD: 0.25 × whereabouts")


def test_tables_stand_between_the_marks_of_their_command() -> None:
    marks = ["<!-- scripts/bench --cluster: begin -->", "<!-- scripts/bench --cluster: end -->"]
    document = "\n".join(["a", "<!-- scripts/bench: begin -->", "b", "<!-- scripts/bench: end -->", *marks])
    rows = [Row("pod ADD", "", {"agent": [5.0]})]
    made = report.replaced(document, report.markdown(rows), "scripts/bench --cluster")
    assert made.startswith("a\n<!-- scripts/bench: begin -->\nb\n")
    assert f"{marks[0]}\n{report.markdown(rows)}{marks[1]}" in made
    with pytest.raises(ValueError, match="no lines <!-- x: begin -->"):
        report.replaced(document, report.markdown(rows), "x")
