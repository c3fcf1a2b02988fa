"""The network stack of one namespace, as the rest of the project sees it, and the real one.

The Protocols come first; `NetlinkStack` and `LinuxKernel` are the real thing, tests.fakes.kernel has their
doubles.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, Protocol

from cnvnet.kernel import (
    addresses,
    fdb,
    link_messages,
    neighbours,
    netns,
    routes,
    snapshots,
    sysctl,
    tap,
    vlans,
)
from cnvnet.kernel.addresses import Address
from cnvnet.kernel.links import (
    RETIRED_GROUP,
    CreateBridge,
    CreateDummy,
    CreateVeth,
    DeleteLink,
    Link,
    can_exist,
)
from cnvnet.kernel.neighbours import Neighbour, ResolveNeighbour
from cnvnet.kernel.netlink import NetlinkError, NetlinkMessage, Socket
from cnvnet.kernel.netns import Netns, lock
from cnvnet.kernel.nft.tables import Nft
from cnvnet.kernel.operations import Operation, describe, encode, ifindex_of
from cnvnet.kernel.routes import Route
from cnvnet.kernel.snapshots import Snapshot
from cnvnet.kernel.sysctl import Sysctls
from cnvnet.kernel.tap import CreateTap
from cnvnet.kernel.vlans import VlanRange

# include/uapi/linux/rtnetlink.h
_RTNLGRP_LINK: Final = 1
_RTNLGRP_IPV6_IFADDR: Final = 9


class KernelError(OSError):
    """The kernel refused an operation: `errno` says how, `operation` is the value that was asked for.

    Of one `apply`, everything before `operation` has been done and nothing after it. `str()` is one line
    that names the operation, its link and the kernel's reason. `operation` is None when a read or a sysctl
    was refused.
    """

    operation: Operation | None

    def __init__(self, number: int, text: str, operation: Operation | None = None) -> None:
        super().__init__(number, text)
        self.operation = operation

    def __str__(self) -> str:
        return str(self.strerror)


class Reader(Protocol):
    """What can be asked. Every read is complete: a dump the kernel interrupted is repeated.

    `links` leaves out those that are retired. `link` takes a name or an ifindex. With an ifindex the others
    read that link only, and nothing when it is gone. `vlans` of a bridge are those of the bridge itself; a
    kernel without VLAN filtering has none. `owner` is the ifindex of the bridge or port of it whose own MAC
    address this is; 0 when there is none, or before Linux 5.0, which cannot be asked.
    """

    def link(self, name: str | int) -> Link | None:
        """A link by its name or index, or None if there is none."""
        ...

    def links(self) -> list[Link]:
        """All links but retired ones."""
        ...

    def addresses(self, ifindex: int = 0) -> list[Address]:
        """The addresses of a link, or of all (0)."""
        ...

    def routes(self, ifindex: int = 0) -> list[Route]:
        """The routes of all tables through a link, or all (0)."""
        ...

    def neighbours(self, ifindex: int = 0) -> list[Neighbour]:
        """The neighbours behind a link, or all (0)."""
        ...

    def owner(self, bridge: int, mac: str) -> int:
        """The index of the bridge's port behind which a MAC address is; 0 if none."""
        ...

    def vlans(self, ifindex: int) -> list[VlanRange]:
        """The VLANs of a bridge's port or of the bridge; none if it filters none."""
        ...


class Changes(Protocol):
    """A subscription to what happens to links and IPv6 addresses from now on."""

    def wait(self, seconds: float) -> bool:
        """True as soon as something has happened, False after `seconds`; the caller reads what it was."""
        ...


class Stack(Reader, Protocol):
    """One namespace's stack, for one thread.

    `apply` does all operations in order and stops at the first refused. It returns the links created, in
    order, as they are right after their creation: with their master, but not yet with its effects
    (operstate, port flags, a bridge's MAC). `snapshot` is what a link has of layer 3 and keeps by itself.
    """

    @property
    def sysctls(self) -> Sysctls:
        """The sysctls of the namespace."""
        ...

    def apply(self, *operations: Operation) -> list[Link]:
        """Do the operations in order until one is refused; the links that were created. KernelError."""
        ...

    def changes(self) -> AbstractContextManager[Changes]:
        """Tell of changes to links and IPv6 addresses in the block."""
        ...

    def snapshot(self, ifindex: int) -> Snapshot:
        """What vm-bridge takes from a link and gives back later."""
        ...


class Reaper(Protocol):
    """Deletes the retired links (cnvnet.kernel.deferred) of the namespace its process runs in."""

    def notify(self) -> None:
        """There are some; returns at once."""
        ...


