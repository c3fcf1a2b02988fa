"""static-ip: ADD, DEL, CHECK, GC and STATUS over the leases of a network.

The executable prints what a CNI result has a place for. A MAC address it has not, so only who calls `assign`
as a function (cnv-bridge does) gets to know it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from typing import Final, NamedTuple

from cnvnet import caller, diagnostics
from cnvnet.cni.conventions import valid_attachments
from cnvnet.cni.errors import NOT_AVAILABLE, CNIError, InvalidConfig
from cnvnet.cni.fields import Address, InterfaceAddress
from cnvnet.cni.request import Request
from cnvnet.cni.result import IP, Result, previous
from cnvnet.ipam import allocator
from cnvnet.ipam.allocator import Asked, Granted
from cnvnet.ipam.lease import Holder, Key, Lease, is_dead
from cnvnet.ipam.sqlite import Sqlite
from cnvnet.ipam.static_ip.config import Config, folder, storable
from cnvnet.ipam.store import Store
from cnvnet.kernel.boot import boot_id
from cnvnet.vm.identity import ACTIVE

# CHECK found something else than ADD left: 100 and above are a plugin's own codes.
NOT_AS_ADDED: Final = 100


class Assignment(NamedTuple):
    """What an ADD got. `mac` is "" where the network gives no MACs; `role` is the pod's, see vm.identity.

    `granted` and `folder` are for `revert`.
    """

    result: Result
    mac: str
    role: str
    granted: Granted
    folder: str


class StaticIP:
    """The plugin. One object may serve many calls and threads; it keeps the stores it has opened."""

    name = "static-ip"

    def __init__(self, open_store: Callable[[str], Store] = Sqlite) -> None:
        self._open_store = open_store
        self._stores: dict[str, Store] = {}

    def add(self, request: Request) -> Result:
        return self.assign(request).result

    def delete(self, request: Request) -> None:
        self.release(request)

    def assign(self, request: Request) -> Assignment:
        """The addresses (and the MAC) of the VM's interface; this pod becomes a holder of them.

        Raises CNIError with nothing changed: 7 for what is asked wrongly, 11 for what may work later, 5 for
        a store that cannot be used. `revert` undoes it.
        """
        config = Config.parse(request)
        asked = _asked(request, config)
        gone = _gone(asked.holder.boot_id)
        with self._store(config.folder).transaction() as ledger:
            granted = allocator.acquire(ledger, asked, gone)
            # Inside, so that a result that cannot be given leaves nothing.
            result = _result(granted.lease, config)
        holder = granted.lease.holder(request.container_id, storable(request.ifname))
        if config.remark:
            diagnostics.say(config.remark)
        role = holder.role if holder is not None else asked.holder.role
        return Assignment(result, granted.lease.mac, role, granted, config.folder)

    def revert(self, request: Request, assignment: Assignment) -> None:
        """Undo `assign` because the ADD it was for came to nothing: the lease is as it was before."""
        with self._store(assignment.folder).transaction() as ledger:
            allocator.revert(
                ledger,
                assignment.granted,
                request.container_id,
                storable(request.ifname),
                now=int(time.time()),
            )

    def release(self, request: Request) -> None:
        """This pod holds nothing any more. Needs no identity, no valid configuration and no earlier ADD."""
        store = self._store(folder(request))
        if not store.exists() or (store.read_only() and self._held(request, store) is None):
            return
        with store.transaction() as ledger:
            allocator.release(
                ledger,
                request.name,
                request.container_id,
                storable(request.ifname),
                now=int(time.time()),
            )

    def check(self, request: Request) -> None:
        """Code 100 unless this pod holds a lease, and with the addresses of prevResult."""
        config = Config.parse(request)
        result = previous(request)
        if result is None:
            raise InvalidConfig("prevResult: required by CHECK")
        lease = self._held(request, self._store(config.folder))
        if lease is None or lease.key != _key(request, config):
            raise CNIError(
                NOT_AS_ADDED, f"network {request.name}: no lease for container {request.container_id}"
            )
        added = {ip.address.ip for ip in result.ips}
        for ip in lease.ips:
            if ip not in added:
                listed = ", ".join(str(each) for each in sorted(added, key=str)) or "no address"
                raise CNIError(NOT_AS_ADDED, f"prevResult.ips: {lease.key} has {ip}, not {listed}")

    def gc(self, request: Request) -> None:
        """End what containers hold that are no more. A VM keeps its addresses all the same."""
        valid = valid_attachments(request.fields)
        store = self._store(folder(request))
        if valid is not None and store.exists():
            with store.transaction() as ledger:
                allocator.collect(ledger, request.name, valid, now=int(time.time()))

    def status(self, request: Request) -> None:
        """Code 50 if an ADD could not write the store or not find a free address."""
        config = Config.parse(request)
        store = self._store(config.folder)
        store.ready()
        if store.exists():
            try:
                with store.transaction() as ledger:
                    allocator.ensure_room(
                        ledger, request.name, config.pool, _gone(boot_id()), now=int(time.time())
                    )
            except CNIError as e:
                raise CNIError(NOT_AVAILABLE, e.msg, e.details) from e

    def _store(self, where: str) -> Store:
        return self._stores.setdefault(where, self._open_store(where))

    def _held(self, request: Request, store: Store) -> Lease | None:
        if not store.exists():
            return None
        with store.reading() as ledger:
            return ledger.held_by(request.name, request.container_id, storable(request.ifname))


def _key(request: Request, config: Config) -> Key:
    vm = config.vm
    if vm is None:
        return Key(request.name, "", request.container_id, storable(request.ifname))
    return Key(request.name, vm.namespace, vm.name, vm.interface)


def _asked(request: Request, config: Config) -> Asked:
    now = int(time.time())
    holder = Holder(
        container_id=request.container_id,
        ifname=storable(request.ifname),
        role=config.vm.role if config.vm is not None else ACTIVE,
        netns=storable(request.netns),
        inode=_inode(request.netns),
        boot_id=boot_id(),
        since=now,
    )
    return Asked(
        key=_key(request, config),
        vm_uid=config.vm.uid if config.vm is not None else "",
        holder=holder,
        pool=config.pool,
        policy=config.policy,
        wishes=config.wishes,
        mac=config.mac,
        mac_where=config.mac_where,
        now=now,
    )


def _result(lease: Lease, config: Config) -> Result:
    """IPv4 first, then in the order of the range sets.

    Every address comes with its subnet's prefix, which is the route that KubeVirt's DHCP server needs. No
    default route is made up: host-local makes none, and a VM's second network must not take over its first.
    """
    ips: list[IP] = []
    for ip in sorted(lease.ips, key=lambda each: (each.version, config.pool.set_of(each) or 0)):
        found = config.pool.range_of(ip)
        if found is None:
            raise InvalidConfig(f"network {lease.key.network}: {ip} of {lease.key} is in none of its ranges")
        ips.append(IP(_with_prefix(ip, found.subnet.prefixlen), found.gateway))
    return Result(ips=tuple(ips), routes=config.routes, dns=config.dns)


def _gone(boot_id: str) -> allocator.Gone:
    """Which holders surely are no more, in this boot."""
    return lambda each: is_dead(each, boot_id=boot_id, inode=_inode(each.netns))


def _inode(path: str) -> int:
    """What the path leads to, 0 if it leads nowhere."""
    try:
        return caller.stat(path).st_ino
    except (OSError, ValueError):
        return 0


def _with_prefix(ip: Address, length: int) -> InterfaceAddress:
    return IPv4Interface((ip, length)) if isinstance(ip, IPv4Address) else IPv6Interface((ip, length))
