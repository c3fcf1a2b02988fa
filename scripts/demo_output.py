"""Prints the demo's output, for a terminal or, at a fixed width, for a file or pipe."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# Columns: wide enough for the longest line; a narrower terminal wraps.
_WIDTH = 100

console = Console(
    highlight=False, width=min(_WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else _WIDTH
)
_step_numbers = itertools.count(1)


def step(title: str) -> None:
    """Prints the numbered heading of the next step."""
    console.print(f"\n[bold]{next(_step_numbers)}. {title}[/]")


def show(text: str) -> None:
    """Prints an indented paragraph, which may have rich's markup."""
    console.print(Padding(text, (0, 0, 0, 3), expand=False))


def command_output(prompt: str, output: str) -> None:
    """Prints a command and its output unchanged."""
    console.print(Text(f"     {prompt}", style="bold cyan"))
    for line in output.splitlines():
        console.print(Text(f"       {line}", style="cyan"), soft_wrap=True)


def error_message(message: str) -> None:
    """Prints a program's error message unchanged: its lines are neither wrapped nor padded."""
    for line in message.splitlines():
        console.print(Text(f"   {line}"), soft_wrap=True)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints rows under their headings."""
    printed = Table(
        title=title, title_justify="left", title_style="italic", box=box.SIMPLE_HEAD, show_edge=False
    )
    for column in columns:
        printed.add_column(column, overflow="fold")
    for row in rows:
        printed.add_row(*row)
    console.print(Padding(printed, (1, 0, 0, 3), expand=False))
