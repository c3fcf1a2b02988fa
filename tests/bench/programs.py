"""A checkout's executables as scripts/install-cni puts them on a node, and the node's agent."""

from __future__ import annotations

import filecmp
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.systems import Failed

# What scripts/setup makes of a checkout: a virtual environment with the project in it, not editable.
_INSTALLED: Final = ".tools/installed"
_PACKAGES: Final = f"{_INSTALLED}/lib/python3*/site-packages"
# Where the packages are in a checkout, and below site-packages.
_SOURCES: Final = {"cnvnet": "cnvnet", "plugins": "cnvnet/plugins", "ipam": "cnvnet/ipam"}
_NAMES: Final = ("cnv-bridge", "static-ip", "cnvnet-agent")
_PATIENCE: Final = 30.0


class Programs(NamedTuple):
    """Two folders with the same names: the launcher in C, and the executables in Python."""

    launchers: Path
    executables: Path


def unusable(checkout: Path) -> str:
    """Why a checkout's programs cannot be measured, with the remedy; empty if they can."""
    if not (checkout / "launcher/Makefile").exists():
        return "is no checkout of this project (git worktree add DIR COMMIT)"
    if not list(checkout.glob(_PACKAGES)):
        return f"has no {_INSTALLED} (there: scripts/setup bench)"
    old = next(_changed(checkout), None)
    return f"{old} is not what {_INSTALLED} has (there: scripts/setup bench)" if old else ""


def _changed(checkout: Path) -> Iterator[Path]:
    """Modules, relative to the checkout, that are not installed as they are now."""
    (packages,) = checkout.glob(_PACKAGES)
    for source, package in _SOURCES.items():
        # cnvnet/plugins and cnvnet/ipam are symlinks, which os.walk does not follow.
        for folder, _, names in os.walk(checkout / source):
            inside = Path(folder).relative_to(checkout / source)
            for name in (each for each in names if each.endswith(".py")):
                installed = packages / package / inside / name
                if not installed.exists() or not filecmp.cmp(Path(folder, name), installed, shallow=False):
                    yield source / inside / name


def commit(checkout: Path) -> str:
    """The commit of a checkout, with `-dirty` if files differ from it; its path where git does not tell."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or str(checkout)


def make(checkout: Path, folder: Path) -> Programs:
    """A checkout's programs, in a folder.

    The launchers find no executable to run without an agent: they fail rather than be slow unnoticed.
    """
    made = Programs(folder / "launchers", folder / "executables")
    for each in made:
        each.mkdir(parents=True)
    # A copy: scripts/setup may install a newer one while this is measured.
    (installed,) = checkout.glob(_PACKAGES)
    packages = shutil.copytree(installed, folder / "packages")
    launcher = folder / "cnv-launch"
    nowhere = f"DEFINES=-DPREFIX='\"{folder}/nowhere\"'"
    subprocess.run(
        ["make", "-s", "-C", checkout / "launcher", f"OUT={launcher}", nowhere, launcher], check=True
    )
    for name in _NAMES:
        shutil.copy(launcher, made.launchers / name)
        executable = made.executables / name
        executable.write_text(_stub(checkout, name, packages))
        executable.chmod(0o755)
    return made


def _stub(checkout: Path, name: str, packages: Path) -> str:
    """As scripts/install-cni writes it."""
    point = _entry_point(name, packages)
    return (
        f'#!{checkout}/{_INSTALLED}/bin/python -IS\nimport sys\nsys.path.insert(0, "{packages}")\n'
        f"from {point.module} import {point.attr}\n{point.attr}()\n"
    )


def _entry_point(name: str, packages: Path) -> EntryPoint:
    """As the installed project says itself: another commit may have its modules elsewhere."""
    (project,) = distributions(name="cnvnet", path=[str(packages)])
    (point,) = project.entry_points.select(group="console_scripts", name=name)
    return point


@contextmanager
def agent(node: str, programs: Programs, *options: str, statedir: Path) -> Generator[None]:
    """Answers calls on a node from the beginning of the block to its end; `options` are the executable's."""
    rundir = f"/run/{node}"
    command = [str(programs.executables / "cnvnet-agent"), "--rundir", rundir, "--metrics-address", ""]
    log = Path(f"{rundir}.log")
    with log.open("w") as file:
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{node}", *command, *options],
            env={**os.environ, "CNVNET_STATEDIR": str(statedir)},
            stdin=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,  # Ctrl-C is for us
        )
    try:
        _await(process, f"{rundir}/agent.sock", log)
        yield
        if process.poll() is not None:
            raise Failed(f"the agent has ended: {log.read_text()}")
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Failed(f"the agent of {node} does not end: {log.read_text()}") from None


def _await(process: subprocess.Popen[bytes], path: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(path)
            except OSError:
                time.sleep(0.02)
            else:
                return
    raise Failed(f"the agent does not start: {log.read_text()}")
