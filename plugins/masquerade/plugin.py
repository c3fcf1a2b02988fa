"""masquerade: what each command does its own way; the rest is every binding's."""

from __future__ import annotations

from collections.abc import Mapping

from cnvnet.attachments import AttachmentFiles, Key, Record, Slot, rundir
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.kernel.stack import Kernel, LinuxKernel, Stack
from cnvnet.plugins.binding import Binding, Call
from cnvnet.plugins.masquerade import leftovers
from cnvnet.plugins.masquerade.addition import Addition
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.leftovers import Leftovers
from cnvnet.vm import sysctls
from cnvnet.vm.pod import Pod
from cnvnet.vm.sysctls import Change


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

    def _detach(self, key: Key, record: Record | None, pod: Pod, others: tuple[Change, ...]) -> None:
        left = leftovers.find(pod.stack, key) if record is None else Leftovers.parse(record.undo)
        left = left._replace(sysctls=sysctls.unshared(left.sysctls, others))
        errors = leftovers.remove(pod, left)
        if errors:
            raise errors[0]


def load(env: Mapping[str, str], kernel: Kernel | None = None) -> Masquerade:
    """The plugin for a caller with this environment; a kernel that it is not given it makes."""
    return Masquerade(kernel or LinuxKernel(), AttachmentFiles(rundir(env)), env)
