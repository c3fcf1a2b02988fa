"""The command line of scripts/bench."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import programs
from tests.bench.__main__ import arguments, reported
from tests.bench.datapath.table import PathRow


def usable(_: Path) -> str:
    return ""


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What it says of a command line that it does not take."""
    with pytest.raises(SystemExit) as ended:
        arguments(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_without_against_no_other_checkout_is_measured() -> None:
    assert arguments([]).against is None


def test_the_other_checkout_is_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "unusable", usable)
    monkeypatch.chdir(tmp_path)
    assert arguments(["--against", "before"]).against == tmp_path / "before"


def test_an_unusable_checkout_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "--against", str(tmp_path))
    assert f"--against {tmp_path}: is no checkout of this project" in message


def test_the_report_has_no_columns_for_another_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "--against", ".", "--report", "docs/performance.md")
    assert "leave --against away" in message


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--rounds", "0"], "--rounds: at least 1"),
        (["--only", "l2", "--report", "x"], "--report needs all cases"),
        (["--only", "l2", "--only", "datapath"], "--only datapath: its rows are of another kind"),
        (["--only", "datapath", "--against", "."], "measure it alone"),
        (["--only", "datapath", "--cluster"], "measure it alone"),
        (["--only", "l2", "--chart", "x"], "--chart needs at least --only=ports --only=leases"),
        (["--quick", "--report", "x"], "--quick measures nothing"),
        (["--against"], "expected one argument"),
        (["--only", "fleet"], "--only fleet: needs --cluster"),
        (["--cluster", "--only", "l2"], "--only l2: not with --cluster"),
        (["--cluster", "--chart", "x"], "leave --cluster away"),
        (["--agents-only"], "--agents-only needs --against"),
        (["--agents-only", "--against", ".", "--chart", "x"], "draws no --chart"),
    ],
)
def test_what_cannot_be_measured_together_is_refused(
    capsys: pytest.CaptureFixture[str], argv: list[str], reason: str
) -> None:
    assert reason in refused(capsys, *argv)


def test_the_data_path_is_reported_between_its_own_marks() -> None:
    command = "scripts/bench --only datapath"
    document = f"before\n<!-- {command}: begin -->\nold\n<!-- {command}: end -->\nafter\n"
    paths = [PathRow("from port to port", "udp", {"ours": [100.0]}, ())]
    new = reported(document, [], paths, cluster=False)
    assert new.startswith(f"before\n<!-- {command}: begin -->\n| from port to port | ours |")
    assert new.endswith(f"<!-- {command}: end -->\nafter\n")
    assert "old" not in new
