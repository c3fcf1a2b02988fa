"""A kernel that kills its caller, for the unit tests of all plugins."""

from __future__ import annotations

from cnvnet.kernel.netns import LostNamespace
from tests.fakes.kernel import FakeKernel


class KillingKernel(FakeKernel):
    """A kernel whose caller is killed at its change number `kill_at`, and cleans nothing up."""

    kill_at = 0

    def step(self) -> None:
        super().step()
        if self.steps == self.kill_at:
            raise LostNamespace("killed")
