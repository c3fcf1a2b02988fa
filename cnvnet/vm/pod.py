"""The pod's namespace as a binding works in it."""

from __future__ import annotations

from typing import NamedTuple

from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import Kernel, Stack


class Pod(NamedTuple):
    """The pod's namespace, open for the whole call."""

    kernel: Kernel
    netns: Netns
    stack: Stack
