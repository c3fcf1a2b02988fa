"""vm-bridge: what each command does its own way; the rest is every binding's."""

from __future__ import annotations

from collections.abc import Mapping

from cnvnet.attachments import ADDED, AttachmentFiles, Key, Record, Slot, rundir
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.kernel.stack import Kernel, LinuxKernel, Stack
from cnvnet.plugins.binding import Binding, Call
from cnvnet.plugins.vm_bridge import leftovers
from cnvnet.plugins.vm_bridge.addition import Addition
from cnvnet.plugins.vm_bridge.config import Config
from cnvnet.plugins.vm_bridge.leftovers import Leftovers
from cnvnet.vm import sysctls
from cnvnet.vm.pod import Pod
from cnvnet.vm.sysctls import Change


class VMBridge(Binding[Config]):
    """The plugin."""

    name = "vm-bridge"

    def _parse(self, request: Request) -> Config:
        return Config.parse(request)

    def _attach(self, call: Call[Config], slot: Slot) -> Result:
        return Addition(call).run(slot)

    def _verify(self, call: Call[Config], record: Record | None) -> None:
        from cnvnet.plugins.vm_bridge.check import check

        check(call, record)

    def _standing(self, record: Record, pod: Stack) -> str:
        called = Leftovers.parse(record.undo).names
        return called.bridge if called is not None and pod.link(called.bridge) is not None else ""

    def _detach(self, key: Key, record: Record | None, pod: Pod, others: tuple[Change, ...]) -> None:
        left = leftovers.find(pod.stack, key) if record is None else Leftovers.parse(record.undo)
        if record is not None and record.state == ADDED and left.was is not None:
            left = left._replace(mislaid=not leftovers.has_stand_in(pod.stack, left.was))
        left = left._replace(sysctls=sysctls.unshared(left.sysctls, others))
        errors = leftovers.remove(pod, left)
        if errors:
            raise errors[0]


def load(env: Mapping[str, str], kernel: Kernel | None = None) -> VMBridge:
    """The plugin for a caller with this environment; a kernel that it is not given it makes."""
    return VMBridge(kernel or LinuxKernel(), AttachmentFiles(rundir(env)), env)
