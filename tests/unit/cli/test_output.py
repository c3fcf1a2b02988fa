"""What cnvctl prints: columns that grep and awk can use, and its exit codes."""

from __future__ import annotations

import errno
import os

import pytest

from cnvnet.cli import output
from cnvnet.cni.errors import IO_FAILURE, NOT_AVAILABLE, TRY_AGAIN_LATER, CNIError, InvalidConfig
from cnvnet.ipam.store.clock import timestamp


def test_columns_are_as_wide_as_their_widest_cell_and_no_line_ends_with_blanks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.print_table(("NAME", "IF", "HELD BY"), [("a", "eth0", ""), ("longer", "", "pod x")])
    assert capsys.readouterr().out == "NAME    IF    HELD BY\na       eth0  -\nlonger  -     pod x\n"


def test_a_table_without_rows_is_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("NAME", "IF"), [])
    assert capsys.readouterr().out == "NAME  IF\n"


def test_names_and_values_are_one_below_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_pairs([("vm", "default/a"), ("addresses", "")])
    assert capsys.readouterr().out == "vm         default/a\naddresses  -\n"


def test_a_name_carries_no_commands_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("NAME",), [("\x1b[31mred\nnext",)])
    output.print_pairs([("vm", "\x1b[31mred")])
    assert capsys.readouterr().out == "NAME\n\\x1b[31mred\\nnext\nvm  \\x1b[31mred\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7199, "119m"),
        (7200, "2h"),
        (2 * 86400 - 1, "47h"),
        (2 * 86400, "2d"),
        (400 * 86400, "400d"),
    ],
)
def test_ages_are_in_the_unit_that_says_enough(seconds: int, text: str) -> None:
    assert output.age(1_000_000_000, 1_000_000_000 + seconds) == text


def test_times_are_in_utc() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (InvalidConfig("--ip: taken"), "--ip: taken", 2),
        (CNIError(IO_FAILURE, "leases.db: damaged"), "leases.db: damaged", 3),
        (CNIError(TRY_AGAIN_LATER, "newer schema"), "newer schema", 3),
        (CNIError(NOT_AVAILABLE, "no"), "no", 3),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/run/x"),
            "/run/x: permission denied (run cnvctl as root)",
            3,
        ),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "input/output error", 3),
    ],
)
def test_an_error_is_one_line_and_a_code(error: CNIError | OSError, message: str, code: int) -> None:
    failure = output.failure(error)
    assert (failure.message, failure.exit_code) == (message, code)
