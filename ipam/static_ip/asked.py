"""What an ADD of a configuration asks the allocator for, and the result that it makes of the lease."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from typing import TYPE_CHECKING

from cnvnet import call_context
from cnvnet.attachment.files import AttachmentFiles, rundir
from cnvnet.attachment.sandbox import other_interfaces
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Address, InterfaceAddress
from cnvnet.cni.request import Request
from cnvnet.cni.result import IP, Result
from cnvnet.executables import CNV_BRIDGE, STATIC_IP
from cnvnet.ipam.allocation import AllocationRequest, IsDead
from cnvnet.ipam.lease import Holder, Lease, LeaseKey, is_dead
from cnvnet.ipam.static_ip.config import Config, statedir, storable
from cnvnet.ipam.store.clock import now
from cnvnet.ipam.store.ref import KUBERNETES
from cnvnet.kernel.boot import boot_id
from cnvnet.kube.resources import IPAM_CLAIMS
from cnvnet.vm.launcher import Subject

if TYPE_CHECKING:
    # Imported where a network has its leases there.
    from cnvnet.ipam.store.lease_owner import LeaseOwner


def lease_key(request: Request, config: Config) -> LeaseKey:
    """Whose lease the ADD is for: the VM's, or the container's own."""
    vm = config.vm
    if vm is None:
        return LeaseKey(request.name, "", request.container_id, storable(request.ifname))
    return LeaseKey(request.name, vm.namespace, vm.name, vm.interface)


def allocation_request(request: Request, config: Config) -> AllocationRequest:
    """All that the ADD asks for."""
    moment = now()
    pod = config.pod
    holder = Holder(
        container_id=request.container_id,
        ifname=storable(request.ifname),
        role=config.holder_role,
        netns=storable(request.netns),
        inode=_inode(request.netns),
        boot_id=boot_id(),
        since=moment,
        node=node_of(config) if pod is not None else "",
        pod=str(pod) if pod is not None else "",
        pod_uid=pod.uid if pod is not None else "",
    )
    return AllocationRequest(
        key=lease_key(request, config),
        vm_uid=config.vm.uid if config.vm is not None else "",
        holder=holder,
        pool=config.pool,
        policy=config.policy,
        addresses=config.addresses,
        mac=config.mac,
        mac_where=config.mac_where,
        mac_yields=config.mac_yields,
        now=moment,
        data_dir=config.store.location if config.store.location != statedir(request.env) else "",
        kin=config.subject.pods if config.subject is not None else frozenset(),
    )


def node_of(config: Config) -> str:
    """The pod's node: in a cluster's store as the pod's object has it, else as the process knows its own."""
    subject = config.subject if config.store.kind == KUBERNETES else None
    return (subject.node if subject is not None else "") or config.node


def lease_owner(config: Config) -> LeaseOwner | None:
    """The object with which a VM's lease goes, None where Kubernetes has none."""
    owner, claim = machine_owner(config.subject), config.ipam_claim
    if owner is not None and claim is not None:
        return owner._replace(
            api_version=IPAM_CLAIMS.api_version, kind=IPAM_CLAIMS.kind, name=claim.name, uid=claim.uid
        )
    return owner


def machine_owner(subject: Subject | None) -> LeaseOwner | None:
    """The VM of Kubernetes as the owner of its lease."""
    if subject is None or not subject.vmi or not subject.vm.uid:
        return None
    from cnvnet.ipam.store.lease_owner import LeaseOwner

    # A stand-alone instance is its own VM.
    kind = "VirtualMachineInstance" if subject.vm.uid == subject.vmi_uid else "VirtualMachine"
    return LeaseOwner("kubevirt.io/v1", kind, subject.vm.name, subject.vm.uid)


def interfaces_beside(request: Request) -> frozenset[str]:
    """Those of the pod that have got their addresses here, as far as a record says so: cnv-bridge's."""
    records = AttachmentFiles(rundir(request.env)).records(CNV_BRIDGE)
    leased = (each for each in records if each.undo.get("ipam_type") == STATIC_IP)
    return other_interfaces(leased, request.container_id, request.ifname)


def result_of(lease: Lease, config: Config) -> Result:
    """IPv4 first, then in the order of the range sets.

    Every address comes with its subnet's prefix, which is the route that KubeVirt's DHCP server needs. No
    default route is made up: host-local makes none, and a VM's second network must not take over its first.
    """
    ips: list[IP] = []
    for ip in sorted(lease.ips, key=lambda each: (each.version, config.pool.set_of(each) or 0)):
        part = config.pool.range_of(ip)
        if part is None:
            raise InvalidConfig(f"network {lease.key.network}: {ip} of {lease.key} is in none of its ranges")
        ips.append(IP(_with_prefix(ip, part.subnet.prefixlen), part.gateway))
    return Result(ips=tuple(ips), routes=config.routes, dns=config.dns)


def death_test(node: str, boot_id: str) -> IsDead:
    """Which holders have certainly ended, as seen in this boot of this node."""
    return lambda each: is_dead(each, node=node, boot_id=boot_id, inode=_inode(each.netns))


def _inode(path: str) -> int:
    """What the path leads to, 0 if it leads nowhere."""
    try:
        return call_context.stat(path).st_ino
    except (OSError, ValueError):
        return 0


def _with_prefix(ip: Address, length: int) -> InterfaceAddress:
    return IPv4Interface((ip, length)) if isinstance(ip, IPv4Address) else IPv6Interface((ip, length))
