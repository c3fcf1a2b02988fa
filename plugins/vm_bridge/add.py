"""One ADD: the record before the first step and after the last, and an undo that goes by what is there."""

from __future__ import annotations

import errno
import time
from ipaddress import IPv6Address
from typing import Any, Final

from cnvnet.attachment.record import ADDED, ADDING, LockedRecord, Record
from cnvnet.attachment.rollback import Rollback
from cnvnet.call_context import log
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.cni.result import DNS, Result
from cnvnet.guest import settings_json
from cnvnet.kernel import replays, sysctl
from cnvnet.kernel.addresses import AddAddress, DeleteAddress
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.links import ChangeLink, CreateBridge, CreateDummy, Link
from cnvnet.kernel.neighbours import ResolveNeighbour
from cnvnet.kernel.snapshots import Snapshot
from cnvnet.kernel.stack import KernelError, Stack
from cnvnet.launch import guest_client
from cnvnet.plugins.binding import ownership, pod_interface, sysctls
from cnvnet.plugins.binding import ruleset as vm_ruleset
from cnvnet.plugins.binding.ruleset import Ruleset
from cnvnet.plugins.commands import BindingCall
from cnvnet.plugins.vm_bridge import original, plan, ruleset, state
from cnvnet.plugins.vm_bridge.config import Config
from cnvnet.plugins.vm_bridge.original import Original
from cnvnet.plugins.vm_bridge.plan import BridgePlan
from cnvnet.plugins.vm_bridge.state import BridgeState
from cnvnet.vm import names
from cnvnet.vm.names import PodLinkNames
from cnvnet.vm.subjects import owners_of

# A gateway that is there answers at once, unless its address is still under detection, or a bridge with STP
# on the way lets nothing through for twice its forward delay (15 s). It is waited for, because a guest
# whose services start without the router never learns it.
_SECONDS: Final = 35.0


class BridgeAdd:
    """An ADD whose configuration is sound and whose attachment has nothing left of an earlier one."""

    def __init__(self, call: BindingCall[Config]) -> None:
        self._call = call
        self._pod = call.pod

    def run(self, locked: LockedRecord) -> Result:
        """Raises CNIError or OSError; nothing of the attachment is left then."""
        call, stack, netns = self._call, self._pod.stack, self._pod.netns
        link = pod_interface.find(stack, call.request, call.result)
        plan.ensure_fit(link)
        plan.ensure_free(names.of(link.name), stack.links())
        was = original.observe(stack, link)
        wanted = self._plan(was)
        left = BridgeState(was, sysctls.changes(stack, plan.GLOBAL, call.others))
        owner = owners_of(call.request, call.subject)
        record = Record(
            call.key, call.request.netns, netns.inode, boot_id(), ADDING, left.to_json(), None, *owner
        )
        with Rollback() as rollback:
            rollback.on_clean("record", locked.remove)
            locked.write(record)
            # One undo for all steps: the pod shows what has been done, the record what was before.
            rollback.push(link.name, self._restore, left)
            added = {**record.undo, **self._wire(wanted, was)}
            guest = _recorded(wanted)
            locked.write(record._replace(state=ADDED, undo=added, guest=guest))
            if guest is not None:
                guest_client.serve(call.env, call.config.guest, call.key)
        return call.result or Result()

    def _plan(self, was: Original) -> BridgePlan:
        stack, config = self._pod.stack, self._call.config
        known = original.known(was)
        router = plan.unknown_router(known) if plan.serves(config, known) else None
        router_mac = resolved(stack, was, router) if router is not None else ""
        if router is not None and not router_mac:
            silent = f"{was.name}: the gateway {router} does not answer"
            if config.guest.required:
                raise CNIError(TRY_AGAIN_LATER, silent)
            log(f"{silent}: the guest gets no IPv6 default route")
        return plan.plan(
            config,
            known,
            taken=(address.address.ip for address in stack.addresses()),
            router_mac=router_mac,
            dns=self._call.result.dns if self._call.result is not None else DNS(),
        )

    def _restore(self, left: BridgeState) -> None:
        unshared = sysctls.unshared(left.sysctls, self._call.others)
        state.remove(self._pod, left._replace(sysctls=unshared))

    def _wire(self, wanted: BridgePlan, was: Original) -> dict[str, Any]:
        """Make the table before the links are there, and set them up only when all is done.

        Returns what CHECK is to find: the table's contents, and the tap's MAC address and MTU.
        """
        pod, alias = self._pod.stack, ownership.alias(self._call.key)
        kernel, netns = self._pod.kernel, self._pod.netns
        table = ruleset.plan(wanted.names, wanted.served)
        vm_ruleset.load(kernel, netns, table)
        (bridge,) = pod.apply(wanted.bridge)
        (tap,) = pod.apply(wanted.tap)
        pod.apply(
            ChangeLink(bridge.ifindex, alias=alias),
            ChangeLink(tap.ifindex, alias=alias, mtu=wanted.mtu, master=bridge.ifindex),
        )
        sysctl.apply(pod.sysctls, (*plan.GLOBAL, *wanted.on_links))
        _take(pod, wanted, was, bridge, alias)
        _make_placeholder(pod, was, alias)
        if wanted.server is not None:
            pod.apply(AddAddress(bridge.ifindex, wanted.server))
        pod.apply(*(ChangeLink(each, up=True) for each in (bridge.ifindex, tap.ifindex, was.ifindex)))
        contents = vm_ruleset.contents(kernel, netns, [table, *self._pass_by_the_bridge(wanted.names)])
        return {"contents": contents, "tap_mac": tap.mac, "mtu": wanted.mtu}

    def _pass_by_the_bridge(self, called: PodLinkNames) -> list[Ruleset]:
        """What was loaded for it: nothing where the kernel cannot, and all frames take the bridge."""
        wire = ruleset.plan_wire(called)
        try:
            vm_ruleset.replace(self._pod.kernel, self._pod.netns, wire)
        except CNIError as e:
            log(f"{called.tap}: all frames pass the bridge: {e.msg}")
            return []
        return [wire]


