"""Samples to medians, ratios and tables."""

from __future__ import annotations

import json
import os
import statistics
import textwrap
from collections.abc import Iterable
from typing import Final, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.rounds import Samples
from tests.bench.systems import AGENT, ALONE, ITSELF, OTHER, PYTHON, REFERENCE, WHEREABOUTS

_COLUMNS: Final = {
    REFERENCE: "reference",
    WHEREABOUTS: "whereabouts",
    AGENT: "agent, C",
    PYTHON: "agent, Python",
    ALONE: "alone",
    OTHER: "other, C",
}
_RATIOS: Final = {
    REFERENCE: "× reference",
    WHEREABOUTS: "× whereabouts",
    ITSELF: "× itself",
    OTHER: "× other",
}
# The last column of either kind is there only in a run against another checkout.
_OF_OTHER: Final = (_COLUMNS[OTHER], _RATIOS[OTHER])
_OF_WHEREABOUTS: Final = (_COLUMNS[WHEREABOUTS], _RATIOS[WHEREABOUTS])
# What is not measured in a cluster.
_OF_ONE_NODE: Final = (_COLUMNS[REFERENCE], _COLUMNS[PYTHON], _COLUMNS[ALONE], _RATIOS[REFERENCE])
# A row is slower than the other checkout's when it takes this share more of its median.
_TOLERANCE: Final = 0.03
# The lines of a document between which the tables of a command are.
_MARK: Final = "<!-- {command}: {place} -->"
# Of prose in documents (docs/style.md); a table's rows cannot be broken.
_COLUMNS_OF_PROSE: Final = 120
_HEADINGS: Final = ("operation", "with", *_COLUMNS.values(), *_RATIOS.values())


class Place(NamedTuple):
    """Where a row belongs in the chart.

    How many ports or leases (`axis`) there were for ours and for the reference.
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

    `limit` and `own_limit` are the goals for the agent against the reference (in a cluster whereabouts) and
    against itself where there is nothing to slow it down; with `at_least` more is better. `more` is what was
    found besides.
    """

    operation: str
    state: str
    samples: Samples
    limit: float | None = None
    own_limit: float | None = None
    alone_limit: float | None = None
    at_least: bool = False
    place: Place | None = None
    more: tuple[Goal, ...] = ()

    def median(self, column: str) -> float:
        return statistics.median(self.samples[column])

    def ratio(self, column: str) -> float | None:
        """The agent's median against a column's; None: that was not measured."""
        return self.median(AGENT) / self.median(column) if column in self.samples else None

    def goals(self) -> list[Goal]:
        """What was asked of it, as far as it was measured."""
        wanted = (
            (_RATIOS[REFERENCE], self.ratio(REFERENCE), self.limit),
            (_RATIOS[WHEREABOUTS], self.ratio(WHEREABOUTS), self.limit),
            (_RATIOS[ITSELF], self.ratio(ITSELF), self.own_limit),
            ("ms alone", self.median(ALONE) if ALONE in self.samples else None, self.alone_limit),
        )
        name = ", ".join(filter(None, (self.operation, self.state)))
        compared = [
            Goal(name, unit, found, limit, self.at_least)
            for unit, found, limit in wanted
            if found is not None and limit is not None
        ]
        return [*compared, *(goal._replace(row=name) for goal in self.more)]

    def is_slower_than_other(self) -> bool:
        ratio = self.ratio(OTHER)
        if ratio is None:
            return False
        return ratio < 1 - _TOLERANCE if self.at_least else ratio > 1 + _TOLERANCE

    def cells(self) -> dict[str, str]:
        """What a table has of it, by heading."""
        goals = {goal.unit: goal for goal in self.goals()}
        besides = (f"{goal.found:.3g} {goal.unit} ({goal.verdict})" for goal in self.more)
        cells = {"operation": self.operation, "with": ", ".join(filter(None, (self.state, *besides)))}
        for column, heading in _COLUMNS.items():
            cells[heading] = _figures(self.samples.get(column))
        if "ms alone" in goals:
            cells[_COLUMNS[ALONE]] += f" ({goals['ms alone'].verdict})"
        for column, heading in _RATIOS.items():
            ratio = self.ratio(column)
            cells[heading] = "" if ratio is None else _short(ratio)
            if heading in goals:
                cells[heading] += f" ({goals[heading].verdict})"
        return cells


