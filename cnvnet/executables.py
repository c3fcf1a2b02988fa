"""The plugins as executables: the one table of them.

VERSION is answered with this module, `cnvnet.launch.executable` and `cnvnet.cni.about` loaded; whatever else
takes long to import, such as `typing`, json or pyroute2, is imported for the other calls only.
"""

from __future__ import annotations

# Checkers take it for typing's, whose import takes as long as all the rest of VERSION.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, NoReturn

    from cnvnet.cni.skel import Plugin

# The plugins' names: in configurations, of their executables, and in the keys of their records.
CNV_BRIDGE: Final = "cnv-bridge"
CNV_TUNING: Final = "cnv-tuning"
MASQUERADE: Final = "masquerade"
STATIC_IP: Final = "static-ip"
VM_BRIDGE: Final = "vm-bridge"
# Those that bind a VM to its pod.
BINDINGS: Final = (MASQUERADE, VM_BRIDGE)
# Second names of executables, for nodes where another program has the first one.
SECOND_NAMES: Final = {"cnvnet-bridge": CNV_BRIDGE, "cnvnet-tuning": CNV_TUNING}


class Executable:
    """A plugin as a program. No NamedTuple: `typing` is not imported for VERSION."""

    __slots__ = ("module", "purpose")

    def __init__(self, module: str, purpose: str) -> None:
        """`purpose` follows "a CNI plugin that"."""
        # Its `load` makes the plugin for a caller's environment.
        self.module = module
        self.purpose = purpose


EXECUTABLES: Final = {
    CNV_BRIDGE: Executable(
        "cnvnet.plugins.cnv_bridge.plugin",
        "attaches virtual machines and containers to a bridge of the node",
    ),
    CNV_TUNING: Executable(
        "cnvnet.plugins.tuning.plugin",
        "sets sysctls and properties of a pod's interface",
    ),
    MASQUERADE: Executable(
        "cnvnet.plugins.masquerade.plugin",
        "puts a virtual machine behind the addresses of its pod",
    ),
    STATIC_IP: Executable(
        "cnvnet.ipam.static_ip.plugin",
        "manages addresses that belong to virtual machines",
    ),
    VM_BRIDGE: Executable(
        "cnvnet.plugins.vm_bridge.plugin",
        "puts a virtual machine in the place of its pod",
    ),
}

# The names of all files in the runtime's folder.
NAMES: Final = (*SECOND_NAMES, *EXECUTABLES)


def loader(name: str) -> Callable[..., Plugin]:
    """The `load` of a plugin: it takes the caller's environment, and what a process that stays shares."""
    from importlib import import_module

    load: Callable[..., Plugin] = import_module(EXECUTABLES[name].module).load
    return load


def main(name: str) -> NoReturn:
    """One call of the plugin `name`, with this process' environment, stdin and stdout."""
    from cnvnet.launch import executable

    executable.main(name, lambda env: loader(name)(env), EXECUTABLES[name].purpose)


def cnv_bridge() -> NoReturn:
    """The executable cnv-bridge, under this or any other name that a symlink gives it."""
    main(CNV_BRIDGE)


def cnv_tuning() -> NoReturn:
    """The executable cnv-tuning, under this or its second name."""
    main(CNV_TUNING)


def masquerade() -> NoReturn:
    """The executable masquerade."""
    main(MASQUERADE)


def static_ip() -> NoReturn:
    """The executable static-ip."""
    main(STATIC_IP)


def vm_bridge() -> NoReturn:
    """The executable vm-bridge."""
    main(VM_BRIDGE)
