"""Leases as objects of the Kubernetes API (cnvnet.io/v1alpha1), and back. Pure.

A VMLease is a lease of a VM, named after its key. An IPReservation stands for one address, of IP or a MAC,
and is named after it: that only one object can have a name is what makes the address unique. It names the
lease that it is for by UID, or the pod that is no VM, which has no other object.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from cnvnet.cni.fields import Address, Fields, as_address
from cnvnet.ipam.lease import Cooldown, Holder, Lease, LeaseKey, derive_mac, in_order, promoted
from cnvnet.ipam.store import lease_owner, object_names
from cnvnet.ipam.store.lease_owner import LeaseOwner
from cnvnet.kube.api import Document
from cnvnet.vm.identity import ACTIVE


class StoredLease(NamedTuple):
    """A VMLease as the API has it."""

    # With the addresses that it lists. None where it has ended and only cools down.
    lease: Lease | None
    key: LeaseKey
    name: str
    uid: str
    version: str
    # Whether it has a deletionTimestamp: nothing can be added to it.
    is_deleted: bool
    # Of the ADD that has last listed addresses; their reservations have the same one.
    nonce: str
    # The addresses, MAC included, of which no later write has said that they are reserved.
    pending: tuple[str, ...]
    cooling: tuple[Cooldown, ...]
    # The keys of `status.holders` by container and interface.
    holder_keys: Mapping[tuple[str, str], str]
    # By those keys. A pod that has left may have one still.
    roles: Mapping[str, str]
    labels: Mapping[str, str]
    finalizers: tuple[str, ...]
    # The UIDs of the objects with which it goes.
    owners: frozenset[str] = frozenset()

    @property
    def listed(self) -> tuple[str, ...]:
        """The addresses that it lists, its MAC last."""
        return addresses_of(self.lease)


class StoredReservation(NamedTuple):
    """An IPReservation as the API has it: of a lease (`lease_name`, `lease_uid`) or of a `pod`."""

    name: str
    uid: str
    version: str
    network: str
    address: str
    nonce: str
    namespace: str
    lease_name: str
    lease_uid: str
    # The lease of the pod, as far as this address tells it; None for a VM's address.
    pod: Lease | None
    # Of a pod's address: until when it cools down and since when; 0 while the pod has it.
    until: int
    since: int


def addresses_of(lease: Lease | None) -> tuple[str, ...]:
    """What a lease has, as IPReservations are named: its addresses and its MAC, which comes last."""
    if lease is None:
        return ()
    return (*map(str, lease.ips), *((lease.mac,) if lease.mac else ()))


def is_derived(lease: Lease) -> bool:
    """Whether the lease's MAC follows from its first address, as those of pools do."""
    if not lease.ips or not lease.mac:
        return False
    prefix = bytes.fromhex(lease.mac[:5].replace(":", ""))
    return derive_mac(prefix, lease.key.network, lease.ips[0]) == lease.mac


# -- writing

# The server keeps a record of who wrote which field: two fifths of a VMLease, and a fifth of the time of
# each patch. One entry that is empty takes it away until another program writes the object.
_NO_FIELD_RECORD: Final[list[Document]] = [{}]


def lease_document(
    lease: Lease,
    *,
    cooling: tuple[Cooldown, ...] = (),
    nonce: str = "",
    pending: Iterable[str] = (),
    owner: LeaseOwner | None = None,
) -> Document:
    """The VMLease of a lease that has none yet. One that is never released has no owner."""
    keys = _holder_keys(lease, {})
    metadata: Document = {
        "name": object_names.lease_name(lease.key),
        "namespace": lease.key.namespace,
        "labels": _labels(lease.key, [*lease.ips, *(each.ip for each in cooling)]),
        "finalizers": [object_names.FINALIZER],
    }
    if owner is not None and (references := lease_owner.references(owner, lease)):
        metadata["ownerReferences"] = references
    return {
        "apiVersion": object_names.API_VERSION,
        "kind": "VMLease",
        "metadata": metadata,
        "spec": {
            "network": lease.key.network,
            "vm": lease.key.vm,
            "interface": lease.key.interface,
            **_lease_fields(lease),
            "cooling": [_cooldown_fields(each) for each in cooling],
            "pending": list(pending),
            "nonce": nonce,
        },
        "status": {
            "holders": {keys[_interface(each)]: _holder_fields(each) for each in lease.holders},
            "roles": _roles(lease, keys),
        },
    }


