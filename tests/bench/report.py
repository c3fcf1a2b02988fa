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
_HEADINGS: Final = ("operation", "with", *_COLUMNS.values(), "× reference", "× itself")


class Place(NamedTuple):
    """Where a row belongs in the chart: how many ports or leases (`axis`) there were for ours and for the
    reference.
    """

    axis: str
    at: int
    reference_at: int


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

    def cells(self) -> tuple[str, ...]:
        figures = [_figures(self.samples.get(column)) for column in _COLUMNS]
        if self.alone_limit is not None:
            met = self.median(ALONE) <= self.alone_limit
            figures[-1] += f" (≤ {self.alone_limit:g}{'' if met else ', missed'})"
        return (
            self.operation,
            self.state,
            *figures,
            self._against(REFERENCE, self.limit),
            self._against(ITSELF, self.own_limit),
        )

    def _against(self, column: str, limit: float | None) -> str:
        ratio = self.ratio(column)
        if ratio is None:
            return ""
        text = _short(ratio)
        if limit is None:
            return text
        met = ratio >= limit if self.at_least else ratio <= limit
        return f"{text} ({'≥' if self.at_least else '≤'} {limit:g}{'' if met else ', missed'})"


def _figures(samples: list[float] | None) -> str:
    if not samples:
        return ""
    ordered = sorted(samples)
    p90 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.9))]
    return f"{statistics.median(ordered):.1f} / {p90:.1f}"


def _short(ratio: float) -> str:
    digits = 0 if ratio >= 10 else 2 if ratio >= 0.1 else 3
    return f"{ratio:.{digits}f}"


def _circumstances(rows: list[Row]) -> str:
    rounds = sorted({len(samples) for row in rows for samples in row.samples.values()})
    load = f"{os.getloadavg()[2]:.1f}"
    return (
        f"Median / p90 in milliseconds from posix_spawn to wait, of {rounds[0]} to {rounds[-1]} rounds; "
        "ratios of medians, and goals, for agent and C launcher. "
        f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load average of the last 15 minutes {load}."
    )


def as_table(rows: list[Row]) -> None:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        collapse_padding=True,
        caption=_circumstances(rows),
        caption_justify="left",
    )
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in ("operation", "with") else "right")
    for row in rows:
        table.add_row(*(f"[red]{cell}[/]" if "missed" in cell else cell for cell in row.cells()))
    # Whatever the terminal has: no cell is broken.
    Console(highlight=False, width=200).print(table)


def as_markdown(rows: list[Row]) -> None:
    print("| " + " | ".join(_HEADINGS) + " |")
    print("|---|---|" + "---:|" * (len(_HEADINGS) - 2))
    for row in rows:
        print("| " + " | ".join(row.cells()) + " |")
    print(f"\n{_circumstances(rows)}")


def as_json(rows: list[Row]) -> None:
    print(
        json.dumps(
            [{**row._asdict(), "ratio": row.ratio(REFERENCE), "own": row.ratio(ITSELF)} for row in rows],
            indent=1,
        )
    )
