"""The protocol library imports next to nothing: each module of it is paid for by every call."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import cnvnet.cni

LIGHT = {
    "__future__",
    "contextlib",
    "contextvars",
    "gc",
    "io",
    "ipaddress",
    "json",
    "os",
    "stat",
    "sys",
    "time",
    "typing",
}
SCRIPT = """
import sys
for name in {light!r}:
    __import__(name)
before = set(sys.modules)
__import__({module!r})
sys.stdout.write(__import__("json").dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(cnvnet.cni.__path__)])
def test_it_imports_only_light_modules(name: str) -> None:
    script = SCRIPT.format(light=sorted(LIGHT), module=f"cnvnet.cni.{name}")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    found: list[str] = json.loads(done.stdout)
    assert [module for module in found if not module.startswith("cnvnet")] == []
    allowed = ("cnvnet.call_context", "cnvnet.cni")
    assert [module for module in found if module != "cnvnet" and not module.startswith(allowed)] == []
