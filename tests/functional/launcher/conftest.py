"""The launchers: the C one, the same under the compiler's checks, and the one every Python executable is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnvnet.cni import skel
from cnvnet.cni.skel import Response
from tests.functional.launcher.fake_agent import Agent, agent, responding
from tests.harness import OURS, executable

LAUNCHER = Path(__file__).resolve().parents[3] / "launcher"
NAMES = ("cnv-bridge", "cnv-tuning", "masquerade", "vm-bridge", "static-ip")
CONFIG = {"cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge"}
GOOD = Response(0, b'{"cniVersion": "1.0.0"}\n', b"cnv-bridge: a line for people\n")
# A sanitizer that finds something ends the process with this.
CHECKED = {"ASAN_OPTIONS": "exitcode=99", "UBSAN_OPTIONS": "exitcode=99:print_stacktrace=1"}


class Called(NamedTuple):
    """What the caller of a launcher saw."""

    code: int
    stdout: bytes
    stderr: bytes

    def error(self) -> dict[str, Any]:
        assert self.code == 1, self
        document: dict[str, Any] = json.loads(self.stdout)
        return document


class Launcher:
    """A folder with one kind of launcher under the plugins' names, and one RUNDIR."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind
        self.rundir = folder / "run"
        self.rundir.mkdir()

    @property
    def socket(self) -> Path:
        return self.rundir / "agent.sock"

    def environment(self, **more: str) -> dict[str, str]:
        env = {
            "CNVNET_RUNDIR": str(self.rundir),
            "CNVNET_STATEDIR": str(self.folder / "state"),
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "dummy-0",
            "CNI_NETNS": "/nowhere/netns",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/nowhere/bin",
            "PATH": os.environ["PATH"],
            **CHECKED,
            **more,
        }
        return {name: value for name, value in env.items() if value != "\0"}

    def path(self, name: str = "cnv-bridge") -> str:
        return executable(name) if self.kind == "python" else str(self.folder / name)

    def call(
        self,
        name: str = "cnv-bridge",
        stdin: bytes | Mapping[str, Any] = CONFIG,
        env: Mapping[str, str] | None = None,
    ) -> Called:
        raw = stdin if isinstance(stdin, bytes) else json.dumps(stdin).encode()
        environment = self.environment(**(env or {}))
        done = subprocess.run(
            [self.path(name)], env=environment, input=raw, capture_output=True, check=False, timeout=60
        )
        return Called(done.returncode, done.stdout, done.stderr)

    def put_python_beside(self) -> None:
        """Lets the C launcher find the real executables, as scripts/install-cni lays them out."""
        beside = self.folder / "cnvnet/bin"
        beside.mkdir(parents=True)
        for name in OURS:
            (beside / name).symlink_to(executable(name))

    def put_recorders_beside(self) -> Path:
        """Lets the C launcher find executables that only say that they were run."""
        beside = self.folder / "cnvnet/bin"
        beside.mkdir(parents=True)
        for name in NAMES:
            (beside / name).write_text(f'#!/bin/sh\necho "$0" >>{self.folder}/ran\n')
            (beside / name).chmod(0o755)
        return self.folder / "ran"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The C launcher in its builds, patient for some seconds only and looking nowhere but beside itself."""
    folder = tmp_path_factory.mktemp("built")
    seconds = "-DCONNECT_SECONDS=2 -DCALL_SECONDS=4 -DRETURN_SECONDS=2"
    defines = f"DEFINES={seconds} -DPREFIX='\"{folder}/nowhere\"'"
    found = {"c": folder / "cnv-launch", "glibc": folder / "glibc", "asan": folder / "cnv-launch-asan"}
    for kind, how in (("c", [found["c"]]), ("glibc", [found["glibc"], "CC=cc"]), ("asan", ["asan"])):
        subprocess.run(["make", "-s", "-C", LAUNCHER, *how, f"OUT={found[kind]}", defines], check=True)
    return found


def install(folder: Path, kind: str, built: Mapping[str, Path]) -> Launcher:
    made = Launcher(folder, kind)
    if kind != "python":
        for name in NAMES:
            shutil.copy(built[kind], folder / name)
        for name in ("bridge", "cnvnet-bridge", "tuning", "cnvnet-tuning"):
            (folder / name).symlink_to("cnv-bridge")
    return made


@pytest.fixture(params=["c", "glibc", "asan", "python"])
def launcher(request: pytest.FixtureRequest, tmp_path: Path, built: dict[str, Path]) -> Launcher:
    """Each of the launchers."""
    return install(tmp_path, request.param, built)


@pytest.fixture(params=["c", "asan"])
def c_launcher(request: pytest.FixtureRequest, tmp_path: Path, built: dict[str, Path]) -> Launcher:
    """The C launcher in both builds."""
    return install(tmp_path, request.param, built)


@pytest.fixture
def static(tmp_path: Path, built: dict[str, Path]) -> Launcher:
    """The C launcher as it is installed."""
    return install(tmp_path, "c", built)


@pytest.fixture
def answering(launcher: Launcher) -> Iterator[Agent]:
    """An agent that is content with everything."""
    with agent(launcher.socket, responding(GOOD)) as made:
        yield made


def where(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def never_loaded(env: object) -> skel.Plugin:
    raise AssertionError("the call was not refused")


def silent(path: str, env: Mapping[str, str]) -> Called:
    """A call whose stdin is never written to nor closed."""
    reading, writing = os.pipe()
    done = subprocess.run([path], env=env, stdin=reading, capture_output=True, check=False, timeout=60)
    os.close(reading)
    os.close(writing)
    return Called(done.returncode, done.stdout, done.stderr)


def plain_file(path: Path) -> None:
    path.write_bytes(b"")


def nothing(path: Path) -> None: ...
