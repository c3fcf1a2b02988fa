"""The network stack of one namespace, as the rest of the project sees it, and the real one.

The Protocols come first; `NetlinkStack` and `LinuxKernel` are the real thing, cnvnet.kernel.fake has their
doubles.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Protocol

from cnvnet.kernel import addresses, links, neighbours, netns, routes, snapshots, sysctl, tap, vlans
from cnvnet.kernel.addresses import AddAddress, Address, DeleteAddress
from cnvnet.kernel.links import (
    ChangeLink,
    CreateBridge,
    CreateDummy,
    CreateVeth,
    DeleteGroup,
    DeleteLink,
    Link,
)
from cnvnet.kernel.neighbours import AddNeighbour, DeleteNeighbour, Neighbour, ResolveNeighbour
from cnvnet.kernel.netlink import Message, NetlinkError, Socket
from cnvnet.kernel.netns import Netns, lock
from cnvnet.kernel.nft import Nft
from cnvnet.kernel.routes import AddRoute, DeleteRoute, Route
from cnvnet.kernel.snapshots import Replay, Snapshot
from cnvnet.kernel.tap import CreateTap
from cnvnet.kernel.vlans import AddVlans, DeleteVlans, VlanRange

if TYPE_CHECKING:
    from cnvnet.kernel.retired import Reaper

Operation = (
    CreateBridge
    | CreateVeth
    | CreateDummy
    | CreateTap
    | ChangeLink
    | DeleteLink
    | DeleteGroup
    | AddAddress
    | DeleteAddress
    | AddRoute
    | DeleteRoute
    | AddNeighbour
    | ResolveNeighbour
    | DeleteNeighbour
    | AddVlans
    | DeleteVlans
    | Replay
)


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
    """What can be asked. Every read is complete: a dump the kernel interrupted is repeated. `links` leaves
    out those that are retired.

    `link` takes a name or an ifindex. With an ifindex the others tell of that link only, and nothing when
    it is gone. `vlans` of a bridge are those of the bridge itself; a kernel without VLAN filtering has
    none.
    """

    def link(self, name: str | int) -> Link | None: ...
    def links(self) -> list[Link]: ...
    def addresses(self, ifindex: int = 0) -> list[Address]: ...
    def routes(self, ifindex: int = 0) -> list[Route]: ...
    def neighbours(self, ifindex: int = 0) -> list[Neighbour]: ...
    def vlans(self, ifindex: int) -> list[VlanRange]: ...


class Sysctls(Protocol):
    """Sysctls of the stack's namespace by their path below /proc/sys, as `net/ipv4/conf/eth0/arp_notify`.

    `get` is None where there is no such key; `set` raises KernelError (ENOENT, EINVAL, EACCES).
    """

    def get(self, key: str) -> str | None: ...
    def set(self, key: str, value: str) -> None: ...


class Changes(Protocol):
    """A subscription to what happens to links and IPv6 addresses from now on."""

    def heard(self, seconds: float) -> bool:
        """Waits until something has happened (True) or the time is over; the reader looks what it was."""
        ...


class Stack(Reader, Protocol):
    """One namespace's stack, for one thread. `apply` does all operations in order and stops at the first
    refused.

    It returns the links created, in order, as they are right after their creation: with their master, but
    not yet with its effects (operstate, port flags, a bridge's MAC). `snapshot` is what a link has of layer
    3 and keeps by itself.
    """

    @property
    def sysctls(self) -> Sysctls: ...
    def apply(self, *operations: Operation) -> list[Link]: ...
    def changes(self) -> AbstractContextManager[Changes]: ...
    def snapshot(self, ifindex: int) -> Snapshot: ...


class Kernel(Protocol):
    """The way in: stack and nftables of the namespace the call runs in (None) or of another; closed on exit.

    `netns` opens the namespace at a path and raises FileNotFoundError when there is none, NotANamespace
    (an OSError, cnvnet.kernel.netns) when the path is something else. `lock` waits until nobody else has a
    namespace for himself, and has it until that is closed; TimeoutError. `own` is the inode of the call's
    own namespace. `reaper` deletes what is retired (cnvnet.kernel.retired); None in a program that ends with
    its call, which deletes at once.
    """

    @property
    def reaper(self) -> Reaper | None: ...
    def stack(self, netns: Netns | None = None) -> AbstractContextManager[Stack]: ...
    def nft(self, netns: Netns | None = None) -> AbstractContextManager[Nft]: ...
    def netns(self, path: str) -> AbstractContextManager[Netns]: ...
    def lock(self, netns: Netns, wait_seconds: float) -> None: ...
    def own(self) -> int: ...


class NetlinkStack:
    """The stack of the namespace its socket was opened in. `netns` (None: the thread's own) is that
    namespace.
    """

    def __init__(self, socket: Socket, netns: Netns | None) -> None:
        self._socket = socket
        self._netns = netns
        self.sysctls: Sysctls = _CheckedSysctls(netns)

    def link(self, name: str | int) -> Link | None:
        if isinstance(name, str) and not links.can_exist(name):
            return None
        try:
            return links.decode(self._socket.get(links.query(name)))
        except NetlinkError as e:
            if e.errno == errno.ENODEV:
                return None
            raise KernelError(e.errno or errno.EIO, f"link {name}: {e.text}") from e

    def links(self) -> list[Link]:
        found = map(links.decode, self._dump("links", links.query_all()))
        return [link for link in found if link.group != links.RETIRED_GROUP]

    def addresses(self, ifindex: int = 0) -> list[Address]:
        found = map(addresses.decode, self._dump("addresses", addresses.query(ifindex)))
        return [address for address in found if address is not None]

    def routes(self, ifindex: int = 0) -> list[Route]:
        found = [route for raw in self._dump("routes", routes.query()) for route in routes.decode(raw)]
        return [route for route in found if ifindex in (0, route.ifindex)]

    def neighbours(self, ifindex: int = 0) -> list[Neighbour]:
        answers = [raw for query in neighbours.queries() for raw in self._dump("neighbours", query)]
        found = [neighbour for neighbour in map(neighbours.decode, answers) if neighbour is not None]
        return [neighbour for neighbour in found if ifindex in (0, neighbour.ifindex)]

    def vlans(self, ifindex: int) -> list[VlanRange]:
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
        # One send() for all would save 5 us each, but the kernel goes on after a message it has refused:
        # nobody could say then what has been done, nor undo it.
        created: list[Link] = []
        for operation in operations:
            try:
                created += self._perform(operation)
            except OSError as e:
                raise self._refused(operation, e) from e
        return created

    @contextmanager
    def changes(self) -> Generator[Changes]:
        with _inside(self._netns):
            listener = Socket()
        with listener:
            listener.join(_RTNLGRP_LINK, _RTNLGRP_IPV6_IFADDR)
            yield listener

    def snapshot(self, ifindex: int) -> Snapshot:
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
            (message,) = _ENCODERS[type(operation)](operation)
            made = self._made(operation.name, self._socket.request(message))
            # The kernel echoes the link before it enslaves it.
            master = operation.master if isinstance(operation, CreateVeth) else 0
            return [link._replace(master=master) for link in made]
        for message in _ENCODERS[type(operation)](operation):
            self._socket.request(message)
        return []

    def _made(self, name: str, echoed: list[bytes]) -> list[Link]:
        if echoed:
            return [links.decode(echoed[0])]
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
            found = self.link(ifindex) if ifindex else None
        except KernelError:
            return ""
        return found.name if found is not None else ""

    def _dump(self, what: str, query: Message) -> list[bytes]:
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
        with _inside(netns):
            socket = Socket()
        with socket:
            yield NetlinkStack(socket, netns)

    def nft(self, netns: Netns | None = None) -> AbstractContextManager[Nft]:
        from cnvnet.kernel.nft import open_nft

        return open_nft(netns)

    def netns(self, path: str) -> AbstractContextManager[Netns]:
        return netns.opened(path)

    def lock(self, netns: Netns, wait_seconds: float) -> None:
        lock(netns, wait_seconds)

    def own(self) -> int:
        return netns.own_inode()


def describe(operation: Operation, link: str = "") -> str:
    """One line for messages: what was asked, of which link (`link` is its name where one is known)."""
    words = operation.words if isinstance(operation, Replay) else _WORDS[type(operation)]
    if isinstance(operation, CreateBridge | CreateDummy | CreateTap):
        return f"{words} {operation.name}"
    if isinstance(operation, CreateVeth):
        return f"{words} {operation.name} with peer {operation.peer.name}"
    if isinstance(operation, DeleteGroup):
        return f"{words} {operation.group}"
    of = link or f"link {ifindex_of(operation)}"
    detail = _detail(operation)
    return f"{words} {detail} on {of}" if detail else f"{words} {of}"


def ifindex_of(operation: Operation) -> int:
    """The link an operation is about, 0 for one that makes its link or has none."""
    if isinstance(operation, AddRoute | DeleteRoute):
        return operation.route.ifindex
    if isinstance(operation, AddNeighbour | DeleteNeighbour):
        return operation.neighbour.ifindex
    if isinstance(operation, CreateBridge | CreateVeth | CreateDummy | CreateTap | DeleteGroup):
        return 0
    return operation.ifindex


def _detail(operation: Operation) -> str:
    if isinstance(operation, Replay):
        return operation.subject
    if isinstance(operation, AddAddress | DeleteAddress | ResolveNeighbour):
        return str(operation.address)
    if isinstance(operation, AddRoute | DeleteRoute):
        route = operation.route
        return f"{route.dst} via {route.gw}" if route.gw is not None else str(route.dst)
    if isinstance(operation, AddNeighbour | DeleteNeighbour):
        return str(operation.neighbour.address)
    if isinstance(operation, AddVlans | DeleteVlans):
        return ",".join(
            f"{v.first}-{v.last}" if v.last > v.first else str(v.first) for v in operation.ranges
        )
    return ""


def _inside(target: Netns | None) -> AbstractContextManager[None]:
    return netns.entered(target) if target is not None else nullcontext()


class _CheckedSysctls(sysctl.NamespaceSysctls):
    """Refusals as KernelError, like everything a stack refuses."""

    def set(self, key: str, value: str) -> None:
        try:
            super().set(key, value)
        except OSError as e:
            raise KernelError(e.errno or errno.EIO, str(e.strerror)) from e


def _one(encode: Callable[[Any], Message]) -> Callable[[Any], list[Message]]:
    return lambda operation: [encode(operation)]


_ENCODERS: Final[dict[type, Callable[[Any], list[Message]]]] = {
    CreateBridge: _one(links.encode_bridge),
    CreateVeth: _one(links.encode_veth),
    CreateDummy: _one(links.encode_dummy),
    ChangeLink: links.encode_change,
    DeleteLink: _one(links.encode_delete),
    DeleteGroup: _one(links.encode_delete_group),
    AddAddress: _one(addresses.encode_add),
    DeleteAddress: _one(addresses.encode_delete),
    AddRoute: _one(routes.encode_add),
    DeleteRoute: _one(routes.encode_delete),
    AddNeighbour: _one(neighbours.encode_add),
    DeleteNeighbour: _one(neighbours.encode_delete),
    AddVlans: _one(vlans.encode),
    DeleteVlans: _one(vlans.encode),
    Replay: lambda operation: [operation.message],
}

_WORDS: Final[dict[type, str]] = {
    CreateBridge: "create bridge",
    CreateVeth: "create veth",
    CreateDummy: "create dummy",
    CreateTap: "create tap",
    ChangeLink: "change",
    DeleteLink: "delete",
    DeleteGroup: "delete link group",
    AddAddress: "add address",
    DeleteAddress: "delete address",
    AddRoute: "add route",
    DeleteRoute: "delete route",
    AddNeighbour: "add neighbour",
    ResolveNeighbour: "resolve neighbour",
    DeleteNeighbour: "delete neighbour",
    AddVlans: "add vlans",
    DeleteVlans: "delete vlans",
}
