"""What a VM's author asks for in annotations: addresses and a MAC for an interface. Pure.

They are written in the template of the VM, whose annotations KubeVirt copies to the pod:
`cnvnet.io/ip_address` and `cnvnet.io/mac_address`, with `.` and the name of a network of the VM, or of the
pod's interface for it, where the VM has several. A request that is for none of the VM's networks is an
error: a mistyped one would otherwise be met by another address. The target of a migration has what its
source has, so there they are ignored, and a remark says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Address, as_mac, as_plain_address
from cnvnet.vm.identity import TARGET
from cnvnet.vm.launcher import Document, Subject, VMNetwork, annotations_of

PREFIX: Final = "cnvnet.io/"
IP: Final = "ip_address"
MAC: Final = "mac_address"
# Kube-OVN's, of the pod's first network: read so that VMs can move from there as they are.
KUBE_OVN: Final = "ovn.kubernetes.io/ip_address"

# Kubernetes' limit for the part of a key after the slash.
_LONGEST: Final = 63
# A pod's author may write thousands of annotations, and networks into a VM: messages name so many.
_NAMED: Final = 5

# The names of the interfaces of the pod, besides this one, that have come about by this suite. Asking may
# read files, and few pods need it.
Others = Callable[[], frozenset[str]]


class AnnotatedAddress(NamedTuple):
    """An address that an annotation asks for."""

    ip: Address
    # The annotation, for messages.
    where: str
    # Whether it may be meant for another program's network: then it counts in the ranges only.
    is_foreign: bool = False


class AddressRequests(NamedTuple):
    """What the annotations ask for on one interface, the strongest first; remarks are for the operator."""

    addresses: tuple[AnnotatedAddress, ...] = ()
    remarks: tuple[str, ...] = ()


class MacRequest(NamedTuple):
    """The MAC that an interface is to have."""

    # "" where nothing says one.
    mac: str = ""
    # What says it, for messages.
    where: str = ""
    # Where another lease has it, the interface gets one of its own.
    yields: bool = False
    # What of the annotations has no effect, and why.
    remarks: tuple[str, ...] = ()


def addresses(subject: Subject, others: Others) -> AddressRequests:
    """The addresses that the pod's annotations ask for. Raises InvalidConfig naming the annotation."""
    try:
        return AddressRequests((*_own(subject, others), *_kube_ovns(subject, others)))
    except InvalidConfig as e:
        if subject.role != TARGET:
            raise
        return AddressRequests(remarks=(_ignored(e, subject),))


def mac(subject: Subject, asked: str, where: str, others: Others) -> MacRequest:
    """The MAC that the call asks for (`asked`, by the key `where`), else the spec, else an annotation.

    The guest's NIC has the MAC of the VM's spec: one that contradicts it would cut the guest off. Raises
    InvalidConfig naming both.
    """
    given = [MacRequest(asked, where)] if asked else []
    # The status follows the spec, late: beside another source it says nothing.
    given += [
        MacRequest(as_mac(each.mac, each.where, unicast=True), each.where, subject.mac_yields)
        for each in subject.macs[:1]
    ]
    remarks: list[str] = []
    try:
        given += _annotated_macs(subject, others)
        _ensure_equal(given)
    except InvalidConfig as e:
        if subject.role != TARGET:
            raise
        remarks.append(_ignored(e, subject))
    return given[0]._replace(remarks=tuple(remarks)) if given else MacRequest(remarks=tuple(remarks))


def remarks(pod: Document, *, is_vm: bool) -> list[str]:
    """What of a pod's annotations has no effect, and why: a mistyped name, or a pod that is no VM's."""
    texts = list(_remarks(pod, is_vm=is_vm))
    more = [f"{len(texts) - _NAMED} more annotations have no effect"] if len(texts) > _NAMED else []
    return [*texts[:_NAMED], *more]


def _remarks(pod: Document, *, is_vm: bool) -> Iterator[str]:
    for key in sorted(annotations_of(pod)):
        if not key.startswith(PREFIX):
            continue
        if key.removeprefix(PREFIX).partition(".")[0] not in (IP, MAC):
            yield f"annotation {key[:128]}: no such annotation, only {PREFIX}{IP} and {PREFIX}{MAC}"
        elif not is_vm:
            yield f"annotation {key[:128]}: ignored: the pod belongs to no VirtualMachineInstance"


