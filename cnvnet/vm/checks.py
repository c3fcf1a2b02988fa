"""What CHECK looks at in a pod, whatever the binding: the tap, the nftables, the sysctls. It only reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cnvnet.attachments import Record
from cnvnet.cni.errors import CNIError
from cnvnet.kernel.links import Link
from cnvnet.kernel.nft import Nft
from cnvnet.kernel.stack import Stack
from cnvnet.vm import traces
from cnvnet.vm.ruleset import Ruleset
from cnvnet.vm.tap_options import TapOptions

# CHECK found something else than ADD left: 100 and above are a plugin's own codes.
NOT_AS_ADDED: Final = 100


def wrong(msg: str) -> CNIError:
    return CNIError(NOT_AS_ADDED, msg)


def bridge(pod: Stack, name: str, mac: str) -> Link:
    """The bridge of this name and MAC address; CNIError 100."""
    link = pod.link(name)
    if link is None or link.kind != "bridge":
        raise wrong(f"bridge {name} is missing")
    if link.mac != mac:
        raise wrong(f"the MAC of {name} is {link.mac}, not {mac}")
    return link


def tap(pod: Stack, name: str, options: TapOptions, master: Link) -> Link:
    """The tap as the configuration wants it, attached to the bridge; CNIError 100."""
    link = pod.link(name)
    if link is None or link.kind != "tun":
        raise wrong(f"tap {name} is missing")
    attached(link, master)
    tun = link.tun
    if tun is not None and (tun.owner, tun.group) != (options.owner, options.group):
        raise wrong(f"{name} belongs to {tun.owner}:{tun.group}, not {options.owner}:{options.group}")
    if tun is not None and tun.multi_queue != options.multi_queue:
        raise wrong(f"{name} was made for {'many queues' if tun.multi_queue else 'one queue'}")
    return link


def attached(link: Link, master: Link) -> None:
    """That the link is a port of the bridge; CNIError 100."""
    if link.master != master.ifindex:
        raise wrong(f"{link.name} is not attached to {master.name}")


def up(link: Link, mtu: int) -> None:
    """That the link is up and has this MTU; CNIError 100."""
    if link.mtu != mtu:
        raise wrong(f"mtu of {link.name} is {link.mtu}, not {mtu}")
    if not link.up:
        raise wrong(f"{link.name} is down")


def sysctls(pod: Stack, expected: Mapping[str, str]) -> None:
    """That those there are have these values; CNIError 100."""
    for key, value in expected.items():
        now = pod.sysctls.get(key)
        if now is not None and now != value:
            raise wrong(f"sysctl {key} is {now}, not {value}")


def table(nft: Nft, wanted: Ruleset, record: Record | None) -> None:
    """Rules are known by their comments, in their order; elements by what they are. CNIError 100.

    What is missing is named. Of anything else only the record says that somebody has changed it.
    """
    where = wanted.table
    for chain in wanted.chains:
        there = [rule.comment for rule in nft.rules(where.family, where.name, chain.name)]
        expected = [rule.comment for rule in chain.rules]
        for comment in expected:
            if comment not in there:
                raise wrong(f'{where}, chain {chain.name}: the rule "{comment}" is missing')
        if there != expected:
            raise wrong(f"{where}, chain {chain.name}: rules that nobody asked for, or in another order")
    missing = nft.missing(wanted.elements)
    if missing:
        raise wrong(f"{where}: {' . '.join(missing[0].key)} is missing in set {missing[0].set}")
    loaded = traces.contents(record.undo).get(str(where)) if record is not None else None
    if loaded and loaded != nft.contents(*where):
        raise wrong(f"{where}: a chain, a rule or a set is not as ADD made it")
