"""How the story looks, in a terminal and without one."""

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

# Wide enough for the longest line; a narrower terminal wraps.
_WIDTH = 100

console = Console(
    highlight=False, width=min(_WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else _WIDTH
)
_numbers = itertools.count(1)


def step(title: str) -> None:
    console.print(f"\n[bold]{next(_numbers)}. {title}[/]")


def tell(text: str) -> None:
    """A paragraph; words may be in rich's markup."""
    console.print(Padding(text, (0, 0, 0, 3), expand=False))


def quote(prompt: str, output: str) -> None:
    """A command and what it printed, as it was."""
    console.print(Text(f"     {prompt}", style="bold cyan"))
    for line in output.splitlines():
        console.print(Text(f"       {line}", style="cyan"), soft_wrap=True)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    made = Table(
        title=title, title_justify="left", title_style="italic", box=box.SIMPLE_HEAD, show_edge=False
    )
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*row)
    console.print(Padding(made, (1, 0, 0, 3), expand=False))
