"""static-ip: the address manager as a CNI plugin, and as a function for cnv-bridge."""

from __future__ import annotations

# Checkers take it for typing's, whose import takes as long as all the rest of VERSION.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from cnvnet.cni.skel import Plugin


def load(env: Mapping[str, str]) -> Plugin:
    """The plugin for a caller with this environment."""
    # Not at the top: VERSION answers without json, ipaddress and the rest.
    from cnvnet.ipam.static_ip.plugin import StaticIP

    return StaticIP()


def main() -> NoReturn:
    """The executable `static-ip`."""
    from cnvnet.cni import executable

    executable.main("static-ip", load)
