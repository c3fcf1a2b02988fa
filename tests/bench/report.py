"""Samples to medians, ratios and tables."""

from __future__ import annotations

import json
import os
import statistics
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.systems import OURS, REFERENCE

_HEADINGS = ("operation", "with", REFERENCE, "p90", OURS, "p90", "ratio")


class Row(NamedTuple):
    """One operation in one state of the node: the milliseconds each system took, round by round."""

    operation: str
    state: str
    reference: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ours) / statistics.median(self.reference)

    def cells(self) -> tuple[str, ...]:
        figures = (
            f"{figure:.1f}" for samples in (self.reference, self.ours) for figure in _p50_p90(samples)
        )
        return (
            self.operation,
            self.state,
            *figures,
            f"{self.ratio:.2f}" if self.ratio >= 0.1 else f"{self.ratio:.3f}",
        )


def _p50_p90(samples: list[float]) -> tuple[float, float]:
    ordered = sorted(samples)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.9))]


def _circumstances(*, resident: bool) -> str:
    ours = " (ours inside a process that stays)" if resident else ""
    kernel = os.uname()
    return (
        f"Milliseconds from posix_spawn to wait{ours}, medians; Linux {kernel.release}, "
        f"{os.cpu_count()} CPUs; ratio below 1: cnvnet is faster."
    )


def as_table(rows: list[Row], *, resident: bool) -> None:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        collapse_padding=True,
        caption=_circumstances(resident=resident),
        caption_justify="left",
    )
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in ("operation", "with") else "right")
    for row in rows:
        style = "green" if row.ratio <= 1 else "red"
        *cells, ratio = row.cells()
        table.add_row(*cells, f"[{style}]{ratio}[/]")
    Console(highlight=False).print(table)


def as_markdown(rows: list[Row], *, resident: bool) -> None:
    print("| " + " | ".join(_HEADINGS) + " |")
    print("|---|---|" + "---:|" * (len(_HEADINGS) - 2))
    for row in rows:
        print("| " + " | ".join(row.cells()) + " |")
    print(f"\n{_circumstances(resident=resident)}")


def as_json(rows: list[Row], *, resident: bool) -> None:
    print(
        json.dumps([{**row._asdict(), "ratio": row.ratio, "resident": resident} for row in rows], indent=1)
    )
