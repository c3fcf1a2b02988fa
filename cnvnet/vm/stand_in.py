"""What stands in for a pod's interface when a VM has taken its place (vm-bridge), and where that is.

A plugin below in the list finds the stand-in under the name that it gave its interface.
"""

from __future__ import annotations

from typing import Final

from cnvnet.kernel.links import Link
from cnvnet.kernel.stack import Reader
from cnvnet.vm import names

# vm-bridge's own name: how the alias of all its links begins (traces.alias).
ALIAS: Final = "vm-bridge-"
# The latter where the kernel has no dummy: one without ports.
KINDS: Final = ("dummy", "bridge")


def is_one(link: Link) -> bool:
    """Whether a link stands in for an interface."""
    return link.kind in KINDS and link.alias.startswith(ALIAS) and names.of(link.name).pod == link.name


def original(pod: Reader, link: Link) -> Link | None:
    """The interface that a link stands in for; None: it has gone."""
    found = pod.link(names.of(link.name).nic)
    return found if found is not None and found.alias == link.alias else None
