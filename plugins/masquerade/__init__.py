"""masquerade: a VM behind its pod's addresses, KubeVirt's masquerade binding as a CNI plugin."""

from __future__ import annotations

# Checkers take it for typing's, whose import takes as long as all the rest of VERSION.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from cnvnet.cni.skel import Plugin
    from cnvnet.kernel.stack import Kernel


def load(env: Mapping[str, str], *, kernel: Kernel | None = None) -> Plugin:
    """The plugin for a caller with this environment.

    A process that stays has one kernel (cnvnet.kernel.resident) for all of them.
    """
    # Not at the top: VERSION answers without json, ipaddress, pyroute2 and the rest.
    from cnvnet.plugins.masquerade import plugin

    return plugin.load(env, kernel)


def main() -> NoReturn:
    """The executable."""
    from cnvnet.cni import executable

    executable.main("masquerade", load)
