"""What CHECK compares in a pod for both bindings: the tap, the nftables, the sysctls. It only reads."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from cnvnet.attachment.record import Record, UndoKeys
from cnvnet.cni.errors import CheckFailed
from cnvnet.kernel.links import Link
from cnvnet.kernel.nft.tables import Nft, NftError
from cnvnet.kernel.stack import Stack
from cnvnet.plugins.binding.ruleset import Ruleset, TableName
from cnvnet.plugins.binding.tap_options import TapOptions


def bridge(pod: Stack, name: str, mac: str) -> Link:
    """The bridge of this name and MAC address; CNIError 100."""
    link = pod.link(name)
    if link is None or link.kind != "bridge":
        raise CheckFailed(f"bridge {name} is missing")
    mac_of(link, mac)
    return link


def mac_of(link: Link, mac: str) -> None:
    """That the link has this MAC address; CNIError 100."""
    if link.mac != mac:
        raise CheckFailed(f"the MAC of {link.name} is {link.mac}, not {mac}")


def tap(pod: Stack, name: str, options: TapOptions, master: Link | None) -> Link:
    """The tap as the configuration wants it, attached to the bridge, or to none; CNIError 100."""
    link = pod.link(name)
    if link is None or link.kind != "tun":
        raise CheckFailed(f"tap {name} is missing")
    if master is not None:
        attached(link, master)
    elif link.master:
        raise CheckFailed(f"{name} is attached to link {link.master} (ip link set {name} nomaster)")
    tun = link.tun
    if tun is not None and (tun.owner, tun.group) != (options.owner, options.group):
        raise CheckFailed(f"{name} belongs to {tun.owner}:{tun.group}, not {options.owner}:{options.group}")
    if tun is not None and tun.multi_queue != options.multi_queue:
        raise CheckFailed(f"{name} was made for {'many queues' if tun.multi_queue else 'one queue'}")
    return link


def attached(link: Link, master: Link) -> None:
    """That the link is a port of the bridge; CNIError 100."""
    if link.master != master.ifindex:
        raise CheckFailed(f"{link.name} is not attached to {master.name}")


def up(link: Link, mtu: int) -> None:
    """That the link is up and has this MTU; CNIError 100."""
    if link.mtu != mtu:
        raise CheckFailed(f"mtu of {link.name} is {link.mtu}, not {mtu}")
    if not link.up:
        raise CheckFailed(f"{link.name} is down")


def sysctls(pod: Stack, expected: Mapping[str, str]) -> None:
    """That those there are have these values; CNIError 100."""
    for key, value in expected.items():
        now = pod.sysctls.get(key)
        if now is not None and now != value:
            raise CheckFailed(f"sysctl {key} is {now}, not {value}")


def _contents(nft: Nft, where: TableName) -> str:
    """What the record would say of the table now, "" where it is missing."""
    try:
        return nft.contents(*where)
    except NftError as e:
        if e.errno != errno.ENOENT:
            raise
        return ""


def table(nft: Nft, wanted: Ruleset, record: Record | None) -> None:
    """Rules are known by their comments, in their order; elements by what they are. CNIError 100.

    What is missing is named. Of anything else only the record says that it was changed. A table as
    its record says is right, though an older version of the project has planned it otherwise.
    """
    where = wanted.table
    recorded = UndoKeys(record.undo).fields("contents").get(str(where)) if record is not None else None
    if recorded and recorded == _contents(nft, where):
        return
    for chain in wanted.chains:
        present = [rule.comment for rule in nft.rules(where.family, where.name, chain.name)]
        expected = [rule.comment for rule in chain.rules]
        for comment in expected:
            if comment not in present:
                raise CheckFailed(f'{where}, chain {chain.name}: the rule "{comment}" is missing')
        if present != expected:
            problem = "rules that ADD did not make, or in another order"
            raise CheckFailed(f"{where}, chain {chain.name}: {problem}")
    missing = nft.missing(wanted.elements)
    if missing:
        raise CheckFailed(f"{where}: {' . '.join(missing[0].key)} is missing in set {missing[0].set}")
    if recorded:
        raise CheckFailed(f"{where}: a chain, a rule or a set is not as ADD made it")
