"""Every executable has its plugin and its entry point, and answers VERSION fast."""

from __future__ import annotations

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from cnvnet import executables

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", executables.EXECUTABLES)
def test_a_plugin_is_loaded_under_its_name(name: str) -> None:
    assert executables.loader(name)({}).name == name


# What VERSION imports of ours, besides the plugin's own package.
LOADED_FOR_VERSION = {
    "cnvnet",
    "cnvnet.cni",
    "cnvnet.cni.about",
    "cnvnet.cni.errors",
    "cnvnet.cni.version",
    "cnvnet.executables",
    "cnvnet.launch",
    "cnvnet.launch.executable",
}


def test_every_plugin_has_an_entry_point() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = setup["options.entry_points"]["console_scripts"].strip().split("\n")
    entries = dict(script.split(" = ") for script in scripts)
    for name in executables.EXECUTABLES:
        module, _, function = entries[name].partition(":")
        assert module == executables.__name__
        assert callable(getattr(executables, function))


def test_version_is_answered_without_importing_what_takes_long() -> None:
    code = (
        "import sys, os; before = set(sys.modules); from cnvnet import executables;"
        "from cnvnet.launch import executable; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    assert set(done.stdout.decode().split()) == LOADED_FOR_VERSION | {"gc"}