def lease_patch(
    stored: StoredLease,
    before: Lease | None,
    after: Lease | None,
    *,
    cooling: tuple[Cooldown, ...],
    nonce: str,
    pending: tuple[str, ...],
    now: int,
    owner: LeaseOwner | None = None,
) -> Document:
    """The merge patch that makes `after` of a VMLease of which `before` was seen; {} if nothing changes.

    `after` None leaves what cools down. `nonce` is that of the addresses that it begins to list, else "".
    Only what differs between the two is written: beyond it the object may have more, such as the holders of
    other nodes, of which none is ever rewritten: their roles stand apart.
    """
    spec: Document = {}
    status: Document = {}
    old: Document = _lease_fields(before) if before is not None else {}
    new: Document = _lease_fields(after) if after is not None else {"ips": []}
    for name, value in new.items():
        if old.get(name) != value:
            spec[name] = value
    if cooling != stored.cooling:
        spec["cooling"] = [_cooldown_fields(each) for each in cooling]
    if pending != stored.pending:
        spec["pending"] = list(pending)
    if nonce:
        spec["nonce"] = nonce
    keys = dict(stored.holder_keys)
    had = {_interface(each): each for each in before.holders} if before is not None else {}
    has = {_interface(each): each for each in after.holders} if after is not None else {}
    holders: Document = {keys[gone]: None for gone in had.keys() - has.keys() if gone in keys}
    for interface, each in has.items():
        known = had.get(interface)
        if known is None or known._replace(role=each.role) != each:
            keys[interface] = object_names.holder_key(*interface, keys)
            holders[keys[interface]] = _holder_fields(each)
    if holders:
        status["holders"] = holders
    roles: Document = _roles(after, keys) if after is not None else {}
    changed_roles = {key: role for key, role in roles.items() if stored.roles.get(key) != role}
    # Those of holders that have left since are not known, and of no use, either.
    changed_roles |= {key: None for key in stored.roles if key not in roles and key not in keys.values()}
    changed_roles |= {key: None for key in holders if holders[key] is None and key in stored.roles}
    if changed_roles:
        status["roles"] = changed_roles
    if had and not has:
        status["left"] = after.since if after is not None else now
    elif (has and not had) or (after is not None and not has and "since" in spec):
        status["left"] = None
        spec |= {"since": after.since} if after is not None else {}  # it was read off `left`, may be
    if not (spec or status):
        return {}
    patch: Document = {name: part for name, part in (("spec", spec), ("status", status)) if part}
    metadata: Document = {"resourceVersion": stored.version, "managedFields": _NO_FIELD_RECORD}
    listed = after if after is None or "ips" in spec else stored.lease
    ips = listed.ips if listed is not None else ()
    labels = _labels(stored.key, [*ips, *(each.ip for each in cooling)])
    in_blocks = (name for name in stored.labels if name.startswith(object_names.IN_BLOCK_LABEL))
    changed = dict.fromkeys(in_blocks) | labels
    changed = {name: value for name, value in changed.items() if stored.labels.get(name) != value}
    if changed:
        metadata["labels"] = changed
    if owner is not None and after is not None:
        is_new = bool(spec.keys() & {"vmUID", "release"})
        if is_new or lease_owner.is_missing(owner, after, stored.owners):
            metadata["ownerReferences"] = lease_owner.references(owner, after)
    return {"metadata": metadata, **patch}


def release_patch(holder: str, *, uid: str, now: int, settled: str = "") -> Document:
    """The merge patch that ends one holder, whatever else has become of the VMLease with this UID.

    With `settled` it is of this version alone, all of whose addresses are known to be reserved.
    """
    metadata: Document = {"managedFields": _NO_FIELD_RECORD, **({"uid": uid} if uid else {})}
    status: Document = {"holders": {holder: None}, "roles": {holder: None}, "left": now}
    if not settled:
        return {"metadata": metadata, "status": status}
    return {"metadata": metadata | {"resourceVersion": settled}, "spec": {"pending": []}, "status": status}


