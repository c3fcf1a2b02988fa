"""The launcher built for arm64, run under an emulator of that processor."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from cnvnet import VERSION as RELEASE
from tests.functional.launcher.conftest import CONFIG, GOOD, LAUNCHER, Called, Launcher
from tests.functional.launcher.fake_agent import agent, responding
from tests.harness import peer

pytestmark = pytest.mark.alone

# elf(5): the class of 64 bits, little-endian, and e_machine of aarch64 (EM_AARCH64).
_ELF64_LE = b"\x7fELF\x02\x01"
_AARCH64 = 183


@pytest.fixture(scope="module")
def built_for_arm64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Skips, or fails in CI, where no cross compiler is."""
    peer("aarch64-linux-gnu-gcc")
    made = tmp_path_factory.mktemp("arm64") / "cnv-launch"
    defines = f"DEFINES=-DCONNECT_SECONDS=2 -DCALL_SECONDS=10 -DPREFIX='\"{made.parent}/nowhere\"'"
    subprocess.run(["make", "-s", "-C", LAUNCHER, "ARCH=arm64", f"OUT={made}", defines, made], check=True)
    return made


@pytest.fixture
def launcher(tmp_path: Path, built_for_arm64: Path) -> Launcher:
    """Under the plugin's name a script that has the emulator run it, with that name as its own."""
    emulator = peer("qemu-aarch64")
    made = Launcher(tmp_path, "arm64")
    program = tmp_path / "arm64/cnv-bridge"
    program.parent.mkdir()
    shutil.copy(built_for_arm64, program)
    made.folder.joinpath("cnv-bridge").write_text(f'#!/bin/sh\nexec {emulator} {program} "$@"\n')
    made.folder.joinpath("cnv-bridge").chmod(0o755)
    return made


def test_it_is_a_static_program_for_that_processor(built_for_arm64: Path) -> None:
    header = built_for_arm64.read_bytes()[:64]
    assert header.startswith(_ELF64_LE)
    assert struct.unpack_from("<H", header, 18) == (_AARCH64,)
    listed = subprocess.run(
        ["readelf", "--program-headers", built_for_arm64], capture_output=True, text=True, check=True
    )
    assert "INTERP" not in listed.stdout


def test_it_answers_version_as_the_others_do(launcher: Launcher) -> None:
    code, stdout, _ = launcher.call(stdin=b"", env={"CNI_COMMAND": "VERSION"})
    assert code == 0
    assert stdout.startswith(b'{"cniVersion":"1.1.0","supportedVersions":["0.1.0"')
    done = subprocess.run([launcher.path(), "--version"], env={}, capture_output=True, text=True, check=True)
    assert done.stdout == f"cnv-bridge {RELEASE} (launcher)\n"


def test_a_call_goes_to_the_agent_and_its_answer_to_the_caller(launcher: Launcher) -> None:
    stdin = os.urandom(100_001)
    with agent(launcher.socket, responding(GOOD)) as answering:
        assert launcher.call(stdin=stdin) == Called(0, GOOD.stdout, GOOD.stderr)
    (received,) = answering.received
    assert received.call.stdin == stdin
    assert received.call.argv0 == "cnv-bridge"


def test_without_an_agent_and_executables_a_call_is_refused(launcher: Launcher) -> None:
    assert launcher.call(stdin=CONFIG).error()["code"] == 11


def test_an_architecture_that_is_not_known_is_refused() -> None:
    done = subprocess.run(
        ["make", "-s", "-C", LAUNCHER, "ARCH=vax"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "ARCH=vax: known are amd64 and arm64; others need CC=COMPILER" in done.stderr


def test_an_architecture_of_the_environment_changes_nothing() -> None:
    done = subprocess.run(
        ["make", "-n", "-B", "-C", LAUNCHER],
        env={**os.environ, "ARCH": "vax"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert " -o cnv-launch " in done.stdout