def _own(subject: Subject, others: Others) -> Iterator[AnnotatedAddress]:
    first_of: dict[int, AnnotatedAddress] = {}
    for key, value in _of_interface(subject, IP, others):
        for wanted in _listed(key, value):
            first = first_of.setdefault(wanted.ip.version, wanted)
            if first is wanted:
                yield wanted
            elif first.ip != wanted.ip or first.where == wanted.where:
                both = f"{first.ip} and {wanted.ip} are both IPv{wanted.ip.version}"
                raise InvalidConfig(f"{wanted.where}: {both}, and an interface has one of each")


def _listed(key: str, value: str, *, is_foreign: bool = False) -> Iterator[AnnotatedAddress]:
    where = f"annotation {key}"
    for text in (part.strip() for part in value.split(",")):
        yield AnnotatedAddress(as_plain_address(text, where), where, is_foreign)


def _kube_ovns(subject: Subject, others: Others) -> Iterator[AnnotatedAddress]:
    value = subject.annotations.get(KUBE_OVN, "")
    if not value or others():
        return
    try:
        yield from tuple(_listed(KUBE_OVN, value, is_foreign=True))
    except InvalidConfig:
        return  # Kube-OVN reads it and complains


def _annotated_macs(subject: Subject, others: Others) -> Iterator[MacRequest]:
    for key, value in _of_interface(subject, MAC, others):
        where = f"annotation {key}"
        yield MacRequest(as_mac(value.strip(), where, unicast=True), where)


def _ensure_equal(given: list[MacRequest]) -> None:
    for weaker in given[1:]:
        if weaker.mac != given[0].mac:
            raise InvalidConfig(
                f"{weaker.where}: {weaker.mac} contradicts {given[0].mac} ({given[0].where})"
            )


def _ignored(error: InvalidConfig, subject: Subject) -> str:
    whose = f"VM {subject.vm.namespace}/{subject.vm.name}"
    return f"{error.msg}: ignored: {whose} is migrating and keeps what it has"


def _of_interface(subject: Subject, name: str, others: Others) -> Iterator[tuple[str, str]]:
    """The annotations of this name that are for this interface, with their values."""
    for key, value in sorted(subject.annotations.items()):
        if key == PREFIX + name:
            if _is_for_unnamed(subject, key, others):
                yield key, value
        elif key.startswith(f"{PREFIX}{name}."):
            suffix = key.removeprefix(f"{PREFIX}{name}.")
            if len(key.removeprefix(PREFIX)) > _LONGEST:
                raise InvalidConfig(
                    f"annotation {key[:128]}: longer than {_LONGEST} characters after the slash: "
                    "name the pod's interface instead of the network"
                )
            if _is_for(subject, key, suffix):
                yield key, value


def _is_for_unnamed(subject: Subject, key: str, others: Others) -> bool:
    """Whether an annotation without a name is for this interface: eth0, or the only one of this suite."""
    primary = next((each for each in subject.networks if each.is_primary), None)
    if primary is not None and subject.network == primary.name:
        return True
    attached = others()
    if primary is not None and set(primary.ifnames) & attached:
        return False
    secondary = {ifname for each in subject.networks if not each.is_primary for ifname in each.ifnames}
    also = sorted(attached & secondary)
    if also:
        raise InvalidConfig(
            f"annotation {key}: {also[0]} and {subject.vm.interface} both get addresses of this node's "
            f"plugins: write {key}.NETWORK ({_described(subject.networks)})"
        )
    return bool(subject.network)


def _is_for(subject: Subject, key: str, suffix: str) -> bool:
    """Whether a name in an annotation is that of this interface or its network. InvalidConfig if of none."""
    by_name = next((each for each in subject.networks if each.name == suffix), None)
    named = by_name or next((each for each in subject.networks if suffix in each.ifnames), None)
    if named is not None:
        return named.name == subject.network
    if suffix == subject.vm.interface:
        return True
    raise InvalidConfig(
        f"annotation {key}: VM {subject.vm.namespace}/{subject.vm.name} has no network and no interface "
        f"of this name, only {_described(subject.networks)}"
    )


def _described(networks: tuple[VMNetwork, ...]) -> str:
    named = [f"{each.name} ({each.ifnames[0]})" for each in networks[:_NAMED]]
    return ", ".join([*named, *(["…"] if len(networks) > _NAMED else [])]) or "none"
