"""cnv-bridge: ports of a Linux bridge for pods and virtual machines, a superset of the reference plugin."""

from __future__ import annotations

# Checkers take it for typing's, whose import takes as long as all the rest of VERSION.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from cnvnet.cni.skel import Plugin
    from cnvnet.ipam.static_ip.plugin import StaticIP
    from cnvnet.kernel.stack import Kernel


def load(
    env: Mapping[str, str], *, kernel: Kernel | None = None, static_ip: StaticIP | None = None
) -> Plugin:
    """The plugin for a caller with this environment.

    A process that stays has one kernel (cnvnet.kernel.resident) for all of them, and one address manager,
    which keeps its stores open.
    """
    # Not at the top: VERSION answers without json, ipaddress, pyroute2 and the rest.
    from cnvnet.plugins.cnv_bridge import plugin

    return plugin.load(env, kernel, static_ip)


def main() -> NoReturn:
    """The executable, under this or any other name a symlink gives it."""
    from cnvnet.cni import executable

    executable.main("cnv-bridge", load)
