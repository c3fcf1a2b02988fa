"""What is said of addresses in Kubernetes events, on the VM and on its pod. Pure.

Only what changes is an event: a pod that gets what its VM has had before is none. Pods that are no VM get
theirs and give them back at every start, and have an event only where they get none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import CNIError
from cnvnet.ipam.allocation import Allocation
from cnvnet.ipam.lease import Lease
from cnvnet.ipam.store.objects import addresses_of
from cnvnet.ipam.store.protocol import LeaseChange
from cnvnet.kube.api import ApiError
from cnvnet.kube.events import NORMAL, WARNING, InvolvedObject, KubernetesEvent
from cnvnet.kube.resources import INSTANCES, PODS, VIRTUAL_MACHINES
from cnvnet.vm.launcher import Subject

ALLOCATED: Final = "AddressAllocated"
MOVED: Final = "AddressMoved"
REFUSED: Final = "AddressRefused"
RELEASED: Final = "AddressReleased"


def of_allocation(
    pod: PodRef | None, subject: Subject | None, allocation: Allocation
) -> list[KubernetesEvent]:
    """What an ADD has changed of the addresses of a VM."""
    lease = allocation.lease
    before = next((each.before for each in allocation.changes if each.after == lease), lease)
    if subject is None or before is lease:
        return []
    has = f"{_addresses(lease)} in network {lease.key.network} for {lease.key.interface}"
    why = f" ({lease.source})" if lease.source else ""
    if before is None:
        return _said(pod, subject, ALLOCATED, f"{has}{why}")
    left = [each for each in addresses_of(before) if each not in addresses_of(lease)]
    return _said(pod, subject, MOVED, f"{has}{why}, no longer {', '.join(left)}") if left else []


def of_refusal(
    pod: PodRef | None, subject: Subject | None, network: str, error: CNIError
) -> list[KubernetesEvent]:
    """Why an ADD gets no address. That the API does not answer cannot be said in it."""
    if isinstance(error, ApiError):
        return []
    return _said(pod, subject, REFUSED, f"no address in network {network}: {error.msg}", WARNING)


def of_release(changes: Iterable[LeaseChange]) -> list[KubernetesEvent]:
    """What a DEL has freed: addresses of a VM whose lease has ended with its last pod."""
    events: list[KubernetesEvent] = []
    for lease in (each.before for each in changes if each.after is None):
        # Pods of Kubernetes, and no others, have a name there.
        if lease is None or not lease.vm_uid or not any(each.pod for each in lease.holders):
            continue
        text = f"{_addresses(lease)} in network {lease.key.network} of {lease.key.interface}"
        for holder in lease.holders:
            namespace, _, name = holder.pod.partition("/")
            events.append(KubernetesEvent(_pod(PodRef(namespace, name, holder.pod_uid)), RELEASED, text))
        api_version, kind = VIRTUAL_MACHINES.api_version, VIRTUAL_MACHINES.kind
        vm = InvolvedObject(api_version, kind, lease.key.namespace, lease.key.vm, lease.vm_uid)
        events.append(KubernetesEvent(vm, RELEASED, text))
    return events


def _said(
    pod: PodRef | None, subject: Subject | None, reason: str, text: str, kind: str = NORMAL
) -> list[KubernetesEvent]:
    involved: list[InvolvedObject] = []
    if subject is not None and subject.vmi:
        # A stand-alone instance is its own VM.
        resource = INSTANCES if subject.vm.uid == subject.vmi_uid else VIRTUAL_MACHINES
        vm = subject.vm
        involved.append(InvolvedObject(resource.api_version, resource.kind, vm.namespace, vm.name, vm.uid))
    if pod is not None and pod.namespace and pod.name:
        involved.append(_pod(pod))
    return [KubernetesEvent(each, reason, text, kind) for each in involved]


def _pod(pod: PodRef) -> InvolvedObject:
    return InvolvedObject(PODS.api_version, PODS.kind, pod.namespace, pod.name, pod.uid)


def _addresses(lease: Lease) -> str:
    return ", ".join(addresses_of(lease))
