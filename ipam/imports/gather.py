"""From files of several kinds to leases: what can be one, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from cnvnet.attachment.record import Record
from cnvnet.cni.environment import is_name
from cnvnet.cni.errors import InvalidConfig
from cnvnet.ipam.imports import owners, sources
from cnvnet.ipam.imports.documents import Document
from cnvnet.ipam.imports.owners import NotAVm, Owners
from cnvnet.ipam.imports.sources import Given
from cnvnet.ipam.lease import Lease, LeaseKey, in_order
from cnvnet.ipam.store import convert, objects
from cnvnet.kube.api import Api

_VM_LEASE: Final = "cnvnet.io/VMLease"
# What the leases say of where their addresses come from.
_SOURCE: Final = "cnvctl"


class Gathered(NamedTuple):
    """`left_out` is a line for each address that is no VM's, or of which nothing says whose it is."""

    leases: tuple[Lease, ...]
    left_out: tuple[str, ...]


def gather(
    documents: Iterable[Document],
    given: Iterable[Given],
    *,
    network: str,
    interface: str,
    records: Iterable[Record],
    api: Api | None,
    now: int,
) -> Gathered:
    """The leases of documents and of what folders of host-local have `given`.

    `network` is the name of what other managers have given without one, and of all that is not called as its
    network is here. `records` are this node's. Raises InvalidConfig naming file and key, ApiError.
    """
    found = list(documents)
    leases = [convert.read(each.content, each.where) for each in found if not each.kind]
    foreign = [*given]
    for each in found:
        if each.kind == sources.IP_POOL:
            foreign += sources.whereabouts(each, _named(network, each.where))
        elif each.kind == sources.KUBE_OVN_IP:
            foreign.append(sources.kube_ovn(each, network, interface))
        elif each.kind == _VM_LEASE:
            stored = objects.read_lease(each.content).lease
            leases += [stored._replace(holders=())] if stored is not None else []
        elif each.kind not in ("", owners.POD, owners.INSTANCE):
            raise InvalidConfig(f"{each.where}: {each.kind} is no kind that has addresses of VMs")
    known = Owners((each for each in found if each.kind in (owners.POD, owners.INSTANCE)), api)
    by_container = {(each.key.container_id, each.key.ifname): each for each in records}
    left_out: list[str] = []
    for one in sources.together(foreign):
        try:
            leases.append(_lease(one, known, by_container, interface, now))
        except NotAVm as e:
            ips = ", ".join(map(str, one.ips))
            left_out.append(f"{one.where}: {ips} of {one.owner} is left out: {e}")
    return Gathered(tuple(leases), tuple(left_out))


def _named(network: str, where: str) -> str:
    if not network:
        raise InvalidConfig(f"{where}: of which network it is stands nowhere there: --network")
    return network


def _lease(
    given: Given,
    known: Owners,
    by_container: Mapping[tuple[str, str], Record],
    interface: str,
    now: int,
) -> Lease:
    if not is_name(given.network):
        raise InvalidConfig(f'{given.where}: "{given.network[:64]}" is no name of a network: --network')
    record = by_container.get((given.container, given.interface)) if not given.pod else None
    uid, mac = "", given.mac
    if given.vm:
        key = convert.key_of(given.network, given.namespace, given.vm, given.interface or interface)
    elif record is not None and record.vm is not None:
        vm = record.vm
        key, uid = LeaseKey(given.network, vm.namespace, vm.name, given.interface), vm.uid
    else:
        if record is not None and record.pod is not None:
            given = given._replace(pod=str(record.pod))
        subject, seen = known.subject(given)
        key = LeaseKey(given.network, subject.vm.namespace, subject.vm.name, subject.vm.interface)
        uid, mac = subject.vm.uid, mac or seen
    return Lease(key, in_order(given.ips), mac, uid, source=_SOURCE, since=now)