class Kernel(Protocol):
    """The way in: stack and nftables of the namespace the call runs in (None) or of another; closed on exit.

    `netns` opens the namespace at a path and raises FileNotFoundError when there is none, NotANamespace
    (an OSError, cnvnet.kernel.netns) when the path is something else. `lock` waits until no other call of
    ours has the namespace locked, and keeps it locked until it is closed; TimeoutError. `own` is the inode
    of the call's own namespace. `reaper` deletes what is retired (cnvnet.kernel.deferred.retired); None in a
    program that ends with its call, which deletes at once.
    """

    @property
    def reaper(self) -> Reaper | None:
        """What deletes retired links later; None: links are deleted at once."""
        ...

    def stack(self, netns: Netns | None = None) -> AbstractContextManager[Stack]:
        """The stack of a namespace, or of the own one, for the block."""
        ...

    def nft(self, netns: Netns | None = None) -> AbstractContextManager[Nft]:
        """The nftables of a namespace, or of the own one, for the block."""
        ...

    def netns(self, path: str) -> AbstractContextManager[Netns]:
        """A namespace by its path, open for the block."""
        ...

    def lock(self, netns: Netns, wait_seconds: float) -> None:
        """Lock a namespace for as long as it is open here. TimeoutError."""
        ...

    def own(self) -> int:
        """The inode of the own namespace."""
        ...


class NetlinkStack:
    """The stack of the namespace its socket was opened in.

    `netns` is that namespace; None: the thread's own.
    """

    def __init__(self, socket: Socket, netns: Netns | None) -> None:
        self._socket = socket
        self._netns = netns
        self.sysctls: Sysctls = _CheckedSysctls(netns)

    def link(self, name: str | int) -> Link | None:
        """A link by its name or index, or None if there is none. KernelError."""
        if isinstance(name, str) and not can_exist(name):
            return None
        try:
            return link_messages.decode(self._socket.get(link_messages.query(name)))
        except NetlinkError as e:
            if e.errno == errno.ENODEV:
                return None
            raise KernelError(e.errno or errno.EIO, f"link {name}: {e.text}") from e

    def links(self) -> list[Link]:
        """All links but retired ones. KernelError."""
        decoded = map(link_messages.decode, self._dump("links", link_messages.query_all()))
        return [link for link in decoded if link.group != RETIRED_GROUP]

    def addresses(self, ifindex: int = 0) -> list[Address]:
        """The addresses of a link, or of all (0). KernelError."""
        decoded = map(addresses.decode, self._dump("addresses", addresses.query(ifindex)))
        return [address for address in decoded if address is not None]

    def routes(self, ifindex: int = 0) -> list[Route]:
        """The routes of all tables through a link, or all (0). KernelError."""
        every = [route for raw in self._dump("routes", routes.query()) for route in routes.decode(raw)]
        return [route for route in every if ifindex in (0, route.ifindex)]

    def neighbours(self, ifindex: int = 0) -> list[Neighbour]:
        """The neighbours behind a link, or all (0). KernelError."""
        answers = [raw for query in neighbours.queries() for raw in self._dump("neighbours", query)]
        every = [neighbour for neighbour in map(neighbours.decode, answers) if neighbour is not None]
        return [neighbour for neighbour in every if ifindex in (0, neighbour.ifindex)]

    def owner(self, bridge: int, mac: str) -> int:
        """The index of the bridge's port behind which a MAC address is; 0 if none. KernelError."""
        try:
            return fdb.decode_owner(self._socket.get(fdb.query(bridge, mac)))
        except NetlinkError as e:
            if e.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
                return 0
            raise KernelError(e.errno or errno.EIO, f"owner of {mac}: {e.text}") from e

    def vlans(self, ifindex: int) -> list[VlanRange]:
        """The VLANs of a bridge's port or of the bridge; none if it filters none. KernelError."""
        try:
            answers = self._socket.dump(vlans.query(ifindex))
        except NetlinkError as e:
            if e.errno in (errno.ENODEV, errno.EINVAL):
                return []  # no such link, or it has nothing to do with a bridge
            if e.errno != errno.EOPNOTSUPP:
                raise KernelError(e.errno or errno.EIO, f"vlans of link {ifindex}: {e.text}") from e
            tagged = map(vlans.decode_link, self._dump("vlans", vlans.query_all()))
            return [one for owner, ranges in tagged if owner == ifindex for one in ranges]
        return [one for raw in answers for one in vlans.decode(raw)]

    def apply(self, *operations: Operation) -> list[Link]:
        """Do the operations in order until one is refused; the links that were created. KernelError."""
        # One send() for all would save 5 us each, but the kernel goes on after a message it has refused: the
        # caller could not tell what has been done, nor undo it.
        created: list[Link] = []
        for operation in operations:
            try:
                created += self._perform(operation)
            except OSError as e:
                raise self._refused(operation, e) from e
        return created

    @contextmanager
    def changes(self) -> Generator[Changes]:
        """Tell of changes to links and IPv6 addresses in the block."""
        with _inside(self._netns):
            listener = Socket()
        with listener:
            listener.join(_RTNLGRP_LINK, _RTNLGRP_IPV6_IFADDR)
            yield listener

    def snapshot(self, ifindex: int) -> Snapshot:
        """What vm-bridge takes from a link and gives back later. KernelError."""
        return snapshots.take(
            ifindex,
            int(time.monotonic()),
            addresses=self._dump("addresses", addresses.query(ifindex)),
            nexthops=self._nexthops(),
            routes=self._dump("routes", routes.query()),
            neighbours=[raw for query in neighbours.queries() for raw in self._dump("neighbours", query)],
        )

    def _nexthops(self) -> list[bytes]:
        try:
            return self._socket.dump(snapshots.query_nexthops())
        except NetlinkError as e:
            if e.errno == errno.EOPNOTSUPP:
                return []
            raise KernelError(e.errno or errno.EIO, f"next hops: {e.text}") from e

    def _perform(self, operation: Operation) -> list[Link]:
        if isinstance(operation, CreateTap):
            with _inside(self._netns):
                tap.create(operation)
            return self._made(operation.name, [])
        if isinstance(operation, ResolveNeighbour):
            with _inside(self._netns):
                neighbours.resolve(operation)
            return []
        if isinstance(operation, CreateBridge | CreateVeth | CreateDummy):
            (message,) = encode(operation)
            made = self._made(operation.name, self._socket.request(message))
            # The kernel echoes the link before it enslaves it.
            master = operation.master if isinstance(operation, CreateVeth) else 0
            return [link._replace(master=master) for link in made]
        for message in encode(operation):
            self._socket.request(message)
        return []

    def _made(self, name: str, echoed: list[bytes]) -> list[Link]:
        if echoed:
            return [link_messages.decode(echoed[0])]
        link = self.link(name)  # a tap, and any link before Linux 6.2, which echoes nothing
        return [link] if link is not None else []

    def _refused(self, operation: Operation, refusal: OSError) -> KernelError:
        number = refusal.errno or errno.EIO
        reason = refusal.text if isinstance(refusal, NetlinkError) else os.strerror(number).lower()
        if isinstance(refusal, tap.TapUnavailable):
            reason = str(refusal.strerror)
        if refusal.filename is not None:
            reason = f"{refusal.filename}: {reason}"  # /dev/net/tun, where the module tun is not loaded
        return KernelError(number, f"{describe(operation, self._name_of(operation))}: {reason}", operation)

    def _name_of(self, operation: Operation) -> str:
        ifindex = ifindex_of(operation)
        try:
            link = self.link(ifindex) if ifindex else None
        except KernelError:
            return ""
        return link.name if link is not None else ""

    def _dump(self, what: str, query: NetlinkMessage) -> list[bytes]:
        try:
            return self._socket.dump(query)
        except NetlinkError as e:
            if e.errno == errno.ENODEV:
                return []  # asked for one link, which is gone
            raise KernelError(e.errno or errno.EIO, f"{what}: {e.text}") from e


