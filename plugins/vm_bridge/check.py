"""CHECK: everything ADD did is still there. It only reads, and goes by what the record says was there."""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import Any

from cnvnet.attachments import ADDED, Record
from cnvnet.guest import settings_json
from cnvnet.guest.settings import Settings
from cnvnet.kernel.links import Link
from cnvnet.plugins.binding import Call
from cnvnet.plugins.vm_bridge import original, plan, ruleset
from cnvnet.plugins.vm_bridge.config import Config
from cnvnet.plugins.vm_bridge.leftovers import Leftovers
from cnvnet.plugins.vm_bridge.original import Known, Original
from cnvnet.vm import checks, names, stand_in, traces
from cnvnet.vm.checks import wrong
from cnvnet.vm.names import Names
from cnvnet.vm.pod import Pod


def check(call: Call[Config], record: Record | None) -> None:
    """Raises CNIError: 100 for what is not as ADD left it."""
    was = Leftovers.parse(record.undo).was if record is not None else None
    if record is None or record.state != ADDED or was is None:
        raise wrong(f"there is no record of {call.key.ifname}, or none that is complete")
    pod, called = call.pod, names.of(was.name)
    bridge = _check_bridge(pod, called, was)
    mtu = min(was.mtu, plan.MAX_MTU)
    tap = checks.tap(pod.stack, called.tap, call.config.tap, bridge)
    checks.up(tap, mtu)
    _check_mac(tap, record)
    _check_nic(pod, called, was, bridge)
    checks.up(bridge, mtu)
    _check_stand_in(pod, was)
    _check_marks(pod, called, traces.alias(call.key))
    expected = {setting.key: setting.value for setting in (*plan.GLOBAL, *plan.settings_of_links(called))}
    checks.sysctls(pod.stack, expected | {original.disable_ipv6(called.nic): "1"})
    served = _served(record)
    if plan.serves(call.config, _addressed(was)) != (served is not None):
        state = "does not say" if served is None else "still says"
        raise wrong(f"the record of {call.key.ifname} {state} what the guest is to be told")
    with pod.kernel.nft(pod.netns) as nft:
        checks.table(nft, ruleset.plan(called, served), record)


def _addressed(was: Original) -> Known:
    """No more of the pod than makes a difference here."""
    return Known(was.name, was.mac, was.mtu, was.addresses)


def _served(record: Record) -> Settings | None:
    document: Any = record.guest["settings"] if record.guest is not None else None
    return settings_json.parse(document) if document is not None else None


def _check_bridge(pod: Pod, called: Names, was: Original) -> Link:
    link = checks.bridge(pod.stack, called.bridge, plan.wire_mac(was.mac))
    own = link.bridge
    if own is not None and own.multicast_snooping:
        raise wrong(f"{link.name} snoops multicast (ip link set {link.name} type bridge mcast_snooping 0)")
    if own is not None and own.group_fwd_mask != plan.GROUP_FWD_MASK:
        raise wrong(
            f"group_fwd_mask of {link.name} is {own.group_fwd_mask:#x}, not {plan.GROUP_FWD_MASK:#x}"
        )
    there = [address.address for address in pod.stack.addresses(link.ifindex)]
    if plan.first_address(_addressed(was), IPv4Interface) is not None and not there:
        raise wrong(f"the address of the guest's DHCP server is missing on {link.name}")
    return link


def _check_mac(tap: Link, record: Record) -> None:
    """With the guest's own the bridge would keep what is for the guest."""
    added = traces.text(record.undo, "tap_mac")
    if added and tap.mac != added:
        raise wrong(f"the MAC of {tap.name} is {tap.mac}, not {added}")


def _check_marks(pod: Pod, called: Names, alias: str) -> None:
    """By their aliases the links are known, should the record be lost."""
    for name in called:
        link = pod.stack.link(name)
        if link is not None and link.alias != alias:
            raise wrong(f"the alias of {name} is {link.alias!r} (ip link set {name} alias {alias})")


def _check_nic(pod: Pod, called: Names, was: Original, bridge: Link) -> None:
    link = pod.stack.link(called.nic)
    if link is None or link.ifindex != was.ifindex:
        raise wrong(f"{called.nic}, the interface of the pod, is missing")
    if link.mac != plan.wire_mac(was.mac):
        raise wrong(f"the MAC of {link.name} is {link.mac}, not {plan.wire_mac(was.mac)}")
    checks.attached(link, bridge)
    if link.port is not None and link.port.learning:
        raise wrong(f"{link.name} learns (bridge link set dev {link.name} learning off)")
    checks.up(link, was.mtu)
    for address in pod.stack.addresses(link.ifindex):
        raise wrong(f"{link.name} has an address {address.address} that nobody asked for")


def _check_stand_in(pod: Pod, was: Original) -> None:
    link = pod.stack.link(was.name)
    if link is None or link.kind not in stand_in.KINDS:
        raise wrong(f"{was.name}, which stands in for the pod's interface, is missing")
    if (link.mac, link.mtu) != (was.mac, was.mtu):
        raise wrong(f"{was.name} has MAC {link.mac} and MTU {link.mtu}, not {was.mac} and {was.mtu}")
    if link.master:
        raise wrong(f"{was.name} is attached to link {link.master} (ip link set {was.name} nomaster)")
    if link.up:
        raise wrong(f"{was.name} is up: the pod's kernel would take what it sends for sent")
    there = {address.address for address in pod.stack.addresses(link.ifindex)}
    for address in was.addresses:
        if address.address not in there:
            raise wrong(f"address {address.address} is missing on {was.name}")
