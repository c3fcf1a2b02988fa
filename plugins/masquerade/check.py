"""CHECK: everything ADD did is still there. It only reads."""

from __future__ import annotations

from cnvnet.attachment.record import Record, UndoKeys
from cnvnet.attachment.sandbox import Pod
from cnvnet.cni.errors import CheckFailed
from cnvnet.kernel.links import Link
from cnvnet.plugins.binding import checks
from cnvnet.plugins.binding.pod_interface import is_global_unicast
from cnvnet.plugins.commands import BindingCall
from cnvnet.plugins.masquerade import plan
from cnvnet.plugins.masquerade.add import observe
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.plan import MasqueradePlan
from cnvnet.plugins.masquerade.state import MasqueradeState


def check(call: BindingCall[Config], record: Record | None) -> None:
    """By what an ADD would make now. Raises CNIError: 100 for what is not as ADD left it."""
    pod, config = call.pod, call.config
    seen = observe(pod.stack, call.request, call.result)
    wanted = plan.plan(config, seen)
    mtu = wanted.mtu
    if record is not None:
        # An older program did not look at routes, and kept no MTU.
        mtu = UndoKeys(record.undo).number("mtu") or plan.largest_mtu(config, seen.pod)
    bridge = checks.bridge(pod.stack, wanted.names.bridge, plan.BRIDGE_MAC) if wanted.bridge else None
    tap = checks.tap(pod.stack, wanted.names.tap, config.tap, bridge)
    checks.up(tap, mtu)
    if bridge is not None:
        checks.up(bridge, mtu)  # only now: its MTU follows the tap's
    else:
        checks.mac_of(tap, plan.BRIDGE_MAC)
    _check_addresses(pod, wanted, bridge or tap)
    checks.sysctls(pod.stack, _expected(wanted, record))
    with pod.kernel.nft(pod.netns) as nft:
        for each in wanted.rulesets:
            checks.table(nft, each, record)
    if config.guest.enabled and (record is None or record.guest is None):
        raise CheckFailed(f"the record of {call.key.ifname} has no settings for the guest")


def _check_addresses(pod: Pod, wanted: MasqueradePlan, gateway: Link) -> None:
    present = {address.address for address in pod.stack.addresses(gateway.ifindex)}
    expected = set(wanted.addresses)
    for address in sorted(expected - present, key=str):
        raise CheckFailed(f"address {address} is missing on {gateway.name}")
    for other in sorted(present - expected, key=str):
        if is_global_unicast(other.ip):
            raise CheckFailed(f"{gateway.name} has an address {other} that ADD did not make")


def _expected(wanted: MasqueradePlan, record: Record | None) -> dict[str, str]:
    expected = {setting.key: setting.value for setting in (*wanted.on_links, *wanted.global_)}
    # That routes of a router's advertisements had to be kept is only in the record by now.
    changed = MasqueradeState.parse(record.undo).sysctls if record is not None else ()
    return expected | {change.key: change.value for change in changed if change.value}
