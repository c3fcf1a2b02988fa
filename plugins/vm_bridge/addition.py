"""One ADD: the record before the first deed and after the last, and an undo that goes by what is there."""

from __future__ import annotations

import errno
import time
from ipaddress import IPv6Address
from typing import Any, Final

from cnvnet.attachments import ADDED, ADDING, Record, Slot
from cnvnet.attempts import Undo
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.cni.result import DNS, Result
from cnvnet.diagnostics import say
from cnvnet.guest import provider, settings_json
from cnvnet.kernel import snapshots
from cnvnet.kernel.addresses import AddAddress, DeleteAddress
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.links import ChangeLink, CreateBridge, CreateDummy, Link
from cnvnet.kernel.neighbours import ResolveNeighbour
from cnvnet.kernel.snapshots import Snapshot
from cnvnet.kernel.stack import KernelError, Stack
from cnvnet.plugins.binding import Call
from cnvnet.plugins.vm_bridge import leftovers, original, plan, ruleset
from cnvnet.plugins.vm_bridge.config import Config
from cnvnet.plugins.vm_bridge.leftovers import Leftovers
from cnvnet.plugins.vm_bridge.original import Original
from cnvnet.plugins.vm_bridge.plan import Wanted
from cnvnet.vm import names, pod_interface, sysctls, traces
from cnvnet.vm import ruleset as vm_ruleset

# A gateway that is there answers at once, unless its address is still under detection, or a bridge with STP
# on the way lets nothing through for twice its forward delay (15 s). It is waited for, because a guest that
# has not been told of its router is never told.
_SECONDS: Final = 35.0


class Addition:
    """An ADD whose configuration is sound and whose attachment has nothing left of an earlier one."""

    def __init__(self, call: Call[Config]) -> None:
        self._call = call
        self._pod = call.pod

    def run(self, slot: Slot) -> Result:
        """Raises CNIError or OSError; nothing of the attachment is left then."""
        call, stack, netns = self._call, self._pod.stack, self._pod.netns
        link = pod_interface.find(stack, call.request, call.result)
        plan.ensure_fit(link)
        plan.ensure_free(names.of(link.name), stack.links())
        was = original.observe(stack, link)
        wanted = self._plan(was)
        left = Leftovers(was, sysctls.changes(stack, plan.GLOBAL, call.others))
        record = Record(call.key, call.request.netns, netns.inode, boot_id(), ADDING, left.to_json())
        with Undo() as undo:
            undo.finally_("record", slot.remove)
            slot.write(record)
            # One for all: what has been done is there to be seen, and what it was before is in the record.
            undo.push(link.name, self._restore, left)
            added = {**record.undo, **self._wire(wanted, was)}
            guest = _recorded(wanted)
            slot.write(record._replace(state=ADDED, undo=added, guest=guest))
            if guest is not None:
                provider.serve(call.env, call.config.guest, call.key)
        return call.result or Result()

    def _plan(self, was: Original) -> Wanted:
        stack, config = self._pod.stack, self._call.config
        known = original.known(was)
        router = plan.unknown_router(known) if plan.serves(config, known) else None
        router_mac = resolved(stack, was, router) if router is not None else ""
        if router is not None and not router_mac:
            silent = f"{was.name}: the gateway {router} does not answer"
            if config.guest.required:
                raise CNIError(TRY_AGAIN_LATER, silent)
            say(f"{silent}: the guest gets no IPv6 default route")
        return plan.plan(
            config,
            known,
            taken=(address.address.ip for address in stack.addresses()),
            router_mac=router_mac,
            dns=self._call.result.dns if self._call.result is not None else DNS(),
        )

    def _restore(self, left: Leftovers) -> None:
        mine = sysctls.unshared(left.sysctls, self._call.others)
        errors = leftovers.remove(self._pod, left._replace(sysctls=mine))
        if errors:
            raise errors[0]

    def _wire(self, wanted: Wanted, was: Original) -> dict[str, Any]:
        """The table before the links are there, and they up only when all is done. Returns what CHECK is to
        find: the table's contents and the tap's MAC address.
        """
        pod, alias = self._pod.stack, traces.alias(self._call.key)
        kernel, netns = self._pod.kernel, self._pod.netns
        table = ruleset.plan(wanted.names, wanted.served)
        vm_ruleset.load(kernel, netns, table)
        (bridge,) = pod.apply(wanted.bridge)
        (tap,) = pod.apply(wanted.tap)
        pod.apply(
            ChangeLink(bridge.ifindex, alias=alias),
            ChangeLink(tap.ifindex, alias=alias, mtu=wanted.mtu, master=bridge.ifindex),
        )
        sysctls.apply(pod, (*plan.GLOBAL, *wanted.on_links))
        _take(pod, wanted, was, bridge, alias)
        _stand_in(pod, was, alias)
        if wanted.server is not None:
            pod.apply(AddAddress(bridge.ifindex, wanted.server))
        pod.apply(*(ChangeLink(each, up=True) for each in (bridge.ifindex, tap.ifindex, was.ifindex)))
        return {"contents": vm_ruleset.contents(kernel, netns, [table]), "tap_mac": tap.mac}


def resolved(pod: Stack, was: Original, address: IPv6Address) -> str:
    """The MAC address of somebody on the link, "" if nobody answers."""
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


def _take(pod: Stack, wanted: Wanted, was: Original, bridge: Link, alias: str) -> None:
    """The pod's interface becomes a port of the bridge, with neither MAC nor addresses of the guest's."""
    # It learns nothing: behind it is everything that is not the guest.
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
    sysctls.apply(pod, [sysctls.Setting(original.disable_ipv6(wanted.names.nic), "1", required=False)])
    for address in pod.addresses(was.ifindex):
        try:
            pod.apply(DeleteAddress(was.ifindex, address.address, address.peer))
        except KernelError as e:
            if e.errno != errno.EADDRNOTAVAIL:
                raise  # a secondary address goes with its primary one


def _stand_in(pod: Stack, was: Original, alias: str) -> None:
    """A link that looks like the pod's interface to whoever looks for that, and never comes up."""
    try:
        (link,) = pod.apply(CreateDummy(was.name, mac=was.mac, mtu=was.mtu))
    except KernelError as e:
        if e.errno != errno.EOPNOTSUPP:
            raise
        (link,) = pod.apply(CreateBridge(was.name, mac=was.mac, up=False))
        pod.apply(ChangeLink(link.ifindex, mtu=was.mtu))
    pod.apply(ChangeLink(link.ifindex, alias=alias))
    if was.disable_ipv6 is not None:
        sysctls.apply(pod, [sysctls.Setting(original.disable_ipv6(was.name), was.disable_ipv6)])
    leftovers.replay(pod, snapshots.addresses_of(link.ifindex, was.snapshot, Snapshot(was.snapshot.at)))


def _recorded(wanted: Wanted) -> dict[str, object] | None:
    if wanted.served is None:
        return None
    return {"ifname": wanted.names.tap, "settings": settings_json.encode(wanted.served)}