def reservation_document(
    key: LeaseKey, address: str, *, nonce: str, node: str = "", lease_uid: str = "", pod: Lease | None = None
) -> Document:
    """The IPReservation that `node` makes of an address: for a VM's lease or for a pod that is no VM."""
    holder = pod.holders[0] if pod is not None and pod.holders else None
    namespace = key.namespace or (holder.pod.partition("/")[0] if holder is not None else "")
    labels = {
        object_names.NETWORK_LABEL: object_names.network_label(key.network),
        object_names.BLOCK_LABEL: object_names.block_label(address),
    }
    if namespace:
        labels[object_names.NAMESPACE_LABEL] = namespace
    made = {"node": node} if node else {}
    spec: Document = {"network": key.network, "address": address, "nonce": nonce, **made}
    if pod is None:
        spec["lease"] = {"namespace": key.namespace, "name": object_names.lease_name(key), "uid": lease_uid}
    else:
        spec["pod"] = _pod_fields(pod, holder)
    return {
        "apiVersion": object_names.API_VERSION,
        "kind": "IPReservation",
        "metadata": {"name": object_names.reservation_name(key.network, address), "labels": labels},
        "spec": spec,
    }


def _lease_fields(lease: Lease) -> Document:
    """What `spec` has of a lease besides its key."""
    return {
        "vmUID": lease.vm_uid,
        "ips": [str(ip) for ip in lease.ips],
        "mac": lease.mac,
        "release": lease.release,
        "cooldown": lease.cooldown,
        "source": lease.source,
        "since": lease.since,
    }


def _holder_fields(holder: Holder) -> Document:
    return {
        "container": holder.container_id,
        "ifname": holder.ifname,
        "node": holder.node,
        "pod": holder.pod,
        "podUID": holder.pod_uid,
        "role": holder.role,
        "since": holder.since,
        "netns": holder.netns,
        "inode": holder.inode,
        "bootID": holder.boot_id,
    }


def _cooldown_fields(cooldown: Cooldown) -> Document:
    return {
        "ip": str(cooldown.ip),
        "mac": cooldown.mac,
        "vmUID": cooldown.vm_uid,
        "until": cooldown.until,
        "since": cooldown.since,
    }


def _pod_fields(pod: Lease, holder: Holder | None) -> Document:
    fields = _holder_fields(holder) if holder is not None else {}
    namespace, _, name = str(fields.pop("pod", "")).partition("/")
    fields |= {"namespace": namespace, "name": name, "uid": fields.pop("podUID", "")}
    fields |= {"container": pod.key.vm, "ifname": pod.key.interface, "mac": pod.mac, "vmUID": pod.vm_uid}
    return fields | {"source": pod.source, "release": pod.release, "cooldown": pod.cooldown}


def _labels(key: LeaseKey, ips: Iterable[Address]) -> dict[str, Any]:
    blocks = {
        f"{object_names.IN_BLOCK_LABEL}{object_names.block_of(ip)}": object_names.IN_BLOCK for ip in ips
    }
    return {object_names.NETWORK_LABEL: object_names.network_label(key.network), **blocks}


