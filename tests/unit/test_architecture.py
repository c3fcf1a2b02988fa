"""Imports go downwards, and only the kernel layer talks to the kernel: read off the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What each part may import of ours, besides itself and what everybody may.
LIBRARY = {
    "cnvnet.cni",
    "cnvnet.kernel",
    "cnvnet.vm",
    "cnvnet.attachments",
    "cnvnet.attempts",
    "cnvnet.sandbox",
    "cnvnet.teardown",
}
EVERYBODY = {"cnvnet.caller", "cnvnet.diagnostics"}
LAYERS = {
    "cnvnet.caller": set[str](),
    "cnvnet.diagnostics": set[str](),
    "cnvnet.cni": set[str](),
    "cnvnet.kernel": set[str](),
    "cnvnet.vm": {"cnvnet.cni", "cnvnet.kernel", "cnvnet.attachments"},
    "cnvnet.attachments": {"cnvnet.cni", "cnvnet.kernel"},
    "cnvnet.attempts": {"cnvnet.cni", "cnvnet.kernel"},
    "cnvnet.sandbox": {"cnvnet.cni", "cnvnet.kernel"},
    "cnvnet.teardown": {"cnvnet.cni", "cnvnet.attachments", "cnvnet.attempts"},
    "cnvnet.guest": {"cnvnet.cni", "cnvnet.kernel", "cnvnet.vm", "cnvnet.attachments"},
    "cnvnet.ipam": LIBRARY,
    "cnvnet.plugins": LIBRARY | {"cnvnet.ipam", "cnvnet.guest"},
    "cnvnet.agent": {"cnvnet"},
    "cnvnet.cli": {"cnvnet"},
}
# The module that holds what the kernel is asked with.
KERNEL = "cnvnet.kernel"
KERNELS_OWN_MODULES = ("pyroute2", "ctypes", "_ctypes")
KERNELS_OWN_NAMES = {"AF_NETLINK", "setns"}
KERNELS_OWN_PATHS = ("/proc/sys/net", "/dev/net/tun")
# All that a module loaded before the kernel is needed may cost; facts about each are in CONTRIBUTING.
HEAVY = {
    "argparse",
    "ctypes",
    "dataclasses",
    "inspect",
    "logging",
    "multiprocessing",
    "netaddr",
    "pathlib",
    "pyroute2",
    "subprocess",
    "threading",
    "yaml",
}


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the product by its name. The two symlinks lead to plugins/ and ipam/."""
    for folder, package in (("cnvnet", "cnvnet"), ("plugins", "cnvnet.plugins"), ("ipam", "cnvnet.ipam")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.is_relative_to(ROOT / "cnvnet/plugins") or path.is_relative_to(ROOT / "cnvnet/ipam"):
                continue
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


SOURCES = dict(sources())


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where things come from"
            # `from cnvnet import agent` imports a module as well.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def module_of(name: str) -> str:
    """The module `from MODULE import NAME` runs: one of that name, or the one that holds the name."""
    return name if name in SOURCES else name.rpartition(".")[0]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_downwards_only(module: str) -> None:
    layer = next((layer for layer in LAYERS if within(module, layer)), None)
    if layer is None:
        assert module == "cnvnet", f"{module} has no place in the order of the parts: give it one here"
        return
    allowed = LAYERS[layer] | EVERYBODY | {layer}
    imported = {module_of(name) for name in imports(parse(SOURCES[module])) if within(name, "cnvnet")}
    imported.discard("cnvnet")  # its version
    assert [name for name in imported if not any(within(name, package) for package in allowed)] == []


@pytest.mark.parametrize("module", [name for name in SOURCES if not within(name, KERNEL)])
def test_only_the_kernel_layer_talks_to_the_kernel(module: str) -> None:
    tree = parse(SOURCES[module])
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    wrong = [name for name in imports(tree) if any(within(name, own) for own in KERNELS_OWN_MODULES)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            wrong += {node.attr} & KERNELS_OWN_NAMES
        elif isinstance(node, ast.Name):
            wrong += {node.id} & KERNELS_OWN_NAMES
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            wrong += [path for path in KERNELS_OWN_PATHS if path in node.value]
    assert wrong == []


def test_the_kernel_layer_costs_little_until_it_is_used() -> None:
    code = "import sys; import cnvnet.kernel.stack, cnvnet.kernel.wait; print(*sys.modules)"
    # An editable install imports pathlib to find us, before any of our code runs.
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, check=True
    )
    after = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = set(after.stdout.decode().split()) - set(before.stdout.decode().split())
    assert loaded & HEAVY == set()
