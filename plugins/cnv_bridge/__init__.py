"""cnv-bridge: ports of a Linux bridge for pods and virtual machines, a superset of the reference plugin."""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """The executable, under this or any other name a symlink gives it."""
    from cnvnet.cni import skel
    from cnvnet.plugins.cnv_bridge.plugin import load

    skel.main("cnv-bridge", load)
