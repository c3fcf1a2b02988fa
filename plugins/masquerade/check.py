"""CHECK: everything ADD did is still there. It only reads."""

from __future__ import annotations

from cnvnet.attachments import Record
from cnvnet.kernel.links import Link
from cnvnet.plugins.binding import Call
from cnvnet.plugins.masquerade import plan
from cnvnet.plugins.masquerade.addition import observe
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.leftovers import Leftovers
from cnvnet.plugins.masquerade.plan import Wanted
from cnvnet.vm import checks
from cnvnet.vm.checks import wrong
from cnvnet.vm.pod import Pod
from cnvnet.vm.pod_interface import is_global_unicast


def check(call: Call[Config], record: Record | None) -> None:
    """By what an ADD would make now. Raises CNIError: 100 for what is not as ADD left it."""
    pod, config = call.pod, call.config
    wanted = plan.plan(config, observe(pod.stack, call.request, call.result))
    bridge = checks.bridge(pod.stack, wanted.names.bridge, plan.BRIDGE_MAC)
    checks.up(checks.tap(pod.stack, wanted.names.tap, config.tap, bridge), wanted.mtu)
    checks.up(bridge, wanted.mtu)  # only now: its MTU follows the tap's
    _check_addresses(pod, wanted, bridge)
    checks.sysctls(pod.stack, _expected(wanted, record))
    with pod.kernel.nft(pod.netns) as nft:
        for each in wanted.rulesets:
            checks.table(nft, each, record)
    if config.guest.enabled and (record is None or record.guest is None):
        raise wrong(f"the record of {call.key.ifname} does not say what the guest is to be told")


def _check_addresses(pod: Pod, wanted: Wanted, bridge: Link) -> None:
    there = {address.address for address in pod.stack.addresses(bridge.ifindex)}
    expected = set(wanted.addresses)
    for address in sorted(expected - there, key=str):
        raise wrong(f"address {address} is missing on {bridge.name}")
    for other in sorted(there - expected, key=str):
        if is_global_unicast(other.ip):
            raise wrong(f"{bridge.name} has an address {other} that nobody asked for")


def _expected(wanted: Wanted, record: Record | None) -> dict[str, str]:
    expected = {setting.key: setting.value for setting in (*wanted.on_links, *wanted.global_)}
    # Of routes that a router told, only the record still says that they had to be kept.
    changed = Leftovers.parse(record.undo).sysctls if record is not None else ()
    return expected | {change.key: change.value for change in changed if change.value}
