"""The program around the commands: where it looks, and how errors end it."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cnvnet import VERSION
from cnvnet.cli.main import command
from cnvnet.cli.place import Place
from cnvnet.cni.errors import InvalidConfig
from cnvnet.ipam.store.sqlite import Sqlite

ROOT = Path(__file__).parents[3]


def place_of(*args: str, **env: str) -> Place:
    """Where a command looks that is called with these options and variables."""
    seen: list[Place] = []

    @click.command("look")
    @click.pass_obj
    def look(place: Place) -> None:
        seen.append(place)

    with_it = click.Group("cnvctl", params=command.params, callback=command.callback)
    with_it.add_command(look)
    variables = {"CNVNET_RUNDIR": None, "CNVNET_STATEDIR": None, **env}
    done = CliRunner().invoke(with_it, [*args, "look"], env=variables)
    assert done.exit_code == 0, done.output
    return seen[0]


def test_the_folders_are_those_of_the_plugins() -> None:
    assert place_of()[:2] == ("/run/cnvnet", "/var/lib/cnvnet")
    assert place_of(CNVNET_RUNDIR="/r", CNVNET_STATEDIR="/s")[:2] == ("/r", "/s")
    # Plugins take an empty one for none.
    assert place_of(CNVNET_RUNDIR="", CNVNET_STATEDIR="")[:2] == ("/run/cnvnet", "/var/lib/cnvnet")
    assert place_of("--rundir", "/o", "--statedir", "/p", CNVNET_RUNDIR="/r")[:2] == ("/o", "/p")
    assert place_of("--rundir", "", "--statedir", "")[:2] == ("/run/cnvnet", "/var/lib/cnvnet")
    assert place_of("--rundir", "here")[0] == str(Path.cwd() / "here")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    Sqlite(str(tmp_path)).run(lambda _: None)
    places = ["--rundir", str(tmp_path / "run"), "--statedir", str(tmp_path)]
    done = CliRunner().invoke(command, [*places, "leases", "list", "--network", "\udcff"])
    assert (done.exit_code, done.stderr) == (2, 'cnvctl: "\\udcff" is no text in UTF-8\n')


@pytest.mark.parametrize("option", ["--rundir", "--statedir"])
def test_a_file_is_no_folder_without_leases(option: str, tmp_path: Path) -> None:
    file = tmp_path / "leases.db"
    file.touch()
    done = CliRunner().invoke(command, [option, str(file), "status"])
    assert done.exit_code == 2
    assert f"Invalid value for '{option}'" in done.stderr
    assert f"Directory '{file}' is a file." in done.stderr


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (InvalidConfig("10.0.0.1 is taken"), "cnvctl: 10.0.0.1 is taken\n", 2),
        (OSError(errno.EIO, "Input/output error", "/x\n"), "cnvctl: /x\\n: input/output error\n", 3),
    ],
)
def test_an_error_of_a_command_is_one_line_on_stderr(error: Exception, message: str, code: int) -> None:
    @click.command("fail")
    def fail() -> None:
        raise error

    group = type(command)("cnvctl")
    group.add_command(fail)
    done = CliRunner().invoke(group, ["fail"])
    assert (done.stderr, done.stdout, done.exit_code) == (message, "", code)


def test_python_m_cnvnet_is_cnvctl() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cnvnet", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"cnvctl, version {VERSION}\n"


def test_only_the_agent_and_the_kernel_layer_load_their_libraries() -> None:
    code = "import sys, cnvnet.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not [
        name for name in loaded if name.startswith(("cnvnet.agent", "prometheus_client", "pyroute2"))
    ]


def test_bash_completes_the_commands() -> None:
    words = {"COMP_WORDS": "cnvctl leases re", "COMP_CWORD": "2"}
    env = {**os.environ, "_CNVCTL_COMPLETE": "bash_complete", **words}
    command = [sys.executable, "-m", "cnvnet"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plain,release", "plain,reserve"]


DOCUMENTED = re.compile(r"cnvctl ((?:status|leases|attachments)[^`\n|]*)")


def documented() -> Iterator[str]:
    """Every call that the documents show, with the options it has."""
    for path in (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"):
        yield from DOCUMENTED.findall(path.read_text())


@pytest.mark.parametrize("call", sorted(set(documented())))
def test_what_the_documents_show_is_a_command_with_these_options(call: str) -> None:
    words = call.replace("[", " ").replace("]", " ").split()
    found: click.Command = command
    while isinstance(found, click.Group) and words:
        found = found.commands[words.pop(0)]
    options = {option for parameter in found.params for option in parameter.opts}
    used = {word for word in words if word.startswith("-") and word != "-"}
    assert used <= options


def test_the_documents_show_every_command() -> None:
    shown = {tuple(call.split()[:2]) for call in documented()}
    groups = {name: group for name, group in command.commands.items() if isinstance(group, click.Group)}
    assert {(name, each) for name, group in groups.items() for each in group.commands} <= shown