def _holder_keys(lease: Lease, used: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    keys = dict(used)
    for each in lease.holders:
        keys[_interface(each)] = object_names.holder_key(*_interface(each), keys)
    return keys


def _roles(lease: Lease, keys: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    return {keys[_interface(each)]: each.role for each in lease.holders}


def _interface(holder: Holder) -> tuple[str, str]:
    return holder.container_id, holder.ifname


# -- reading


def read_lease(document: Mapping[str, Any]) -> StoredLease:
    """A VMLease. Raises InvalidConfig naming the object and the field for one that no agent has written."""
    metadata = Fields(document.get("metadata") or {}, "metadata")
    namespace, name = metadata.text("namespace"), metadata.text("name")
    where = f"VMLease {namespace}/{name}: "
    spec = Fields(document.get("spec") or {}, f"{where}spec")
    status = Fields(document.get("status") or {}, f"{where}status")
    key = LeaseKey(spec.text("network"), namespace, spec.text("vm"), spec.text("interface"))
    ips = in_order(_addresses(spec))
    roles: Mapping[str, str] = status.fields("roles").data
    keys, holders = _read_holders(status, roles)
    left = status.integer("left")
    lease = Lease(
        key=key,
        ips=ips,
        mac=spec.text("mac"),
        vm_uid=spec.text("vmUID"),
        source=spec.text("source"),
        release=spec.text("release"),
        cooldown=spec.integer("cooldown"),
        since=spec.integer("since") if holders or not left else left,
        holders=holders,
    )
    return StoredLease(
        lease=lease if ips else None,
        key=key,
        name=name,
        uid=metadata.text("uid"),
        version=metadata.text("resourceVersion"),
        is_deleted=metadata.has("deletionTimestamp"),
        nonce=spec.text("nonce"),
        pending=spec.texts("pending"),
        cooling=tuple(_read_cooldown(key, each) for each in spec.each("cooling") or ()),
        holder_keys=keys,
        roles=roles,
        labels=metadata.raw("labels") or {},
        finalizers=metadata.texts("finalizers"),
        owners=frozenset(each.text("uid") for each in metadata.each("ownerReferences") or ()),
    )


def read_reservation(document: Mapping[str, Any]) -> StoredReservation:
    """An IPReservation. Raises InvalidConfig like `read_lease`."""
    metadata = Fields(document.get("metadata") or {}, "metadata")
    name = metadata.text("name")
    spec = Fields(document.get("spec") or {}, f"IPReservation {name}: spec")
    lease, cooling = spec.fields("lease"), spec.fields("cooling")
    network, address = spec.text("network"), spec.text("address")
    pod = spec.fields("pod")
    return StoredReservation(
        name=name,
        uid=metadata.text("uid"),
        version=metadata.text("resourceVersion"),
        network=network,
        address=address,
        nonce=spec.text("nonce"),
        namespace=lease.text("namespace") or pod.text("namespace"),
        lease_name=lease.text("name"),
        lease_uid=lease.text("uid"),
        pod=_read_pod(network, address, pod, cooling=spec.has("cooling")) if spec.has("pod") else None,
        until=cooling.integer("until"),
        since=cooling.integer("since"),
    )


def pod_lease(reservations: Iterable[StoredReservation]) -> Lease | None:
    """The lease of a pod that is no VM, of all its reservations."""
    pods = [each.pod for each in reservations if each.pod is not None]
    if not pods:
        return None
    return pods[0]._replace(ips=in_order(ip for each in pods for ip in each.ips))


def _read_pod(network: str, address: str, pod: Fields, *, cooling: bool) -> Lease:
    holder = Holder(
        container_id=pod.text("container"),
        ifname=pod.text("ifname"),
        role=pod.text("role", ACTIVE),
        netns=pod.text("netns"),
        inode=pod.integer("inode"),
        boot_id=pod.text("bootID"),
        since=pod.integer("since"),
        node=pod.text("node"),
        pod=f"{pod.text('namespace')}/{pod.text('name')}" if pod.text("name") else "",
        pod_uid=pod.text("uid"),
    )
    return Lease(
        key=LeaseKey(network, "", holder.container_id, holder.ifname),
        ips=() if object_names.is_mac(address) else (ipaddress.ip_address(address),),
        mac=pod.text("mac"),
        vm_uid=pod.text("vmUID"),
        source=pod.text("source"),
        release=pod.text("release"),
        cooldown=pod.integer("cooldown"),
        since=holder.since,
        holders=() if cooling else (holder,),
    )


def _addresses(spec: Fields) -> list[Address]:
    return [as_address(text, f"{spec.path('ips')}[{index}]") for index, text in enumerate(spec.texts("ips"))]


def _read_holders(
    status: Fields, roles: Mapping[str, str]
) -> tuple[dict[tuple[str, str], str], tuple[Holder, ...]]:
    written = status.fields("holders").data
    keys: dict[tuple[str, str], str] = {}
    holders: list[Holder] = []
    for key in written:
        # Unlike those of configurations, these keys differ by case.
        fields = Fields(written[key], f"{status.path('holders')}.{key}")
        holder = Holder(
            container_id=fields.text("container"),
            ifname=fields.text("ifname"),
            role=roles.get(key) or fields.text("role", ACTIVE),
            netns=fields.text("netns"),
            inode=fields.integer("inode"),
            boot_id=fields.text("bootID"),
            since=fields.integer("since"),
            node=fields.text("node"),
            pod=fields.text("pod"),
            pod_uid=fields.text("podUID"),
        )
        keys[_interface(holder)] = key
        holders.append(holder)
    # The one that was active may have been ended without a look at the others.
    return keys, promoted(holders)


def _read_cooldown(key: LeaseKey, fields: Fields) -> Cooldown:
    ip = fields.address("ip")
    if ip is None:
        fields.required("ip")
        raise AssertionError("an address that is there has been read")
    return Cooldown(
        key, ip, fields.text("mac"), fields.text("vmUID"), fields.integer("until"), fields.integer("since")
    )
