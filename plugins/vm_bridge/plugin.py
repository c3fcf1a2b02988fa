"""vm-bridge: its driver, which `BindingCommands` makes a plugin of."""

from __future__ import annotations

from collections.abc import Mapping

from cnvnet.attachment.files import AttachmentFiles, rundir
from cnvnet.attachment.record import ADDED, Attachments, Key, LockedRecord, Record
from cnvnet.attachment.sandbox import Pod
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.executables import CNV_BRIDGE, VM_BRIDGE
from cnvnet.kernel.stack import Kernel, LinuxKernel, Stack
from cnvnet.plugins.binding import pod_interface, sysctls
from cnvnet.plugins.binding.sysctls import Change
from cnvnet.plugins.commands import BindingCall, BindingCommands
from cnvnet.plugins.vm_bridge import state
from cnvnet.plugins.vm_bridge.add import BridgeAdd
from cnvnet.plugins.vm_bridge.config import Config
from cnvnet.plugins.vm_bridge.state import BridgeState
from cnvnet.vm.subjects import Lookup, own_lookup

# The name that the plugin which makes most pods' interfaces has in its records.


class VMBridge:
    """The driver of vm-bridge."""

    name = VM_BRIDGE

    def __init__(self, attachments: Attachments) -> None:
        self._attachments = attachments

    def parse(self, request: Request) -> Config:
        """What the configuration asks for; CNIError names a key that is wrong."""
        return Config.parse(request)

    def attach(self, call: BindingCall[Config], locked: LockedRecord) -> Result:
        """Give the pod's interface to the VM."""
        link = pod_interface.find(call.pod.stack, call.request, call.result)
        if not call.config.lan_dhcp:
            self._refuse_leased(call.key._replace(plugin=CNV_BRIDGE, ifname=link.name))
        return BridgeAdd(call).run(locked)

    def _refuse_leased(self, below: Key) -> None:
        """Raises InvalidConfig when the interface's addresses are a lease that has to be renewed.

        The `dhcp` daemon renews it through the pod's interface, which is the VM's from now on. Only an
        interface that cnv-bridge has made in the same network is known by its record.
        """
        with self._attachments.locked(below, optional=True) as locked:
            record = locked.read()
        if record is not None and record.undo.get("ipam_type") == "dhcp":
            remedy = 'leave ipam out of the network and set "lanDHCP": true'
            raise InvalidConfig(
                f"{below.ifname}: ipam dhcp cannot renew its lease once the VM has the interface: {remedy}"
            )

    def verify(self, call: BindingCall[Config], record: Record | None) -> None:
        """CheckFailed for what is not as `attach` left it."""
        from cnvnet.plugins.vm_bridge.check import check

        check(call, record)

    def existing_link(self, record: Record, pod: Stack) -> str:
        """The bridge, if the pod has it."""
        called = BridgeState.parse(record.undo).names
        return called.bridge if called is not None and pod.link(called.bridge) is not None else ""

    def detach(self, key: Key, record: Record | None, pod: Pod, others: tuple[Change, ...]) -> None:
        """Give the pod its interface back, by the record or by what the links themselves show."""
        left = state.find(pod.stack, key) if record is None else BridgeState.parse(record.undo)
        if record is not None and record.state == ADDED and left.was is not None:
            left = left._replace(placeholder_deleted=not state.has_placeholder(pod.stack, left.was))
        left = left._replace(sysctls=sysctls.unshared(left.sysctls, others))
        state.remove(pod, left)


def load(
    env: Mapping[str, str], kernel: Kernel | None = None, lookup: Lookup | None = None
) -> BindingCommands[Config]:
    """The plugin for a caller with this environment; what it is not given it makes."""
    attachments = AttachmentFiles(rundir(env))
    return BindingCommands(
        VMBridge(attachments), kernel or LinuxKernel(), attachments, env, lookup or own_lookup(env)
    )
