"""What the launcher says of itself, and VERSION: neither agent nor executable is asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cnvnet import VERSION as RELEASE
from cnvnet.cni import skel
from cnvnet.executables import EXECUTABLES
from cnvnet.launch import usage
from tests.functional.launcher.conftest import GOOD, NAMES, Called, Launcher, never_loaded, silent
from tests.functional.launcher.fake_agent import Agent

pytestmark = pytest.mark.alone


DOCS = Path(__file__).resolve().parents[3] / "docs"


def printed(launcher: Launcher, name: str, *arguments: str, **env: str) -> Called:
    """What is shown where it is run in a shell."""
    done = subprocess.run(
        [launcher.path(name), *arguments],
        env=launcher.environment(**{"CNI_COMMAND": "\0", **env}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return Called(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(launcher: Launcher, name: str) -> None:
    code, help_text, stderr = printed(launcher, name, "--help")
    assert (code, stderr) == (0, b"")
    purpose = EXECUTABLES[name].purpose
    assert (code, help_text, stderr) == usage.explained(name, purpose, "--help")
    assert printed(launcher, name, "-h").stdout == help_text
    for word in (name, "CNI_COMMAND", "stdin", f"docs/{name}.md"):
        assert word in help_text.decode()
    assert (DOCS / f"{name}.md").exists()
    by = "" if launcher.kind == "python" else " (launcher)"
    assert printed(launcher, name, "--version") == (0, f"{name} {RELEASE}{by}\n".encode(), b"")
    assert printed(launcher, name, "--hlep") == usage.explained(name, purpose, "--hlep")
    assert usage.explained(name, purpose, "--hlep")[0] == 2


def test_a_call_is_a_call_whatever_arguments_come_with_it(launcher: Launcher) -> None:
    assert printed(launcher, "cnv-bridge", "--help", CNI_COMMAND="VERSION") == VERSION


VERSION = Called(*skel.run("cnv-bridge", never_loaded, {"CNI_COMMAND": "VERSION"}, bytes)[:3])


@pytest.mark.parametrize("name", NAMES)
def test_the_version_is_known_with_neither_agent_nor_executables(launcher: Launcher, name: str) -> None:
    assert silent(launcher.path(name), launcher.environment(CNI_COMMAND="VERSION")) == VERSION
    # As little as a caller can say.
    assert silent(launcher.path(name), {"CNI_COMMAND": "VERSION"}) == VERSION


def test_for_the_version_neither_agent_nor_executable_is_asked(launcher: Launcher, answering: Agent) -> None:
    run_log = launcher.put_recorders_beside()
    for named in ("\0", "off", "auto", str(launcher.socket)):
        assert launcher.call(env={"CNI_COMMAND": "VERSION", "CNVNET_AGENT": named}) == VERSION
    assert answering.received == []
    assert not run_log.exists()


@pytest.mark.parametrize("command", ["VERSION ", "VERSIONS", "VERSIO", "version"])  # codespell:ignore versio
def test_what_only_looks_like_version_is_a_call(launcher: Launcher, answering: Agent, command: str) -> None:
    assert launcher.call(env={"CNI_COMMAND": command}) == (0, GOOD.stdout, GOOD.stderr)
    assert len(answering.received) == 1


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_the_version_with_a_standard_descriptor_closed(launcher: Launcher, descriptor: int) -> None:
    command = ["sh", "-c", f'exec "$0" {descriptor}>&-', launcher.path()]
    env = launcher.environment(CNI_COMMAND="VERSION")
    done = subprocess.run(command, env=env, capture_output=True, check=False, timeout=60)
    stdout = b"" if descriptor == 1 else VERSION.stdout
    assert Called(done.returncode, done.stdout, done.stderr) == (0, stdout, b"")


def test_a_version_that_cannot_be_written_is_a_failure(launcher: Launcher) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    env = launcher.environment(CNI_COMMAND="VERSION")
    done = subprocess.run(
        [launcher.path()], env=env, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_launcher_in_the_executables_place_says_so_for_the_version_too(c_launcher: Launcher) -> None:
    script = 'CNVNET_LAUNCHER_PID=$$ exec "$0"'
    done = subprocess.run(
        ["sh", "-c", script, c_launcher.path()],
        env=c_launcher.environment(CNI_COMMAND="VERSION"),
        capture_output=True,
        check=False,
        timeout=60,
    )
    error = Called(done.returncode, done.stdout, done.stderr).error()
    assert error["code"] == 11
    assert " is a launcher and not the plugin's executable: " in error["msg"]