def resolved(pod: Stack, was: Original, address: IPv6Address) -> str:
    """The MAC address that answers for an address on the link, "" if none does."""
    deadline = time.monotonic() + _SECONDS
    while True:
        known = (each.mac for each in pod.neighbours(was.ifindex) if each.address == address)
        mac = next(known, "")
        if mac or time.monotonic() >= deadline:
            return mac
        try:
            pod.apply(ResolveNeighbour(was.ifindex, address))
        except KernelError as e:
            # The pod's own addresses may still be under detection, or the link be down.
            if e.errno not in (errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EHOSTUNREACH):
                raise
        time.sleep(0.01)


def _take(pod: Stack, wanted: BridgePlan, was: Original, bridge: Link, alias: str) -> None:
    """The pod's interface becomes a port of the bridge, with neither MAC nor addresses of the guest's."""
    # Learning is off: all hosts but the guest are behind this port.
    pod.apply(
        ChangeLink(
            was.ifindex,
            up=False,
            name=wanted.names.nic,
            mac=wanted.mac,
            alias=alias,
            master=bridge.ifindex,
            learning=False,
        )
    )
    sysctl.apply(pod.sysctls, [sysctl.Setting(original.disable_ipv6(wanted.names.nic), "1", required=False)])
    for address in pod.addresses(was.ifindex):
        try:
            pod.apply(DeleteAddress(was.ifindex, address.address, address.peer))
        except KernelError as e:
            if e.errno != errno.EADDRNOTAVAIL:
                raise  # a secondary address goes with its primary one


def _make_placeholder(pod: Stack, was: Original, alias: str) -> None:
    """A link with the name, MAC and addresses that other plugins look for; it never comes up."""
    try:
        (link,) = pod.apply(CreateDummy(was.name, mac=was.mac, mtu=was.mtu))
    except KernelError as e:
        if e.errno != errno.EOPNOTSUPP:
            raise
        # A kernel without the module dummy: a bridge without ports, which stays down, serves as well.
        (link,) = pod.apply(CreateBridge(was.name, mac=was.mac, up=False))
        pod.apply(ChangeLink(link.ifindex, mtu=was.mtu))
    pod.apply(ChangeLink(link.ifindex, alias=alias))
    if was.disable_ipv6 is not None:
        sysctl.apply(pod.sysctls, [sysctl.Setting(original.disable_ipv6(was.name), was.disable_ipv6)])
    state.replay(pod, replays.addresses_of(link.ifindex, was.snapshot, Snapshot(was.snapshot.at)))


def _recorded(wanted: BridgePlan) -> dict[str, object] | None:
    if wanted.served is None:
        return None
    return {"ifname": wanted.names.tap, "settings": settings_json.encode(wanted.served)}
