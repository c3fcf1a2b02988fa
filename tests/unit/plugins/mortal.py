"""A kernel that kills its caller, for the unit tests of all plugins."""

from __future__ import annotations

from cnvnet.kernel.fake import FakeKernel
from cnvnet.kernel.netns import LostNamespace


class MortalKernel(FakeKernel):
    """A kernel whose caller is killed instead of doing its `deadly`th change: nobody cleans up after it."""

    deadly = 0

    def step(self) -> None:
        super().step()
        if self.steps == self.deadly:
            raise LostNamespace("killed")
