"""CHECK: everything ADD did is still there. It only reads."""

from __future__ import annotations

from typing import Final

from cnvnet.attachments import Key, Record
from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.kernel.links import Link
from cnvnet.kernel.nft import Nft
from cnvnet.plugins.masquerade import plan, ruleset
from cnvnet.plugins.masquerade.addition import Pod, observe
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.leftovers import Leftovers
from cnvnet.plugins.masquerade.plan import Wanted
from cnvnet.plugins.masquerade.ruleset import Ruleset
from cnvnet.vm.pod_interface import is_global_unicast

# CHECK found something else than ADD left: 100 and above are a plugin's own codes.
NOT_AS_ADDED: Final = 100


class Check:
    """A CHECK of one attachment by what an ADD would make now."""

    def __init__(self, request: Request, config: Config, pod: Pod, result: Result | None) -> None:
        self._request = request
        self._config = config
        self._pod = pod
        self._result = result

    def run(self, key: Key, record: Record | None) -> None:
        """Raises CNIError: 100 for what is not as ADD left it."""
        wanted = plan.plan(self._config, observe(self._pod.stack, self._request, self._result))
        bridge = self._bridge(wanted)
        self._tap(wanted, bridge)
        _check_up(bridge, wanted.mtu)  # only now: its MTU follows the tap's
        self._addresses(wanted, bridge)
        self._sysctls(wanted, record)
        with self._pod.kernel.nft(self._pod.netns) as nft:
            for each in wanted.rulesets:
                _check_table(nft, each)
        if self._config.guest.enabled and (record is None or record.guest is None):
            raise wrong(f"the record of {key.ifname} does not say what the guest is to be told")

    def _bridge(self, wanted: Wanted) -> Link:
        name = wanted.names.bridge
        link = self._pod.stack.link(name)
        if link is None or link.kind != "bridge":
            raise wrong(f"bridge {name} is missing")
        if link.mac != plan.BRIDGE_MAC:
            raise wrong(f"the MAC of {name} is {link.mac}, not {plan.BRIDGE_MAC}")
        return link

    def _tap(self, wanted: Wanted, bridge: Link) -> None:
        name, options = wanted.names.tap, self._config.tap
        link = self._pod.stack.link(name)
        if link is None or link.kind != "tun":
            raise wrong(f"tap {name} is missing")
        if link.master != bridge.ifindex:
            raise wrong(f"{name} is not attached to {bridge.name}")
        tun = link.tun
        if tun is not None and (tun.owner, tun.group) != (options.owner, options.group):
            raise wrong(f"{name} belongs to {tun.owner}:{tun.group}, not {options.owner}:{options.group}")
        if tun is not None and tun.multi_queue != options.multi_queue:
            raise wrong(f"{name} was made for {'many queues' if tun.multi_queue else 'one queue'}")
        _check_up(link, wanted.mtu)

    def _addresses(self, wanted: Wanted, bridge: Link) -> None:
        there = {address.address for address in self._pod.stack.addresses(bridge.ifindex)}
        gateways = {family.gateway for family in wanted.families}
        for gateway in sorted(gateways - there, key=str):
            raise wrong(f"address {gateway} is missing on {bridge.name}")
        for other in sorted(there - gateways, key=str):
            if is_global_unicast(other.ip):
                raise wrong(f"{bridge.name} has an address {other} that nobody asked for")

    def _sysctls(self, wanted: Wanted, record: Record | None) -> None:
        expected = {setting.key: setting.value for setting in (*wanted.on_links, *wanted.global_)}
        # Of routes that a router told, only the record still says that they had to be kept.
        changed = Leftovers.parse(record.undo).sysctls if record is not None else ()
        expected |= {change.key: change.value for change in changed if change.value}
        for key, value in expected.items():
            now = self._pod.stack.sysctls.get(key)
            if now is not None and now != value:
                raise wrong(f"sysctl {key} is {now}, not {value}")


def _check_up(link: Link, mtu: int) -> None:
    if link.mtu != mtu:
        raise wrong(f"mtu of {link.name} is {link.mtu}, not {mtu}")
    if not link.up:
        raise wrong(f"{link.name} is down")


def _check_table(nft: Nft, wanted: Ruleset) -> None:
    """Rules are known by their comments, in their order; elements by what they are."""
    table = f"{wanted.family} {ruleset.TABLE}"
    for chain in wanted.chains:
        there = [rule.comment for rule in nft.rules(wanted.family, ruleset.TABLE, chain.name)]
        expected = [rule.comment for rule in chain.rules]
        for comment in expected:
            if comment not in there:
                raise wrong(f'table {table}, chain {chain.name}: the rule "{comment}" is missing')
        if there != expected:
            raise wrong(
                f"table {table}, chain {chain.name}: rules that nobody asked for, or in another order"
            )
    missing = nft.missing(wanted.elements)
    if missing:
        raise wrong(f"table {table}: {' . '.join(missing[0].key)} is missing in set {missing[0].set}")


def wrong(msg: str) -> CNIError:
    return CNIError(NOT_AS_ADDED, msg)
