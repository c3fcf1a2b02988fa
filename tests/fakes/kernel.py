"""A kernel in memory for unit tests.

It has the same Protocols, errnos and effects as the real one, and faults on demand.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager

from cnvnet.kernel import addresses, neighbours, netlink, routes, snapshots
from cnvnet.kernel.addresses import AddAddress, Address, DeleteAddress
from cnvnet.kernel.links import (
    RETIRED_GROUP,
    ChangeLink,
    CreateBridge,
    CreateDummy,
    CreateVeth,
    DeleteGroup,
    DeleteLink,
    Link,
    Tun,
)
from cnvnet.kernel.neighbours import AddNeighbour, Neighbour, ResolveNeighbour
from cnvnet.kernel.netlink import NetlinkMessage
from cnvnet.kernel.netns import Netns, NotANamespace
from cnvnet.kernel.nft import tables as nft_module
from cnvnet.kernel.nft.tables import Nft
from cnvnet.kernel.operations import Operation, describe, ifindex_of
from cnvnet.kernel.replays import Replay
from cnvnet.kernel.routes import AddRoute, Route
from cnvnet.kernel.rtnetlink import RTM_NEWADDR, RTM_NEWNEIGH, RTM_NEWROUTE
from cnvnet.kernel.snapshots import Snapshot
from cnvnet.kernel.stack import Changes, KernelError, Reaper, Stack
from cnvnet.kernel.tap import CreateTap
from cnvnet.kernel.vlans import AddVlans, DeleteVlans, VlanRange
from tests.fakes.link import FakeLink
from tests.fakes.namespace import FakeNamespace

HOST = "/proc/1/ns/net"


class FakeKernel:
    """Namespaces by path. Calls run in `host`; `pod = kernel.add_namespace("/run/netns/pod")` makes another.

    `vlans` and `dummies` False is a kernel without them, as the real one of many a test machine. `done`
    lists every operation that was carried out, sysctls as (key, value).
    """

    def __init__(self, *, vlans: bool = True, dummies: bool = True) -> None:
        self.reaper: Reaper | None = None
        self.done: list[Operation | tuple[str, str]] = []
        self._namespaces: dict[str, FakeNamespace] = {}
        self._files: set[str] = set()
        self._options = (vlans, dummies)
        self._inodes = 4026531840
        self._steps = 0
        self._failure: tuple[int, int] | None = None
        self._nfts: dict[int, Nft] = {}
        self.host = self.add_namespace(HOST)

    # what a test arranges

    def add_namespace(self, path: str) -> FakeNamespace:
        """A new namespace with only its loopback."""
        vlans, dummies = self._options
        self._inodes += 1
        self._namespaces[path] = FakeNamespace(path, self._inodes, vlans=vlans, dummies=dummies)
        return self._namespaces[path]

    def remove_namespace(self, path: str) -> None:
        """The namespace and its links are gone, and so are the far ends of its veths."""
        namespace = self._namespaces.pop(path)
        for link in list(namespace.links.values()):
            if link.ifindex in namespace.links and link.kind:
                namespace.delete(link.ifindex)

    def add_file(self, path: str) -> None:
        """A path where something else than a namespace is found."""
        self._files.add(path)

    def fail_at(self, step: int, number: int = errno.EIO) -> None:
        """Refuse the `step`th change from now on, once.

        1 is the next; operations, sysctls and nftables count.
        """
        self._failure = (self._steps + step, number)

    @property
    def steps(self) -> int:
        """How many changes were asked for so far, refused ones included."""
        return self._steps

    def nft_of(self, namespace: FakeNamespace) -> Nft:
        """The nftables of a namespace, to look at."""
        if namespace.inode not in self._nfts:
            from tests.fakes.nft import FakeNft

            self._nfts[namespace.inode] = FakeNft()
        return self._nfts[namespace.inode]

    # what the Protocol asks for

    @contextmanager
    def stack(self, netns: Netns | None = None) -> Generator[Stack]:
        yield FakeStack(self, self.namespace_of(netns))

    @contextmanager
    def nft(self, netns: Netns | None = None) -> Generator[Nft]:
        yield _FailingNft(self, self.nft_of(self.namespace_of(netns)))

    @contextmanager
    def netns(self, path: str) -> Generator[Netns]:
        if path in self._files:
            raise NotANamespace(path, "not a namespace")
        if path not in self._namespaces:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        inode = self._namespaces[path].inode
        yield Netns(path, inode, inode)  # descriptors are only numbers here

    def lock(self, netns: Netns, wait_seconds: float) -> None:
        pass  # one call at a time

    def own(self) -> int:
        return self.host.inode

    # between the fakes

    def namespace_of(self, netns: Netns | None) -> FakeNamespace:
        return self.host if netns is None else self.namespace_at(netns.fd)

    def namespace_at(self, fd: int) -> FakeNamespace:
        for namespace in self._namespaces.values():
            if namespace.inode == fd:
                return namespace
        raise OSError(errno.EINVAL, "no such namespace")

    def step(self) -> None:
        """Counts one change, and refuses it when that was asked for."""
        self._steps += 1
        if self._failure is not None and self._failure[0] == self._steps:
            number, self._failure = self._failure[1], None
            raise OSError(number, "")


class FakeStack:
    """The stack of a namespace in memory."""

    def __init__(self, kernel: FakeKernel, namespace: FakeNamespace) -> None:
        self._kernel = kernel
        self._namespace = namespace
        self.sysctls = FakeSysctls(kernel, namespace)

    def link(self, name: str | int) -> Link | None:
        links = self._namespace.links
        found = links.get(name) if isinstance(name, int) else self._namespace.by_name(name)
        return found.shown() if found is not None else None

    def links(self) -> list[Link]:
        shown = (link.shown() for link in self._namespace.links.values())
        return [link for link in shown if link.group != RETIRED_GROUP]

    def addresses(self, ifindex: int = 0) -> list[Address]:
        return [a for a in self._namespace.addresses if ifindex in (0, a.ifindex)]

    def routes(self, ifindex: int = 0) -> list[Route]:
        return [r for r in self._namespace.routes if ifindex in (0, r.ifindex)]

    def neighbours(self, ifindex: int = 0) -> list[Neighbour]:
        return [n for n in self._namespace.neighbours if ifindex in (0, n.ifindex)]

    def owner(self, bridge: int, mac: str) -> int:
        own = (
            link.ifindex
            for link in self._namespace.links.values()
            if link.mac == mac and bridge in (link.ifindex, link.master)
        )
        return next(own, 0)

    def vlans(self, ifindex: int) -> list[VlanRange]:
        return self._namespace.shown_vlans(ifindex)

    def apply(self, *operations: Operation) -> list[Link]:
        created: list[Link] = []
        for operation in operations:
            try:
                self._kernel.step()
                made = self._perform(operation)
            except OSError as e:
                found = self.link(ifindex_of(operation))
                words = describe(operation, found.name if found else "")
                number = e.errno or errno.EIO
                raise KernelError(number, f"{words}: {os.strerror(number).lower()}", operation) from e
            self._kernel.done.append(operation)
            if made is not None:
                created.append(made.shown())
        return created

    @contextmanager
    def changes(self) -> Generator[Changes]:
        yield _FakeChanges(self._namespace)

    def snapshot(self, ifindex: int) -> Snapshot:
        made = (
            map(addresses.encode, self.addresses()),
            (routes.encode_add(AddRoute(route)) for route in self.routes()),
            (neighbours.encode_add(AddNeighbour(each)) for each in self.neighbours()),
        )
        shown = [[netlink.pack(message) for message in each] for each in made]
        return snapshots.take(
            ifindex, 0, addresses=shown[0], nexthops=(), routes=shown[1], neighbours=shown[2]
        )

    def _perform(self, operation: Operation) -> FakeLink | None:
        if isinstance(operation, CreateBridge | CreateVeth | CreateDummy | CreateTap):
            return self._create(operation)
        namespace = self._namespace
        match operation:
            case ChangeLink():
                namespace.change(operation)
            case DeleteLink():
                namespace.delete(operation.ifindex)
            case DeleteGroup():
                namespace.delete_group(operation.group)
            case AddAddress():
                namespace.add_address(operation)
            case DeleteAddress():
                namespace.delete_address(operation)
            case AddRoute():
                namespace.add_route(operation)
            case AddNeighbour():
                namespace.add_neighbour(operation.neighbour)
            case ResolveNeighbour():
                namespace.resolve(operation.ifindex, operation.address)
            case AddVlans() | DeleteVlans():
                namespace.change_vlans(operation)
            case Replay():
                self._replay(netlink.pack(operation.message), operation.message)
        return None

    def _replay(self, raw: bytes, message: NetlinkMessage) -> None:
        """Next hop objects are unknown here."""
        namespace = self._namespace
        address = addresses.decode(raw) if message.type & ~1 == RTM_NEWADDR else None
        if address is not None and message.type != RTM_NEWADDR:
            namespace.delete_address(DeleteAddress(address.ifindex, address.address))
        elif address is not None and message.flags & netlink.EXCL:
            namespace.restore_address(address)
        elif message.type == RTM_NEWROUTE:
            for route in routes.decode(raw):
                namespace.add_route(AddRoute(route, append=True))
        elif message.type == RTM_NEWROUTE + 1:
            for route in routes.decode(raw):
                namespace.delete_route(route)
        elif message.type == RTM_NEWNEIGH:
            neighbour = neighbours.decode(raw)
            if neighbour is not None:
                namespace.add_neighbour(neighbour)

    def _create(self, wanted: CreateBridge | CreateVeth | CreateDummy | CreateTap) -> FakeLink:
        namespace = self._namespace
        match wanted:
            case CreateBridge():
                link = namespace.add_bridge(
                    wanted.name, mac=wanted.mac, mtu=wanted.mtu, vlan_filtering=wanted.vlan_filtering
                )
                if link.bridge is not None:
                    link.bridge = link.bridge._replace(
                        multicast_snooping=wanted.multicast_snooping, group_fwd_mask=wanted.group_fwd_mask
                    )
                link.up = wanted.up
            case CreateVeth():
                link = self._create_veth(wanted)
            case CreateDummy():
                link = namespace.add_link(wanted.name, "dummy", mac=wanted.mac, mtu=wanted.mtu)
            case CreateTap():
                if namespace.by_name(wanted.name) is not None:
                    raise OSError(errno.EBUSY, "")
                link = namespace.add_link(wanted.name, "tun")
                link.tun = Tun(wanted.owner, wanted.group, wanted.multi_queue)
        return link

    def _create_veth(self, wanted: CreateVeth) -> FakeLink:
        peer = wanted.peer
        peer_namespace = (
            self._namespace if peer.netns_fd is None else self._kernel.namespace_at(peer.netns_fd)
        )
        self._namespace.require_free(wanted.name)
        far = peer_namespace.add_link(peer.name, "veth", mac=peer.mac, mtu=peer.mtu)
        try:
            near = self._namespace.add_link(wanted.name, "veth", mac=wanted.mac, mtu=wanted.mtu)
        except OSError:
            peer_namespace.unlist(far)
            raise
        near.peer, far.peer = far, near
        try:
            if wanted.master:
                self._namespace.set_master(near, wanted.master)
        except OSError:
            self._namespace.delete(near.ifindex)
            raise
        if wanted.up:
            self._namespace.set_up(near)
        return near


class FakeSysctls:
    """The sysctls of a namespace in memory; those of a link come and go with it."""

    def __init__(self, kernel: FakeKernel, namespace: FakeNamespace) -> None:
        self._kernel = kernel
        self._namespace = namespace

    def get(self, key: str) -> str | None:
        return self._namespace.sysctls.get(key)

    def set(self, key: str, value: str) -> None:
        try:
            self._kernel.step()
            if key not in self._namespace.sysctls:
                raise OSError(errno.ENOENT, "")
        except OSError as e:
            number = e.errno or errno.EIO
            raise KernelError(number, f"sysctl {key}={value}: {os.strerror(number).lower()}") from e
        self._namespace.set_sysctl(key, value)
        self._kernel.done.append((key, value))


class _FakeChanges:
    """A caller that waits finds that duplicate address detection is over; nothing else happens by itself."""

    def __init__(self, namespace: FakeNamespace) -> None:
        self._namespace = namespace

    def wait(self, seconds: float) -> bool:
        waiting = any(address.tentative for address in self._namespace.addresses)
        self._namespace.finish_detection()
        return waiting


class _FailingNft:
    """A namespace's nftables whose changes count among the kernel's."""

    def __init__(self, kernel: FakeKernel, real: Nft) -> None:
        self._kernel = kernel
        self._real = real

    def ensure(self, family: str, table: str, version: str, text: str) -> None:
        self._step("ensure")
        self._real.ensure(family, table, version, text)

    def change(
        self, *, add: Sequence[nft_module.Element] = (), delete: Sequence[nft_module.Element] = ()
    ) -> None:
        self._step("change")
        self._real.change(add=add, delete=delete)

    def missing(self, elements: Sequence[nft_module.Element]) -> list[nft_module.Element]:
        return self._real.missing(elements)

    def chain(self, family: str, table: str, name: str) -> nft_module.NftChain | None:
        return self._real.chain(family, table, name)

    def uses(self, family: str, table: str, chains: Collection[str]) -> dict[str, int]:
        return self._real.uses(family, table, chains)

    def dormant(self, family: str, table: str) -> bool:
        return self._real.dormant(family, table)

    def rules(self, family: str, table: str, chain: str) -> list[nft_module.NftRule]:
        return self._real.rules(family, table, chain)

    def counters(self, family: str, table: str) -> dict[str, int]:
        return self._real.counters(family, table)

    def chains(self, family: str, table: str) -> list[str]:
        return self._real.chains(family, table)

    def delete_chain(self, family: str, table: str, name: str) -> None:
        self._step("delete chain")
        self._real.delete_chain(family, table, name)

    def contents(self, family: str, table: str, chains: Collection[str] | None = None) -> str:
        return self._real.contents(family, table, chains)

    def run(self, text: str) -> str:
        self._step("run")
        return self._real.run(text)

    def _step(self, what: str) -> None:
        try:
            self._kernel.step()
        except OSError as e:
            number = e.errno or errno.EIO
            raise nft_module.NftError(number, f"nftables {what}: {os.strerror(number).lower()}") from e
