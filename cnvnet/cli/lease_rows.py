"""Leases as cnvctl prints them: as lines of a table, name by name, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from cnvnet.cli.output import age, short_id
from cnvnet.cni.fields import Address
from cnvnet.ipam.lease import STOPPED, Cooldown, Holder, Lease, LeaseKey
from cnvnet.ipam.store.clock import timestamp
from cnvnet.ipam.store.protocol import Store
from cnvnet.vm.identity import ACTIVE

# The state of an address without a lease.
COOLING: Final = "cooling"

HEADINGS: Final = ("NETWORK", "VM", "IF", "IP", "MAC", "STATE", "SINCE", "HELD BY")
WIDE_HEADINGS: Final = (
    *("NETWORK", "VM", "UID", "IF", "IP", "MAC", "STATE", "SINCE"),
    *("SOURCE", "RELEASE", "COOLDOWN", "HELD BY"),
)


class Row(NamedTuple):
    """A lease, or an address that is cooling down after one, and the store that it is in."""

    of: Lease | Cooldown
    store: str

    @property
    def key(self) -> LeaseKey:
        """Who has the addresses."""
        return self.of.key

    @property
    def ips(self) -> tuple[Address, ...]:
        """The addresses of the lease, or the one that cools down."""
        return self.of.ips if isinstance(self.of, Lease) else (self.of.ip,)

    def is_named(self, name: str) -> bool:
        """Whether a person means this row, by its key or by the pod that has the addresses."""
        pods = [each.pod for each in self.of.holders] if isinstance(self.of, Lease) else []
        return is_named(self.key, name) or bool(name and name in pods)

    @property
    def state(self) -> str:
        """ACTIVE, STOPPED or COOLING."""
        if isinstance(self.of, Cooldown):
            return COOLING
        return ACTIVE if self.of.holders else STOPPED


def rows(stores: Iterable[Store], network: str, now: int) -> list[Row]:
    """All leases, and the addresses that are cooling down, of one network or ("") of all."""
    both: list[Row] = []
    for store in stores:
        leases, cooldowns = store.look(
            lambda ledger: (list(ledger.leases(network or None)), list(ledger.cooldowns(network or None)))
        )
        both += [Row(lease, store.name) for lease in leases]
        both += [Row(cooldown, store.name) for cooldown in cooldowns if cooldown.until > now]
    # Sorting is stable: a VM's lease comes before what it gave up.
    return sorted(both, key=lambda row: row.key)


def is_named(key: LeaseKey, name: str) -> bool:
    """Whether a person means this key by a VM's NAMESPACE/NAME, or by the beginning of a container's id."""
    if key.is_vm:
        return name == f"{key.namespace}/{key.vm}"
    return bool(name) and key.vm.startswith(name)


def as_json(row: Row) -> dict[str, Any]:
    """A lease as `-o json` has it; times are RFC 3339."""
    of = row.of
    document: dict[str, Any] = {
        "network": row.key.network,
        "namespace": row.key.namespace,
        "vm": row.key.vm if row.key.is_vm else "",
        "container": "" if row.key.is_vm else row.key.vm,
        "interface": row.key.interface,
        "ips": [str(ip) for ip in row.ips],
        "mac": of.mac,
        "vmUID": of.vm_uid,
        "state": row.state,
        "since": timestamp(of.since),
        "store": row.store,
    }
    if isinstance(of, Cooldown):
        return {**document, "until": timestamp(of.until), "holders": []}
    policy = {"source": of.source, "release": of.release, "cooldownSeconds": of.cooldown}
    return {**document, **policy, "holders": [_holder_as_json(each) for each in of.holders]}


def _holder_as_json(holder: Holder) -> dict[str, str]:
    return {
        "containerID": holder.container_id,
        "ifname": holder.ifname,
        "role": holder.role,
        "pod": holder.pod,
        "podUID": holder.pod_uid,
        "node": holder.node,
        "netns": holder.netns,
        "since": timestamp(holder.since),
    }


def line(row: Row, now: int) -> tuple[str, ...]:
    """The cells below HEADINGS."""
    return (
        row.key.network,
        _short_name(row.key),
        row.key.interface,
        ",".join(map(str, row.ips)),
        row.of.mac,
        row.state,
        age(row.of.since, now) if row.of.since else "",
        _held_by(row.of, now),
    )


def wide_line(row: Row, now: int) -> tuple[str, ...]:
    """The cells below WIDE_HEADINGS."""
    network, vm, interface, ips, mac, state, since, held_by = line(row, now)
    policy = ("", "", "")
    if isinstance(row.of, Lease):
        policy = (row.of.source.replace(" ", "-"), row.of.release, f"{row.of.cooldown}s")
    return (network, vm, row.of.vm_uid, interface, ips, mac, state, since, *policy, held_by)


def details(row: Row, now: int) -> Iterator[tuple[str, str]]:
    """All that is known, name by name."""
    yield ("vm" if row.key.is_vm else "container"), full_name(row.key)
    yield "uid", row.of.vm_uid
    yield "network", row.key.network
    yield "interface", row.key.interface
    yield "addresses", ", ".join(map(str, row.ips))
    yield "mac", row.of.mac
    yield "state", row.state
    yield "since", f"{timestamp(row.of.since)} ({age(row.of.since, now)})" if row.of.since else ""
    if isinstance(row.of, Cooldown):
        yield "free", f"{timestamp(row.of.until)} (in {row.of.until - now} s)"
    else:
        for holder in row.of.holders:
            since = f"{holder.role} since {timestamp(holder.since)}"
            node = f" on node {holder.node}" if holder.node else ""
            pod = f"pod {holder.pod}{node}, " if holder.pod else ""
            yield "held by", f"{pod}container {holder.container_id}, {holder.ifname}, {since}"
        yield "asked by", row.of.source
        yield "release", row.of.release
        yield "cooldown", f"{row.of.cooldown} s"
    yield "store", row.store


def _short_name(key: LeaseKey) -> str:
    return full_name(key) if key.is_vm else short_id(key.vm)


def full_name(key: LeaseKey) -> str:
    """The VM as "namespace/name", or the whole id of a container that is none."""
    return f"{key.namespace}/{key.vm}" if key.is_vm else key.vm


def _held_by(of: Lease | Cooldown, now: int) -> str:
    if isinstance(of, Cooldown):
        return f"- (free in {of.until - now} s)"
    return ",".join(map(_holder, of.holders))


def _holder(holder: Holder) -> str:
    name = holder.pod or short_id(holder.container_id)
    return name if holder.role == ACTIVE else f"{name}({holder.role})"
