"""The order of the house, read off the sources.

Imports go downwards and in no circle, only the kernel layer talks to the kernel, no module is too long to
read, and no name stands for two classes.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What each part may import of ours, besides itself and what all parts may.
LIBRARY = {"cnvnet.cni", "cnvnet.kernel", "cnvnet.vm", "cnvnet.attachment"}
COMMON = {"cnvnet.call_context"}
LAYERS = {
    "cnvnet.call_context": set[str](),
    "cnvnet.cni": set[str](),
    "cnvnet.kernel": set[str](),
    "cnvnet.kube": {"cnvnet.cni"},
    "cnvnet.vm": {"cnvnet.cni", "cnvnet.attachment", "cnvnet.kube"},
    "cnvnet.attachment": {"cnvnet.cni", "cnvnet.kernel"},
    "cnvnet.guest": {"cnvnet.cni", "cnvnet.kernel"},
    "cnvnet.launch": {"cnvnet.cni", "cnvnet.kernel", "cnvnet.attachment", "cnvnet.guest"},
    "cnvnet.executables": {"cnvnet.cni", "cnvnet.launch"},
    "cnvnet.ipam": LIBRARY | {"cnvnet.executables", "cnvnet.kube"},
    "cnvnet.plugins": LIBRARY | {"cnvnet.executables", "cnvnet.ipam", "cnvnet.guest", "cnvnet.launch"},
    "cnvnet.resident": {"cnvnet.cni"},
    "cnvnet.controller": {"cnvnet.cni", "cnvnet.kube", "cnvnet.ipam", "cnvnet.resident"},
    "cnvnet.agent": LIBRARY
    | {
        "cnvnet.executables",
        "cnvnet.guest",
        "cnvnet.ipam",
        "cnvnet.kube",
        "cnvnet.launch",
        "cnvnet.plugins",
        "cnvnet.resident",
    },
    "cnvnet.cli": LIBRARY
    | {
        "cnvnet.executables",
        "cnvnet.ipam",
        "cnvnet.plugins",
        "cnvnet.guest",
        "cnvnet.kube",
        "cnvnet.launch",
    },
    "cnvnet.__main__": {"cnvnet.cli"},
}
# What stands in cnvnet/ itself, and in no room: everything else has one.
LOOSE = {"__init__.py", "__main__.py", "call_context.py", "executables.py"}
# The modules that have at most so many lines, executable scripts and the C launcher among them.
LONGEST = 450
READ = ("cnvnet/*.py", "plugins/*.py", "ipam/*.py", "scripts", ".ci", "launcher")
# Of tests, lists of frames and of damages are the longest.
LONGEST_TESTS = 600
# A plugin's configuration is its Config, in each of them.
SHARED_NAMES = {"Config"}
# The module that holds what the kernel is asked with.
KERNEL = "cnvnet.kernel"
KERNELS_OWN_MODULES = ("pyroute2", "ctypes", "_ctypes")
KERNELS_OWN_NAMES = {"AF_NETLINK", "setns"}
KERNELS_OWN_PATHS = ("/proc/sys/net", "/dev/net/tun")
# Modules that take milliseconds to import: none may be loaded before the kernel is needed.
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
    "ssl",
    "subprocess",
    "threading",
    "urllib3",
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
    allowed = LAYERS[layer] | COMMON | {layer}
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


def test_no_import_leads_back_to_its_module() -> None:
    """Imports for type checkers count, too: a reader follows them as well."""
    graph = {
        module: {module_of(name) for name in imports(parse(path))} & SOURCES.keys() - {module}
        for module, path in SOURCES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(f"a circle of imports: {' -> '.join(e.args[1])}")


def product_and_scripts() -> Iterator[Path]:
    yield from SOURCES.values()
    yield from sorted((ROOT / "scripts").rglob("*.py"))


def longer(most: int, *where: str) -> list[str]:
    command = ["git", "ls-files", *where]
    listed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    files = [name for name in listed if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]
    assert len(files) > 20, "not what was to be measured"
    return [name for name in files if len((ROOT / name).read_text().splitlines()) > most]


def test_no_module_is_too_long_to_read() -> None:
    assert longer(LONGEST, *READ) == []
    assert longer(LONGEST_TESTS, "tests/*.py") == []


def test_no_name_stands_for_two_classes() -> None:
    places: defaultdict[str, set[Path]] = defaultdict(set)
    for path in product_and_scripts():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].add(path)
    assert {name for name, where in places.items() if len(where) > 1} == SHARED_NAMES


def test_everything_has_a_room() -> None:
    assert {path.name for path in (ROOT / "cnvnet").glob("*.py")} <= LOOSE


def test_the_kernel_layer_costs_little_until_it_is_used() -> None:
    code = "import sys; import cnvnet.kernel.stack, cnvnet.kernel.wait; print(*sys.modules)"
    # An editable install imports pathlib to find us, before any of our code runs.
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, check=True
    )
    after = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = set(after.stdout.decode().split()) - set(before.stdout.decode().split())
    assert loaded & HEAVY == set()


# What only a client of the Kubernetes API needs: half as long to import as a whole call takes.
OF_CLIENTS = {"http.client", "ssl", "urllib3", "yaml", "cnvnet.kube.client", "cnvnet.kube.kubeconfig"}


def test_a_call_without_credentials_imports_no_client_of_the_kubernetes_api(tmp_path: Path) -> None:
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/run/netns/none",
        "CNI_PATH": "/none",
        "CNVNET_AGENT": "off",
        "CNVNET_RUNDIR": str(tmp_path / "run"),
        "CNVNET_STATEDIR": str(tmp_path / "state"),
    }
    ipam = {"type": "static-ip", "subnet": "10.9.0.0/24"}
    config = {"cniVersion": "1.0.0", "name": "net1", "type": "static-ip", "ipam": ipam}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from cnvnet.executables import static_ip; static_ip()"],
        input=json.dumps(config),
        env=env,
        text=True,
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["ips"]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "cnvnet.ipam.store.sqlite" in imported
    assert imported & OF_CLIENTS == set()


@pytest.mark.parametrize("room", ["cnvnet.vm", "cnvnet.ipam", "cnvnet.plugins", "cnvnet.kube.credentials"])
def test_a_room_imports_a_client_of_the_kubernetes_api_only_when_it_has_credentials(room: str) -> None:
    modules = [module for module in SOURCES if within(module, room)]
    code = f"import sys, {', '.join(modules)}\n"
    if room == "cnvnet.kube.credentials":
        code += f"assert {room}.find({{}}) is None\n"
    code += "print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(loaded.stdout.split()) & OF_CLIENTS == set()


@pytest.mark.parametrize("module", [name for name in SOURCES if not within(name, "cnvnet.kube")])
def test_only_kube_speaks_http_to_the_kubernetes_api(module: str) -> None:
    imported = imports(parse(SOURCES[module]))
    assert [name for name in imported if within(name, "urllib3") or within(name, "ssl")] == []