def _figures(samples: list[float] | None) -> str:
    if not samples:
        return ""
    ordered = sorted(samples)
    p90 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.9))]
    return f"{statistics.median(ordered):.1f} / {p90:.1f}"


def _short(ratio: float) -> str:
    digits = 0 if ratio >= 10 else 2 if ratio >= 0.1 else 3
    return f"{ratio:.{digits}f}"


def headings(rows: Iterable[Row]) -> list[str]:
    """Those of the tables: the other checkout has columns in a run against it, whereabouts in a cluster."""
    columns = {column for row in rows for column in row.samples}
    hidden = {*_OF_ONE_NODE} if WHEREABOUTS in columns else {*_OF_WHEREABOUTS}
    if OTHER not in columns:
        hidden |= {*_OF_OTHER}
    return [heading for heading in _HEADINGS if heading not in hidden]


def line(row: Row) -> str:
    """One row by itself, while others are still measured."""
    cells = row.cells()
    return " | ".join(cells[heading] for heading in headings([row]))


def against(rows: list[Row]) -> str:
    """How many rows are slower than the other checkout's, and which; empty in a run without one."""
    compared = [row for row in rows if row.ratio(OTHER) is not None]
    if not compared:
        return ""
    slower = [
        f"{', '.join(filter(None, (row.operation, row.state)))}: {_short(row.ratio(OTHER) or 0)}"
        for row in compared
        if row.is_slower_than_other()
    ]
    text = f"{len(slower)} of {len(compared)} rows are more than {_TOLERANCE:.0%} slower than the other"
    return f"{text}: {'; '.join(slower)}." if slower else f"{text}."


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
    # Rows of fewer say so themselves.
    rounds = statistics.mode(len(samples) for row in rows for samples in row.samples.values())
    load = f"{os.getloadavg()[2]:.1f}"
    return (
        f"Median / p90 in milliseconds from posix_spawn to wait, of {rounds} rounds; "
        "ratios of medians, and goals, for agent and C launcher. "
        f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load average of the last 15 minutes {load}."
    )


def as_table(rows: list[Row]) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
    shown = headings(rows)
    for heading in shown:
        table.add_column(heading, justify="left" if heading in ("operation", "with") else "right")
    for row in rows:
        cells = row.cells()
        marked = [heading for heading in shown if "missed" in cells[heading]]
        if row.is_slower_than_other():
            marked.append(_RATIOS[OTHER])
        table.add_row(*(f"[red]{cells[each]}[/]" if each in marked else cells[each] for each in shown))
    # Whatever the terminal has: no cell is broken.
    console = Console(highlight=False, width=200)
    console.print(table)
    console.print(*filter(None, (_circumstances(rows), summary(rows), against(rows))), sep="\n")


def as_markdown(rows: list[Row]) -> None:
    print(markdown(rows), end="")


def markdown(rows: list[Row]) -> str:
    shown = headings(rows)
    lines = [
        "| " + " | ".join(shown) + " |",
        "|---|---|" + "---:|" * (len(shown) - 2),
        *("| " + " | ".join(row.cells()[heading] for heading in shown) + " |" for row in rows),
    ]
    below = filter(None, (_circumstances(rows), summary(rows), against(rows)))
    return "\n".join([*lines, *(part for text in below for part in ("", wrapped(text))), ""])


def wrapped(text: str) -> str:
    """Prose as wide as a document's."""
    return textwrap.fill(text, _COLUMNS_OF_PROSE, break_long_words=False, break_on_hyphens=False)


def as_json(rows: list[Row]) -> None:
    documents = [
        {
            **row._asdict(),
            "ratio": row.ratio(REFERENCE) or row.ratio(WHEREABOUTS),
            "own": row.ratio(ITSELF),
            "other": row.ratio(OTHER),
            "goals": [{**goal._asdict(), "met": goal.met} for goal in row.goals()],
        }
        for row in rows
    ]
    print(json.dumps(documents, indent=1))


def replaced(document: str, tables: str, command: str) -> str:
    """The document with these tables between the marks of a command. ValueError: it has none."""
    first, last = (_MARK.format(command=command, place=place) for place in ("begin", "end"))
    before, begin, rest = document.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"no lines {first} and {last}")
    return f"{before}{begin}\n{tables}{end}{after}"
