"""The plugins as the agent runs them: everything imported, and what they share between calls."""

from __future__ import annotations

import pkgutil
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
from cnvnet import executables
from cnvnet.cni.skel import Load
from cnvnet.ipam.static_ip.plugin import StaticIP
from cnvnet.kernel.stack import Kernel
from cnvnet.vm.subjects import Lookup, no_api

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


def load_all(kernel: Kernel, static_ip: StaticIP, lookup: Lookup = no_api) -> dict[str, Load]:
    """Each plugin by the name that launchers know it by.

    They share the kernel, the stores of leases and the way to the Kubernetes API.
    """
    shared: dict[str, dict[str, object]] = {
        executables.CNV_BRIDGE: {"kernel": kernel, "static_ip": static_ip, "lookup": lookup},
        executables.CNV_TUNING: {"kernel": kernel},
        executables.MASQUERADE: {"kernel": kernel, "lookup": lookup},
        executables.STATIC_IP: {"static_ip": static_ip},
        executables.VM_BRIDGE: {"kernel": kernel, "lookup": lookup},
    }
    return {name: partial(executables.loader(name), **shared[name]) for name in executables.EXECUTABLES}


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
    modules = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    # The packet loop is a process of its own.
    return [each.name for each in modules if not each.name.endswith(".packet_loop")]
