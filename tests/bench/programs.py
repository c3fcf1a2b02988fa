"""Our executables as scripts/install-cni puts them on a node, and the node's agent."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.systems import CHECKOUT, Failed

_INSTALLED: Final = CHECKOUT / ".tools/installed"
_NAMES: Final = ("cnv-bridge", "static-ip", "cnvnet-agent")
_PATIENCE: Final = 30.0


class Programs(NamedTuple):
    """Two folders with the same names: the launcher in C, and the executables in Python."""

    launchers: Path
    executables: Path


def make(folder: Path) -> Programs:
    """The launchers find no executable to run without an agent: they fail rather than be slow unnoticed."""
    made = Programs(folder / "launchers", folder / "executables")
    for each in made:
        each.mkdir(parents=True)
    # Somebody may install a newer one while we measure.
    (installed,) = _INSTALLED.glob("lib/python3*/site-packages")
    packages = shutil.copytree(installed, folder / "packages")
    launcher = folder / "cnv-launch"
    nowhere = f"DEFINES=-DPREFIX='\"{folder}/nowhere\"'"
    subprocess.run(
        ["make", "-s", "-C", CHECKOUT / "launcher", f"OUT={launcher}", nowhere, launcher], check=True
    )
    for name in _NAMES:
        shutil.copy(launcher, made.launchers / name)
        executable = made.executables / name
        executable.write_text(_stub(name, packages))
        executable.chmod(0o755)
    return made


def _stub(name: str, packages: Path) -> str:
    """As scripts/install-cni writes it."""
    (point,) = entry_points(group="console_scripts", name=name)
    return (
        f'#!{_INSTALLED}/bin/python -IS\nimport sys\nsys.path.insert(0, "{packages}")\n'
        f"from {point.module} import {point.attr}\n{point.attr}()\n"
    )


@contextmanager
def agent(node: str, programs: Programs) -> Generator[None]:
    """Answers calls on a node from the beginning of the block to its end."""
    rundir = f"/run/{node}"
    command = [str(programs.executables / "cnvnet-agent"), "--rundir", rundir, "--metrics-address", ""]
    log = Path(f"{rundir}.log")
    with log.open("w") as file:
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{node}", *command, "--log-level", "warning"],
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
