"""vm-bridge: a VM on the network of its pod, KubeVirt's bridge binding as a CNI plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from cnvnet.cni.skel import Plugin


def load(env: Mapping[str, str]) -> Plugin:
    """The plugin for a caller with this environment."""
    # Not at the top: VERSION answers without json, ipaddress, pyroute2 and the rest.
    from cnvnet.plugins.vm_bridge import plugin

    return plugin.load(env)


def main() -> NoReturn:
    """The executable."""
    from cnvnet.cni import skel

    skel.main("vm-bridge", load)
