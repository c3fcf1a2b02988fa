"""masquerade: its driver, which `BindingCommands` makes a plugin of."""

from __future__ import annotations

from collections.abc import Mapping

from cnvnet.attachment.files import AttachmentFiles, rundir
from cnvnet.attachment.record import Key, LockedRecord, Record
from cnvnet.attachment.sandbox import Pod
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.executables import MASQUERADE
from cnvnet.kernel.stack import Kernel, LinuxKernel, Stack
from cnvnet.plugins.binding import sysctls
from cnvnet.plugins.binding.sysctls import Change
from cnvnet.plugins.commands import BindingCall, BindingCommands
from cnvnet.plugins.masquerade import state
from cnvnet.plugins.masquerade.add import MasqueradeAdd
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.state import MasqueradeState
from cnvnet.vm.subjects import Lookup, own_lookup


class Masquerade:
    """The driver of masquerade."""

    name = MASQUERADE

    def parse(self, request: Request) -> Config:
        """What the configuration asks for; CNIError names a key that is wrong."""
        return Config.parse(request)

    def attach(self, call: BindingCall[Config], locked: LockedRecord) -> Result:
        """Put the VM behind its pod's addresses."""
        return MasqueradeAdd(call).run(locked)

    def verify(self, call: BindingCall[Config], record: Record | None) -> None:
        """CheckFailed for what is not as `attach` left it."""
        from cnvnet.plugins.masquerade.check import check

        check(call, record)

    def existing_link(self, record: Record, pod: Stack) -> str:
        """The bridge, or the tap where there is none by the record, if the pod has it."""
        left = MasqueradeState.parse(record.undo)
        name = left.bridge or left.tap
        return name if pod.link(name) is not None else ""

    def detach(self, key: Key, record: Record | None, pod: Pod, others: tuple[Change, ...]) -> None:
        """Remove links, rules and sysctls by the record, or by what the links themselves show."""
        left = state.find(pod.stack, key) if record is None else MasqueradeState.parse(record.undo)
        left = left._replace(sysctls=sysctls.unshared(left.sysctls, others))
        state.remove(pod, left)


def load(
    env: Mapping[str, str], kernel: Kernel | None = None, lookup: Lookup | None = None
) -> BindingCommands[Config]:
    """The plugin for a caller with this environment; what it is not given it makes."""
    return BindingCommands(
        Masquerade(), kernel or LinuxKernel(), AttachmentFiles(rundir(env)), env, lookup or own_lookup(env)
    )
