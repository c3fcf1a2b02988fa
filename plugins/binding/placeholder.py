"""The placeholder of a pod's interface that a VM has taken over (vm-bridge), and where the interface is.

The plugin that made the interface finds the placeholder under the interface's name.
"""

from __future__ import annotations

from typing import Final

from cnvnet.kernel.links import Link
from cnvnet.kernel.stack import Reader
from cnvnet.vm import names

# vm-bridge's own name: how the alias of all its links begins (ownership.alias).
ALIAS: Final = "vm-bridge-"
# A bridge without ports serves where the kernel has no dummy links.
KINDS: Final = ("dummy", "bridge")


def is_one(link: Link) -> bool:
    """Whether a link is the placeholder of an interface."""
    return link.kind in KINDS and link.alias.startswith(ALIAS) and names.of(link.name).pod == link.name


def original(pod: Reader, link: Link) -> Link | None:
    """The interface that a placeholder belongs to; None when it has gone."""
    interface = pod.link(names.of(link.name).nic)
    return interface if interface is not None and interface.alias == link.alias else None
