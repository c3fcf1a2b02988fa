"""Samples to medians, ratios and tables."""

from __future__ import annotations

import json
import os
import statistics
from typing import Final, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.rounds import Samples
from tests.bench.systems import AGENT, ALONE, ITSELF, PYTHON, REFERENCE

_COLUMNS: Final = {
    REFERENCE: "reference",
    AGENT: "agent, C",
    PYTHON: "agent, Python",
    ALONE: "alone",
}
# The lines of a document between which the tables are.
_BEGIN: Final = "<!-- scripts/bench: begin -->"
_END: Final = "<!-- scripts/bench: end -->"
_HEADINGS: Final = ("operation", "with", *_COLUMNS.values(), "× reference", "× itself")


class Place(NamedTuple):
    """Where a row belongs in the chart: how many ports or leases (`axis`) there were for ours and for the
    reference.
    """

    axis: str
    at: int
    reference_at: int


class Goal(NamedTuple):
    """What is asked of one row. With `at_least` more is better."""

    row: str
    unit: str
    found: float
    limit: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    @property
    def verdict(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{'' if self.met else ', missed'}"


class Row(NamedTuple):
    """One operation in one state of the node: what each system took, round by round, in milliseconds.

    `limit` and `own_limit` are the goals for the agent against the reference and against itself where there
    is nothing to slow it down; with `at_least` more is better.
    """

    operation: str
    state: str
    samples: Samples
    limit: float | None = None
    own_limit: float | None = None
    alone_limit: float | None = None
    at_least: bool = False
    place: Place | None = None

    def median(self, column: str) -> float:
        return statistics.median(self.samples[column])

    def ratio(self, column: str) -> float | None:
        """The agent's median against a column's; None: that was not measured."""
        return self.median(AGENT) / self.median(column) if column in self.samples else None

    def goals(self) -> list[Goal]:
        """What was asked of it, as far as it was measured."""
        wanted = (
            ("× reference", self.ratio(REFERENCE), self.limit),
            ("× itself", self.ratio(ITSELF), self.own_limit),
            ("ms alone", self.median(ALONE) if ALONE in self.samples else None, self.alone_limit),
        )
        name = ", ".join(filter(None, (self.operation, self.state)))
        return [
            Goal(name, unit, found, limit, self.at_least)
            for unit, found, limit in wanted
            if found is not None and limit is not None
        ]

    def cells(self) -> tuple[str, ...]:
        goals = {goal.unit: goal for goal in self.goals()}
        figures = [_figures(self.samples.get(column)) for column in _COLUMNS]
        if "ms alone" in goals:
            figures[-1] += f" ({goals['ms alone'].verdict})"
        ratios = [
            ""
            if ratio is None
            else f"{_short(ratio)} ({goals[unit].verdict})"
            if unit in goals
            else _short(ratio)
            for unit, ratio in (("× reference", self.ratio(REFERENCE)), ("× itself", self.ratio(ITSELF)))
        ]
        return (self.operation, self.state, *figures, *ratios)


def _figures(samples: list[float] | None) -> str:
    if not samples:
        return ""
    ordered = sorted(samples)
    p90 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.9))]
    return f"{statistics.median(ordered):.1f} / {p90:.1f}"


def _short(ratio: float) -> str:
    digits = 0 if ratio >= 10 else 2 if ratio >= 0.1 else 3
    return f"{ratio:.{digits}f}"


def summary(rows: list[Row]) -> str:
    """How many goals are met, and which are missed."""
    goals = [goal for row in rows for goal in row.goals()]
    missed = [goal for goal in goals if not goal.met]
    text = f"{len(goals) - len(missed)} of {len(goals)} goals are met."
    if missed:
        found = "; ".join(
            f"{goal.row}: {_short(goal.found)} {goal.unit} ({goal.verdict.removesuffix(', missed')})"
            for goal in missed
        )
        text += f" Missed: {found}."
    return text


def _circumstances(rows: list[Row]) -> str:
    rounds = min(len(samples) for row in rows for samples in row.samples.values())
    load = f"{os.getloadavg()[2]:.1f}"
    return (
        f"Median / p90 in milliseconds from posix_spawn to wait, of {rounds} rounds; "
        "ratios of medians, and goals, for agent and C launcher. "
        f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load average of the last 15 minutes {load}."
    )


def as_table(rows: list[Row]) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in ("operation", "with") else "right")
    for row in rows:
        table.add_row(*(f"[red]{cell}[/]" if "missed" in cell else cell for cell in row.cells()))
    # Whatever the terminal has: no cell is broken.
    console = Console(highlight=False, width=200)
    console.print(table)
    console.print(_circumstances(rows), summary(rows), sep="\n")


def as_markdown(rows: list[Row]) -> None:
    print(markdown(rows), end="")


def markdown(rows: list[Row]) -> str:
    lines = [
        "| " + " | ".join(_HEADINGS) + " |",
        "|---|---|" + "---:|" * (len(_HEADINGS) - 2),
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
    ]
    return "\n".join([*lines, "", _circumstances(rows), "", summary(rows), ""])


def as_json(rows: list[Row]) -> None:
    print(
        json.dumps(
            [
                {
                    **row._asdict(),
                    "ratio": row.ratio(REFERENCE),
                    "own": row.ratio(ITSELF),
                    "goals": [{**goal._asdict(), "met": goal.met} for goal in row.goals()],
                }
                for row in rows
            ],
            indent=1,
        )
    )


def replaced(document: str, rows: list[Row]) -> str:
    """The document with these tables between its marks. ValueError: it has none."""
    before, begin, rest = document.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"no lines {_BEGIN} and {_END}")
    return f"{before}{begin}\n{markdown(rows)}{end}{after}"
