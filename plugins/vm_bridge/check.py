"""CHECK: everything ADD did is still there. It only reads, and goes by what the record says was there."""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import Any

from cnvnet.attachment.record import ADDED, Record, UndoKeys
from cnvnet.attachment.sandbox import Pod
from cnvnet.cni.errors import CheckFailed
from cnvnet.guest import settings_json
from cnvnet.guest.settings import Settings
from cnvnet.kernel.links import Link
from cnvnet.kernel.tap import MAX_MTU
from cnvnet.plugins.binding import checks, ownership, placeholder
from cnvnet.plugins.commands import BindingCall
from cnvnet.plugins.vm_bridge import original, plan, ruleset
from cnvnet.plugins.vm_bridge.config import Config
from cnvnet.plugins.vm_bridge.original import KnownNetwork, Original
from cnvnet.plugins.vm_bridge.state import BridgeState
from cnvnet.vm import names
from cnvnet.vm.names import PodLinkNames


def check(call: BindingCall[Config], record: Record | None) -> None:
    """Raises CNIError: 100 for what is not as ADD left it."""
    was = BridgeState.parse(record.undo).was if record is not None else None
    if record is None or record.state != ADDED or was is None:
        raise CheckFailed(f"there is no record of {call.key.ifname}, or none that is complete")
    pod, called = call.pod, names.of(was.name)
    bridge = _check_bridge(pod, called, was)
    # An older program kept no MTU: then it is the one that ADD chooses where no route allows less.
    mtu = UndoKeys(record.undo).number("mtu") or min(was.mtu, MAX_MTU)
    tap = checks.tap(pod.stack, called.tap, call.config.tap, bridge)
    checks.up(tap, mtu)
    _check_mac(tap, record)
    _check_nic(pod, called, was, bridge)
    checks.up(bridge, mtu)
    _check_placeholder(pod, was)
    _check_marks(pod, called, ownership.alias(call.key))
    expected = {setting.key: setting.value for setting in (*plan.GLOBAL, *plan.settings_of_links(called))}
    checks.sysctls(pod.stack, expected | {original.disable_ipv6(called.nic): "1"})
    served = _served(record)
    if plan.serves(call.config, _addressed(was)) != (served is not None):
        state = "has no" if served is None else "still has"
        raise CheckFailed(f"the record of {call.key.ifname} {state} settings for the guest")
    wire = ruleset.plan_wire(called)
    with pod.kernel.nft(pod.netns) as nft:
        checks.table(nft, ruleset.plan(called, served), record)
        # An older program made none, nor does a kernel that cannot.
        if UndoKeys(record.undo).fields("contents").get(str(wire.table)):
            checks.table(nft, wire, record)


def _addressed(was: Original) -> KnownNetwork:
    """No more of the pod than makes a difference here."""
    return KnownNetwork(was.name, was.mac, was.mtu, was.addresses)


def _served(record: Record) -> Settings | None:
    document: Any = record.guest["settings"] if record.guest is not None else None
    return settings_json.parse(document) if document is not None else None


def _check_bridge(pod: Pod, called: PodLinkNames, was: Original) -> Link:
    link = checks.bridge(pod.stack, called.bridge, plan.wire_mac(was.mac))
    own = link.bridge
    if own is not None and own.multicast_snooping:
        raise CheckFailed(
            f"{link.name} snoops multicast (ip link set {link.name} type bridge mcast_snooping 0)"
        )
    if own is not None and own.group_fwd_mask != plan.GROUP_FWD_MASK:
        raise CheckFailed(
            f"group_fwd_mask of {link.name} is {own.group_fwd_mask:#x}, not {plan.GROUP_FWD_MASK:#x}"
        )
    addresses = [address.address for address in pod.stack.addresses(link.ifindex)]
    if plan.first_address(_addressed(was), IPv4Interface) is not None and not addresses:
        raise CheckFailed(f"the address of the guest's DHCP server is missing on {link.name}")
    return link


def _check_mac(tap: Link, record: Record) -> None:
    """With the guest's own the bridge would keep what is for the guest."""
    added = UndoKeys(record.undo).text("tap_mac")
    if added and tap.mac != added:
        raise CheckFailed(f"the MAC of {tap.name} is {tap.mac}, not {added}")


def _check_marks(pod: Pod, called: PodLinkNames, alias: str) -> None:
    """By their aliases the links are known, should the record be lost."""
    for name in called:
        link = pod.stack.link(name)
        if link is not None and link.alias != alias:
            raise CheckFailed(f"the alias of {name} is {link.alias!r} (ip link set {name} alias {alias})")


def _check_nic(pod: Pod, called: PodLinkNames, was: Original, bridge: Link) -> None:
    link = pod.stack.link(called.nic)
    if link is None or link.ifindex != was.ifindex:
        raise CheckFailed(f"{called.nic}, the interface of the pod, is missing")
    if link.mac != plan.wire_mac(was.mac):
        raise CheckFailed(f"the MAC of {link.name} is {link.mac}, not {plan.wire_mac(was.mac)}")
    checks.attached(link, bridge)
    if link.port is not None and link.port.learning:
        raise CheckFailed(f"{link.name} learns (bridge link set dev {link.name} learning off)")
    checks.up(link, was.mtu)
    for address in pod.stack.addresses(link.ifindex):
        raise CheckFailed(f"{link.name} has an address {address.address} that ADD did not leave there")


def _check_placeholder(pod: Pod, was: Original) -> None:
    link = pod.stack.link(was.name)
    if link is None or link.kind not in placeholder.KINDS:
        raise CheckFailed(f"{was.name}, which stands in for the pod's interface, is missing")
    if (link.mac, link.mtu) != (was.mac, was.mtu):
        raise CheckFailed(f"{was.name} has MAC {link.mac} and MTU {link.mtu}, not {was.mac} and {was.mtu}")
    if link.master:
        raise CheckFailed(f"{was.name} is attached to link {link.master} (ip link set {was.name} nomaster)")
    if link.up:
        raise CheckFailed(f"{was.name} is up: the pod's kernel would take what it sends for sent")
    present = {address.address for address in pod.stack.addresses(link.ifindex)}
    for address in was.addresses:
        if address.address not in present:
            raise CheckFailed(f"address {address.address} is missing on {was.name}")
