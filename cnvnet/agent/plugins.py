"""The plugins as the agent runs them: everything imported, and what they share between calls."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Final

import cnvnet.cni
import cnvnet.guest
import cnvnet.ipam
import cnvnet.kernel
import cnvnet.plugins
import cnvnet.vm
from cnvnet.cni.skel import Load, Plugin
from cnvnet.ipam.static_ip.plugin import StaticIP
from cnvnet.kernel.stack import Kernel
from cnvnet.plugins import cnv_bridge, masquerade, vm_bridge

_PACKAGES: Final = (
    cnvnet.cni,
    cnvnet.kernel,
    cnvnet.vm,
    cnvnet.guest,
    cnvnet.plugins,
    cnvnet.ipam,
)
# Of the standard library, where the import is inside a function.
_OTHERS: Final = ("binascii", "hashlib", "select", "shlex", "signal", "sqlite3", "subprocess")


def load_all(kernel: Kernel) -> dict[str, Load]:
    """Each plugin by the name that launchers know it by. They share the kernel and the stores of leases."""
    static_ip = StaticIP()

    def the_one(_: Mapping[str, str]) -> Plugin:
        return static_ip

    return {
        "cnv-bridge": partial(cnv_bridge.load, kernel=kernel, static_ip=static_ip),
        "masquerade": partial(masquerade.load, kernel=kernel),
        "static-ip": the_one,
        "vm-bridge": partial(vm_bridge.load, kernel=kernel),
    }


def import_all(kernel: Kernel) -> None:
    """Everything that a call would import, so that none of them pays for it."""
    for package in _PACKAGES:
        for name in _modules(package):
            import_module(name)
    for name in _OTHERS:
        import_module(name)
    # pyroute2's message classes come with their first message.
    with kernel.stack() as stack:
        stack.link("lo")
        stack.addresses(1)


def _modules(package: ModuleType) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    # The doubles are for tests, and the packet loop is a process of its own.
    return [each.name for each in found if "fake" not in each.name and not each.name.endswith(".responder")]
