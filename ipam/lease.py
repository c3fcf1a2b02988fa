"""Who holds what, and how that changes: leases as values and their transitions, without any I/O.

A lease belongs to an interface of a virtual machine and outlives the pods that hold it. Pods come and go as
holders; whether the addresses stay when the last one has gone is the lease's release policy. A container
that is no VM has a lease for its own life.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from cnvnet.cni.fields import Address
from cnvnet.vm.identity import ACTIVE, TARGET

# The roles of a request (ACTIVE, TARGET, TEMP) are those of its holder. Of all holders at most one is
# active; one that was until a newer pod of the same VM came (a restart whose old pod is still ending) is
# LEAVING.
LEAVING: Final = "leaving"

# States.
HELD: Final = "held"
STOPPED: Final = "stopped"

# Release policies: when the VM is known to be deleted, never, or with its last pod.
VM_DELETED: Final = "vm-deleted"
NEVER: Final = "never"
POD: Final = "pod"
POLICIES: Final = (VM_DELETED, NEVER, POD)


class LeaseKey(NamedTuple):
    """Whose lease: an interface of a VM in a network. A container that is no VM has no namespace."""

    network: str
    namespace: str
    vm: str
    interface: str

    @property
    def is_vm(self) -> bool:
        """Whether the lease is a VM's; else it is a container's."""
        return bool(self.namespace)

    def __str__(self) -> str:
        if not self.is_vm:
            return f"container {self.vm} ({self.interface})"
        return f"VM {self.namespace}/{self.vm} ({self.interface})"


class Holder(NamedTuple):
    """A pod that has the lease's addresses on its interface. `inode` is its namespace's, 0 if unknown.

    `node` is the name of the Kubernetes node it is on, "" where that is not known or there is none; `pod` is
    "namespace/name". Both and `pod_uid` are "" outside Kubernetes.
    """

    container_id: str
    ifname: str
    role: str
    netns: str
    inode: int
    boot_id: str
    since: int
    node: str = ""
    pod: str = ""
    pod_uid: str = ""

    def is_of(self, container_id: str, ifname: str) -> bool:
        """Whether it is this interface of this container."""
        return (self.container_id, self.ifname) == (container_id, ifname)

    def is_on(self, node: str) -> bool:
        """Whether it is this node's to end. One without a node is: only embedded stores have such."""
        return self.node in ("", node)


class Lease(NamedTuple):
    """What a key holds. `ips` are sorted, IPv4 first; `mac` is "" where none is managed; times are seconds.

    `source` is the configuration key that asked for the addresses, "" when the pool chose them. `release`
    and `cooldown` are those of the last ADD, so that DEL needs no valid configuration. `since` is when
    `state` began.
    """

    key: LeaseKey
    ips: tuple[Address, ...]
    mac: str = ""
    vm_uid: str = ""
    source: str = ""
    release: str = VM_DELETED
    cooldown: int = 0
    since: int = 0
    holders: tuple[Holder, ...] = ()

    @property
    def state(self) -> str:
        """HELD or STOPPED."""
        return HELD if self.holders else STOPPED

    @property
    def ends_with_its_holders(self) -> bool:
        """Whether nothing remains of it when its last container has gone."""
        return not self.key.is_vm or self.release == POD

    def holder(self, container_id: str, ifname: str) -> Holder | None:
        """This interface of this container, if it holds the lease."""
        return next((each for each in self.holders if each.is_of(container_id, ifname)), None)


class Cooldown(NamedTuple):
    """An address that was freed and is kept from all but its last key (and UID) from `since` to `until`."""

    key: LeaseKey
    ip: Address
    mac: str
    vm_uid: str
    until: int
    since: int = 0


def in_order(ips: Iterable[Address]) -> tuple[Address, ...]:
    """Addresses as a lease has them: IPv4 first, ascending."""
    return tuple(sorted(ips, key=lambda ip: (ip.version, int(ip))))


def same_vm(recorded: str, asked: str) -> bool:
    """Whether two UIDs can be of one VM; an unknown one can be any."""
    return not recorded or not asked or recorded == asked


def hold(lease: Lease, holder: Holder) -> Lease:
    """The lease with this pod as a holder. A new active one makes the former active one `leaving`.

    A repeated ADD of a pod that has meanwhile become active does not take that from it.
    """
    known = lease.holder(holder.container_id, holder.ifname)
    if known is not None:
        role = ACTIVE if known.role == ACTIVE else holder.role
        holder = holder._replace(since=known.since, role=role)
    others = [each for each in lease.holders if not each.is_of(holder.container_id, holder.ifname)]
    if holder.role == ACTIVE:
        others = [each._replace(role=LEAVING) if each.role == ACTIVE else each for each in others]
    since = lease.since if lease.holders else holder.since
    return lease._replace(holders=_sorted([*others, holder]), since=since)


def leave(lease: Lease, container_id: str, ifname: str, *, now: int) -> Lease:
    """The lease without this pod; nothing happens to the others but that one of them may become active."""
    return _without(lease, lambda each: each.is_of(container_id, ifname), now)


def without(lease: Lease, gone: Callable[[Holder], bool], *, now: int) -> Lease:
    """The lease without the holders that are gone."""
    return _without(lease, gone, now)


def _without(lease: Lease, gone: Callable[[Holder], bool], now: int) -> Lease:
    holders = [each for each in lease.holders if not gone(each)]
    if len(holders) == len(lease.holders):
        return lease
    since = lease.since if holders else now
    return lease._replace(holders=promoted(holders), since=since)


def promoted(holders: list[Holder]) -> tuple[Holder, ...]:
    """The holders in their order, one of them active if any can be."""
    # The source of a migration ends when the VM runs on the target; a pod that could not be attached ends
    # while the one before it still runs. The newest of those that can run the VM goes on.
    if not any(each.role == ACTIVE for each in holders):
        for role in (TARGET, LEAVING):
            heirs = [each for each in holders if each.role == role]
            if heirs:
                heir = max(heirs, key=lambda each: (each.since, each.container_id, each.ifname))
                holders = [each._replace(role=ACTIVE) if each is heir else each for each in holders]
                break
    return _sorted(holders)


def _sorted(holders: Iterable[Holder]) -> tuple[Holder, ...]:
    return tuple(sorted(holders, key=lambda each: (each.container_id, each.ifname)))


def is_dead(holder: Holder, *, node: str, boot_id: str, inode: int) -> bool:
    """Whether a holder surely is no more: of another boot, and its path leads to its namespace no longer.

    `node` and `boot_id` are this node's; of another node's holders nothing is known here. `inode` is what
    the path leads to now, 0 for nothing. Within one boot a missing path proves nothing: a process may keep
    the namespace, and its addresses, alive. There only DEL and GC end a holder.
    """
    if not holder.is_on(node) or not boot_id or not holder.boot_id or holder.boot_id == boot_id:
        return False
    return inode == 0 or inode != holder.inode


def derive_mac(prefix: bytes, network: str, ip: Address, salt: int = 0) -> str:
    """The MAC a lease gets with its first address: two octets of the configuration, four of a hash.

    It follows from the address, so it comes back even if the record is lost; the next salt is for the rare
    one that is taken.
    """
    import hashlib  # 3 ms, for new leases only

    seed = f"{network}\0{ip}" + (f"\0{salt}" if salt else "")
    return (prefix + hashlib.sha256(seed.encode()).digest()[:4]).hex(":")
