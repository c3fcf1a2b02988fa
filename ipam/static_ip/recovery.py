"""Starting over when leases were lost: what is attached on this node is taken, so that no other VM gets it.

What the store still knows stays. Beyond that the records of this boot say which interfaces have addresses of
ours, and the pods' namespaces which ones. Those of VMs that are stopped are lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cnvnet.attachment.record import Record
from cnvnet.cni.errors import CNIError, InvalidConfig
from cnvnet.cni.fields import Address, Fields
from cnvnet.executables import STATIC_IP
from cnvnet.ipam.lease import Holder, Lease, LeaseKey, hold, in_order
from cnvnet.ipam.pool import Pool
from cnvnet.ipam.static_ip import recorded
from cnvnet.ipam.static_ip.ranges import parse_pool
from cnvnet.ipam.store.protocol import Ledger
from cnvnet.ipam.store.ref import StoreRef
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.rtnetlink import SCOPE_GLOBAL
from cnvnet.kernel.stack import Kernel, Stack
from cnvnet.vm.identity import ACTIVE


class Recovered(NamedTuple):
    """The leases that attached interfaces have now; `problems` says which of them could not be looked at."""

    leases: tuple[Lease, ...]
    problems: tuple[str, ...]

    @property
    def addresses(self) -> int:
        """How many addresses were taken."""
        return sum(len(each.ips) for each in self.leases)


class _PodInterface(NamedTuple):
    """What an interface has in its pod; `mac` "" where it is not there."""

    ips: tuple[Address, ...]
    mac: str


def start_over(
    store: Sqlite, records: Iterable[Record], kernel: Kernel, *, statedir: str, node: str, now: int
) -> Recovered:
    """Make a store that has lost leases usable, with the addresses of what is attached taken.

    `records` are all of the node's, `statedir` is where leases are that are nowhere else, `node` is the
    Kubernetes node's name or "". All networks of the store begin at once: one that was left out would give
    addresses out that are in use. Raises CNIError 7 for a store that has lost nothing.
    """
    problems: list[str] = []
    attached = [
        (record, seen)
        for record in records
        if _is_of(record, store.ref, statedir)
        if (seen := _look(record, kernel, problems)) is not None
    ]
    recovered = store.start_over(lambda ledger: _take_all(ledger, attached, node, now))
    return Recovered(recovered.leases, (*problems, *recovered.problems))


def _take_all(
    ledger: Ledger, attached: Iterable[tuple[Record, _PodInterface]], node: str, now: int
) -> Recovered:
    problems: list[str] = []
    keys = dict.fromkeys(_take(ledger, record, seen, node, now, problems) for record, seen in attached)
    leases = [lease for key in keys if (lease := ledger.get(key)) is not None]
    return Recovered(tuple(leases), tuple(problems))


def _is_of(record: Record, store: StoreRef, statedir: str) -> bool:
    """Whether an interface of this boot has its addresses from the store."""
    ours = record.undo.get("ipam_type") == STATIC_IP and isinstance(record.undo.get("ipam"), dict)
    return ours and record.boot_id == boot_id() and recorded.store(record.undo, statedir) == store


def _look(record: Record, kernel: Kernel, problems: list[str]) -> _PodInterface | None:
    """What the interface has, None if its namespace has gone."""
    try:
        with kernel.netns(record.netns_path) as netns:
            if netns.inode != record.netns_inode:
                return None
            with kernel.stack(netns) as stack:
                return _seen(stack, record)
    except FileNotFoundError:
        return None
    except (CNIError, OSError) as e:
        key = record.key
        problems.append(f"network {key.network}: container {key.container_id} ({key.ifname}): {e}")
        return None


def _seen(stack: Stack, record: Record) -> _PodInterface:
    link = stack.link(record.key.ifname)
    everything = [each for each in stack.addresses() if each.scope == SCOPE_GLOBAL]
    own = [each.address.ip for each in everything if link is not None and each.ifindex == link.ifindex]
    # A binding may have moved them; what is of the network's ranges is meant for it then.
    ips = own or list(_of_pool([each.address.ip for each in everything], record))
    return _PodInterface(in_order(dict.fromkeys(ips)), link.mac if link is not None else "")


def _of_pool(ips: Iterable[Address], record: Record) -> Iterator[Address]:
    given = _pool(record)
    return (ip for ip in ips if given is not None and given.range_of(ip) is not None)


def _pool(record: Record) -> Pool | None:
    fields = Fields({"ipam": record.undo["ipam"]})
    try:
        return parse_pool(fields, fields.fields("ipam"))
    except InvalidConfig:
        return None


def _take(
    ledger: Ledger, record: Record, seen: _PodInterface, node: str, now: int, problems: list[str]
) -> LeaseKey:
    """Make the interface a holder of what it has; what another lease has stays there."""
    network, container_id, ifname = record.key.network, record.key.container_id, record.key.ifname
    former = ledger.held_by(network, container_id, ifname)
    key = former.key if former is not None else _key(record)
    known = ledger.get(key)
    ips: list[Address] = []
    for ip in seen.ips:
        owner = ledger.owner_of(network, ip)
        if isinstance(owner, Lease) and owner.key != key:
            problems.append(f"network {network}: {ip} of {key} is also leased to {owner.key}")
        else:
            ips.append(ip)
    if not ips and known is None:
        return key
    pod = record.pod
    holder = Holder(
        container_id=container_id,
        ifname=ifname,
        role=ACTIVE,
        netns=record.netns_path,
        inode=record.netns_inode,
        boot_id=record.boot_id,
        since=now,
        node=node if pod is not None else "",
        pod=str(pod) if pod is not None else "",
        pod_uid=pod.uid if pod is not None else "",
    )
    uid = record.vm.uid if record.vm is not None else ""
    base = known or Lease(key, (), _mac(ledger, network, seen.mac), uid)
    after = hold(base._replace(ips=in_order({*base.ips, *ips})), holder)
    ledger.change(known, after, until=0)
    return key


def _mac(ledger: Ledger, network: str, mac: str) -> str:
    return mac if mac and ledger.owner_of_mac(network, mac) is None else ""


def _key(record: Record) -> LeaseKey:
    """Of the VM as the record has it; a record of an older version does not know it."""
    # Inside Kubernetes the API has said it, which has named the VirtualMachineInstance as well.
    if record.vm is not None and (record.pod is None or record.vm.vmi):
        return LeaseKey(record.key.network, record.vm.namespace, record.vm.name, record.key.ifname)
    return LeaseKey(record.key.network, "", record.key.container_id, record.key.ifname)
