"""masquerade: what each command does its own way; the rest is every binding's."""

from __future__ import annotations

from collections.abc import Mapping

from cnvnet.attachments import AttachmentFiles, Key, Record, Slot, rundir
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import LinuxKernel, Stack
from cnvnet.plugins.binding import Binding, Call
from cnvnet.plugins.masquerade import leftovers
from cnvnet.plugins.masquerade.addition import Addition
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.leftovers import Leftovers


class Masquerade(Binding[Config]):
    """The plugin."""

    name = "masquerade"

    def _parse(self, request: Request) -> Config:
        return Config.parse(request)

    def _attach(self, call: Call[Config], slot: Slot) -> Result:
        return Addition(call).run(slot)

    def _verify(self, call: Call[Config], record: Record | None) -> None:
        from cnvnet.plugins.masquerade.check import check

        check(call, record)

    def _standing(self, record: Record, pod: Stack) -> str:
        bridge = Leftovers.parse(record.undo).bridge
        return bridge if pod.link(bridge) is not None else ""

    def _detach(self, key: Key, record: Record | None, netns: Netns, pod: Stack) -> None:
        left = leftovers.find(pod, key) if record is None else Leftovers.parse(record.undo)
        errors = leftovers.remove(self._kernel, netns, pod, left)
        if errors:
            raise errors[0]


def load(env: Mapping[str, str]) -> Masquerade:
    """The plugin for a caller with this environment."""
    return Masquerade(LinuxKernel(), AttachmentFiles(rundir(env)), env)
