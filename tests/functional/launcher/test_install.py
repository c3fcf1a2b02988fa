"""scripts/install-cni into folders of its own: what it puts there works in the worst of environments."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.harness import OURS, launchers

pytestmark = pytest.mark.alone

CHECKOUT = Path(__file__).resolve().parents[3]
# Variables that end or mislead any Python that listens to them.
HOSTILE = {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "PYTHONSTARTUP": "/nowhere", "LC_ALL": "C"}


def install(folder: Path, **env: str) -> str:
    done = subprocess.run(
        [CHECKOUT / "scripts/install-cni", "--prefix", folder / "opt", "--cni-bin", folder / "cni/bin"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def call(program: Path, folder: Path, command: str, stdin: bytes) -> tuple[int, object]:
    env = {**HOSTILE, "CNI_COMMAND": command, "CNI_PATH": "/x", "CNVNET_RUNDIR": str(folder)}
    done = subprocess.run([program], env=env, input=stdin, capture_output=True, check=False, timeout=60)
    assert b"Traceback" not in done.stderr, done
    return done.returncode, json.loads(done.stdout)


def assert_all_work(folder: Path) -> None:
    for name in OURS:
        for program in (folder / "cni/bin" / name, folder / "opt/bin" / name):
            code, versions = call(program, folder, "VERSION", b"")
            assert (code, str(versions).count("1.1.0")) == (0, 2)
            code, error = call(program, folder, "STATUS", b'{"cniVersion": "1.1.0", "name": ""}')
            assert (code, error) == (1, {"code": 7, "msg": "missing network name"})


def test_installed_upgraded_prebuilt_and_without_a_compiler(tmp_path: Path) -> None:
    said = install(tmp_path)
    assert_all_work(tmp_path)
    installed = sorted((tmp_path / "cni/bin").iterdir())
    assert {path.name for path in installed} >= set(OURS)
    assert all(path.read_bytes().startswith(b"\x7fELF") for path in installed), said
    said = install(tmp_path, MAKEFLAGS="CC=/nowhere/cc", LAUNCHER=str(launchers() / "cnv-bridge"))
    assert "the launcher cannot be built" in said
    assert_all_work(tmp_path)
    # Built for another prefix, it finds the executables of this one.
    assert (tmp_path / "cni/bin/cnvnet").resolve() == tmp_path / "opt"
    assert all(path.read_bytes().startswith(b"\x7fELF") for path in installed), said
    said = install(tmp_path, MAKEFLAGS="CC=/nowhere/cc", LAUNCHER="/nowhere")
    assert "the launcher cannot be built" in said
    assert_all_work(tmp_path)
    assert sorted((tmp_path / "cni/bin").iterdir()) == installed
    assert all(path.read_bytes().startswith(b"#!") for path in installed)


def test_what_cannot_be_installed_into_is_refused(tmp_path: Path) -> None:
    for prefix in ("relative", f"{tmp_path}/a b", ""):
        done = subprocess.run(
            [CHECKOUT / "scripts/install-cni", "--prefix", prefix, "--cni-bin", tmp_path / "bin"],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 2
    done = subprocess.run(
        [CHECKOUT / "scripts/install-cni", "--prefix", tmp_path, "--cni-bin", tmp_path / "x/../bin"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
