"""How cnvctl prints: plain columns for people, grep and awk, JSON for programs; and its exit codes.

A table has a line of headings in capitals, neither frames nor colours, and "-" in an empty cell. Only cells
of the last column have blanks, so that awk can count columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import click

from cnvnet.cni.document import escaped
from cnvnet.cni.errors import INVALID_CONFIG, CNIError

# Exit codes beside 0.
PROBLEMS: Final = 1
REFUSED: Final = 2
UNREADABLE: Final = 3

TABLE: Final = "table"
WIDE: Final = "wide"
JSON: Final = "json"

_GAP: Final = "  "
# As crictl shortens the id of a container.
_ID_LENGTH: Final = 13
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400

F = TypeVar("F", bound=Callable[..., Any])


class Failure(click.ClickException):
    """What ends the program: one line on stderr that begins with its name, and an exit code."""

    def show(self, file: Any = None) -> None:  # noqa: ANN401 -- as click declares it
        """Print the message to stderr, as click asks for it."""
        click.echo(f"cnvctl: {escaped(self.message)}", file=file, err=True)


class CommandRefused(Failure):
    """What was asked for cannot be, or is not there."""

    exit_code = REFUSED


class Unreadable(Failure):
    """What is needed to answer cannot be read."""

    exit_code = UNREADABLE


def failure(error: CNIError | OSError) -> Failure:
    """What was asked wrongly is refused (2); everything else is something that cannot be read (3)."""
    if isinstance(error, CNIError):
        return CommandRefused(error.msg) if error.code == INVALID_CONFIG else Unreadable(error.msg)
    reason = (error.strerror or str(error)).lower()
    where = f"{error.filename}: " if error.filename else ""
    remedy = " (run cnvctl as root)" if isinstance(error, PermissionError) else ""
    return Unreadable(f"{where}{reason}{remedy}")


def output_option(*formats: str) -> Callable[[F], F]:
    """The option -o with these formats, the command's `form`; the first is the default."""
    return click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="How to print.",
    )


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The rows below their headings, each column as wide as its widest cell."""
    lines = [list(headings), *([escaped(cell) or "-" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo(_GAP.join(cells).rstrip())


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Lines of a name and what it has, one below the other."""
    lines = list(pairs)
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        click.echo(f"{name.ljust(width)}{_GAP}{escaped(value) or '-'}")


def print_each(groups: Iterable[Iterable[tuple[str, str]]]) -> None:
    """The pairs of each, with an empty line between two of them."""
    for index, pairs in enumerate(groups):
        if index:
            click.echo()
        print_pairs(pairs)


def say(texts: Iterable[str]) -> None:
    """What a person has to know beside the output: a line each on stderr."""
    for text in texts:
        click.echo(f"cnvctl: {escaped(text)}", err=True)


def print_json(document: object) -> None:
    """The document over several lines, for people and jq."""
    click.echo(json.dumps(document, indent=2))


def short_id(container_id: str) -> str:
    """The beginning of a container's id, by which people know it."""
    return container_id[:_ID_LENGTH]


def age(since: int, now: int) -> str:
    """How long ago a time (seconds since 1970) is, in a unit that gives two digits: 90s, 4m, 30h, 12d."""
    seconds = max(0, now - since)
    if seconds < 2 * _MINUTE:
        return f"{seconds}s"
    if seconds < 2 * _HOUR:
        return f"{seconds // _MINUTE}m"
    if seconds < 2 * _DAY:
        return f"{seconds // _HOUR}h"
    return f"{seconds // _DAY}d"