class LinuxKernel:
    """The kernel this program runs on."""

    def __init__(self) -> None:
        self.reaper: Reaper | None = None

    @contextmanager
    def stack(self, netns: Netns | None = None) -> Generator[Stack]:
        """The stack of a namespace, or of the own one, for the block."""
        with _inside(netns):
            socket = Socket()
        with socket:
            yield NetlinkStack(socket, netns)

    def nft(self, netns: Netns | None = None) -> AbstractContextManager[Nft]:
        """The nftables of a namespace, or of the own one, for the block."""
        from cnvnet.kernel.nft.tables import open_nft

        return open_nft(netns)

    def netns(self, path: str) -> AbstractContextManager[Netns]:
        """A namespace by its path, open for the block."""
        return netns.opened(path)

    def lock(self, netns: Netns, wait_seconds: float) -> None:
        """Lock a namespace for as long as it is open here. TimeoutError."""
        lock(netns, wait_seconds)

    def own(self) -> int:
        """The inode of the own namespace."""
        return netns.own_inode()


def delete_link(stack: Stack, ifindex: int) -> None:
    """Deletes a link; one that is gone already is fine. KernelError otherwise."""
    try:
        stack.apply(DeleteLink(ifindex))
    except KernelError as e:
        if e.errno != errno.ENODEV:
            raise


def _inside(target: Netns | None) -> AbstractContextManager[None]:
    return netns.entered(target) if target is not None else nullcontext()


class _CheckedSysctls(sysctl.NamespaceSysctls):
    """Refusals as KernelError, like everything a stack refuses."""

    def set(self, key: str, value: str) -> None:
        try:
            super().set(key, value)
        except OSError as e:
            raise KernelError(e.errno or errno.EIO, str(e.strerror)) from e
