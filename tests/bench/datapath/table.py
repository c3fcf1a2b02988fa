"""The rows of the data path's tables: what each way takes, and ratios with their goals."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tests.bench.datapath.ways import ratio
from tests.bench.report import wrapped


class Goal(NamedTuple):
    """`column` takes at most `limit` times as long as `peer`; None: nothing is asked of it."""

    column: str
    peer: str
    limit: float | None = None


class PathRow(NamedTuple):
    """One operation on all ways of a table: nanoseconds by column, round by round."""

    table: str
    operation: str
    samples: dict[str, list[float]]
    goals: tuple[Goal, ...]

    def found(self, goal: Goal) -> float:
        return ratio(self.samples, goal.column, goal.peer)

    def is_met(self, goal: Goal) -> bool:
        return goal.limit is None or self.found(goal) <= goal.limit


def line(row: PathRow) -> str:
    """One row by itself, while others are still measured."""
    return " | ".join((row.table, *_cells(row, list(row.samples), _comparisons([row]))))


def markdown(rows: Sequence[PathRow]) -> str:
    """One table after the other, then what they say of the goals."""
    tables = dict.fromkeys(row.table for row in rows)
    parts = [_table([row for row in rows if row.table == table]) for table in tables]
    met = [row.is_met(goal) for row in rows for goal in row.goals if goal.limit is not None]
    goals = f"{sum(met)} of {len(met)} goals are met."
    return "\n".join([*parts, wrapped(f"{_circumstances(rows)} {goals}"), ""])


def as_markdown(rows: Sequence[PathRow]) -> None:
    print(markdown(rows), end="")


def as_json(rows: Iterable[PathRow]) -> None:
    documents = [
        {
            "table": row.table,
            "operation": row.operation,
            "samples": row.samples,
            "goals": [
                {**goal._asdict(), "found": row.found(goal), "met": row.is_met(goal)} for goal in row.goals
            ],
        }
        for row in rows
    ]
    print(json.dumps(documents, indent=1))


def _table(rows: Sequence[PathRow]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row.samples))
    compared = _comparisons(rows)
    headings = [rows[0].table, *columns, *(f"{ours} ÷ {peer}" for ours, peer in compared)]
    lines = [
        "| " + " | ".join(headings) + " |",
        "|---|" + "---:|" * (len(headings) - 1),
        *("| " + " | ".join(_cells(row, columns, compared)) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _comparisons(rows: Iterable[PathRow]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((goal.column, goal.peer) for row in rows for goal in row.goals))


def _cells(row: PathRow, columns: Sequence[str], compared: Sequence[tuple[str, str]]) -> list[str]:
    goals = {(goal.column, goal.peer): goal for goal in row.goals}
    cells = [row.operation]
    for column in columns:
        samples = row.samples.get(column)
        cells.append(f"{statistics.median(samples):,.0f}" if samples else "")
    for pair in compared:
        goal = goals.get(pair)
        cells.append(_verdict(row, goal) if goal is not None else "")
    return cells


def _verdict(row: PathRow, goal: Goal) -> str:
    text = f"{row.found(goal):.3f}"
    if goal.limit is None:
        return text
    return f"{text} (≤ {goal.limit:g}{'' if row.is_met(goal) else ', missed'})"


def _circumstances(rows: Sequence[PathRow]) -> str:
    rounds = min(len(samples) for row in rows for samples in row.samples.values())
    return (
        "Nanoseconds of processor time: a datagram of 64 bytes, a round trip of one byte each way, a KiB of "
        "a TCP stream, a connection with one byte each way; medians. A ratio is the median of the ratios of "
        f"the same round, of {rounds} rounds or more, with its goal in brackets. Linux "
        f"{os.uname().release}, {os.cpu_count()} CPUs, load average of the last 15 minutes "
        f"{os.getloadavg()[2]:.1f}."
    )
